"""JSONL manifests as a corpus: the user's own captions, conversations and edits.

A line has one of four forms, told apart by its keys (others are ignored, and a null counts as absent):

    {"image", "caption"}                        caption or text_to_image, a setting
    {"image", "conversations"}                  vqa
    {"raw_image", "out_image", "instruction"}   edit
    {"conversations"}                           text
"""

import json
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np

from tunalab.data.conversations import PLACEHOLDER, check_text, read_turns, take_placeholder
from tunalab.data.documents import Document, Image, Reject, Text
from tunalab.data.image_files import read_image
from tunalab.errors import UserError

CaptionKind = Literal["caption", "text_to_image"]
CAPTION_KINDS: tuple[CaptionKind, ...] = get_args(CaptionKind)

FORMS = (
    frozenset({"image", "caption"}),
    frozenset({"image", "conversations"}),
    frozenset({"raw_image", "out_image", "instruction"}),
    frozenset({"conversations"}),
)
_KEYS = frozenset().union(*FORMS)

# A line is text and paths; one of this size is a broken file (lost line ends), and reading it could fill the memory.
MAX_LINE_BYTES = 16 * 2**20
_SCAN_BYTES = 64 * 2**20


class ManifestCorpus:
    """The lines of a JSONL file as documents. Only where each line starts is held in memory, 8 bytes a line.

    Args:
        path: the manifest.
        root: folder that relative image paths start from; None: the manifest's own folder.
        kind: what {"image", "caption"} lines become.
        caption_prompt: asked before each caption of kind caption; empty: nothing is asked.
        image_size: side of the images in pixels.
        name: what mixes and reject logs call it.

    Raises:
        UserError: no such file or root, an empty file, an unknown kind.
    """

    def __init__(
        self,
        path: str | Path,
        root: str | Path | None = None,
        *,
        image_size: int,
        kind: str = "caption",
        caption_prompt: str = "",
        name: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.name = name or f"manifest/{self.path.stem}"
        if kind not in CAPTION_KINDS:
            raise UserError(f"{self.name}: unknown kind {kind!r}; choices: {', '.join(CAPTION_KINDS)}")
        if not self.path.is_file():
            raise UserError(f"{self.name}: no such manifest file: {self.path}")
        self.root = self.path.parent if root is None else Path(root)
        if not self.root.is_dir():
            raise UserError(f"{self.name}: no such folder of images: {self.root}")
        self.kind = kind
        self.caption_prompt = caption_prompt
        self.image_size = image_size
        self._starts = _index_lines(self.path)
        if self.length == 0:
            raise UserError(f"{self.name}: {self.path} has no lines")

    @property
    def length(self) -> int:
        """Lines of the manifest, broken ones included."""
        return len(self._starts) - 1

    def document(self, index: int) -> Document:
        """The document of line ``index % length`` (line 0 is the first).

        Raises:
            Reject: the line or an image of it is broken.
        """
        line = self._read_line(int(index) % self.length)
        form = frozenset(key for key in _KEYS if line.get(key) is not None)
        if form == {"image", "caption"}:
            return self._caption(line)
        if form == {"image", "conversations"}:
            return Document("vqa", (self._image(line, "image"), *_answers(line, has_image=True)))
        if form == {"raw_image", "out_image", "instruction"}:
            return self._edit(line)
        if form == {"conversations"}:
            return Document("text", _answers(line, has_image=False))
        known = " | ".join(", ".join(sorted(choice)) for choice in FORMS)
        raise Reject(f"keys {', '.join(sorted(form)) or '(none)'} are none of the four forms: {known}")

    def _caption(self, line: dict[str, Any]) -> Document:
        caption = _text(line, "caption")
        if PLACEHOLDER in caption:
            raise Reject(f"{PLACEHOLDER} in a caption")
        if self.kind == "caption":
            prompt = (Text(self.caption_prompt),) if self.caption_prompt else ()
            return Document("caption", (self._image(line, "image"), *prompt, Text(caption, target=True)))
        return Document("text_to_image", (Text(caption), self._image(line, "image", generate=True)))

    def _edit(self, line: dict[str, Any]) -> Document:
        instruction = take_placeholder(_text(line, "instruction"), allowed=True)
        if not instruction:
            raise Reject("empty instruction")
        source = self._image(line, "raw_image")
        return Document("edit", (source, Text(instruction), self._image(line, "out_image", generate=True)))

    def _image(self, line: dict[str, Any], key: str, generate: bool = False) -> Image:
        return Image(read_image(self.root / _text(line, key), self.image_size), generate)

    def _read_line(self, index: int) -> dict[str, Any]:
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        if end - start > MAX_LINE_BYTES:
            raise Reject(f"line of more than {MAX_LINE_BYTES // 2**20} MiB")
        # Opened for each line: a handle kept open would share its position with the workers forked from this process.
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
        if not data.strip():
            raise Reject("empty line")
        try:
            line = json.loads(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise Reject(f"not UTF-8: byte {error.start} of the line") from error
        except (ValueError, RecursionError) as error:
            raise Reject(f"not JSON: {error}") from error
        if not isinstance(line, dict):
            raise Reject(f"a line must be an object, not {type(line).__name__}")
        return line


def _answers(line: dict[str, Any], has_image: bool) -> tuple[Text, ...]:
    segments: list[Text] = []
    for prompt, answer in read_turns(line["conversations"], has_image):
        # The image alone may be the question, and an empty run of text is no segment.
        segments += [Text(prompt)] if prompt else []
        segments.append(Text(answer, target=True))
    return tuple(segments)


def _text(line: dict[str, Any], key: str) -> str:
    value = check_text(line[key], key)
    if not value:
        raise Reject(f"empty {key}")
    return value


def _index_lines(path: Path) -> np.ndarray:
    """Byte offsets (int64) of the starts of all lines, and last the end of the last one. Trailing empty lines go."""
    breaks = []
    offset = 0
    with path.open("rb") as file:
        while chunk := file.read(_SCAN_BYTES):
            breaks.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + (offset + 1))
            offset += len(chunk)
        starts = np.concatenate([np.zeros(1, np.int64), *breaks, np.full(1, offset, np.int64)])
        # A file that ends in a line break has no line after it; an empty one has no lines at all.
        count = len(starts) - 1
        while count and _is_blank(file, int(starts[count - 1]), int(starts[count])):
            count -= 1
    return np.ascontiguousarray(starts[: count + 1], np.int64)


def _is_blank(file: BinaryIO, start: int, end: int) -> bool:
    file.seek(start)
    return end - start <= MAX_LINE_BYTES and not file.read(end - start).strip()
