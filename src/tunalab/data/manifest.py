"""JSON lines, and manifests of them as a corpus: the user's own captions, conversations and edits.

A line has one of four forms, told apart by its keys (a null or an empty list counts as absent):

    {"image", "caption"}                        caption or text_to_image, a setting
    {"image", "conversations"}                  vqa
    {"raw_image", "out_image", "instruction"}   edit
    {"conversations"}                           text

``images``, a list, may stand for ``image``, which may be a list itself. Other keys are ignored, but for those that name a picture,
a video or audio (:func:`check_media`): without it the line would be another one. Blank lines are nothing, and do not count.
"""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tunalab.data.assembling import (
    CAPTION_KINDS,
    Pixels,
    caption_document,
    check_media,
    conversation_document,
    edit_document,
    filled_text,
)
from tunalab.data.buckets import Buckets
from tunalab.data.changes import local_file, sampled
from tunalab.data.documents import Document, Reject
from tunalab.data.images import read_image
from tunalab.data.shards.files import ShardFile
from tunalab.errors import UserError

# A line is text and paths; one of this size is a broken file (lost line ends), and reading it could fill the memory.
MAX_LINE_BYTES = 16 * 2**20
_SCAN_BYTES = 64 * 2**20
BOM = b"\xef\xbb\xbf"
_CONTENT = np.array([byte not in b" \t\n\r\v\f" for byte in range(256)])


def index_lines(file: BinaryIO) -> np.ndarray:
    """Byte offsets (int64) of the starts of all lines, and last the end of the last one.

    Blank lines are nothing: they count as the end of the line before them, and the first ones go.
    """
    starts: list[np.ndarray] = []
    offset = end = begun = 0  # `begun`: the start of the line that the bytes read so far end in
    filled = False  # whether that line has anything in it
    while chunk := file.read(_SCAN_BYTES):
        data = np.frombuffer(chunk, np.uint8)
        breaks = np.flatnonzero(data == ord("\n")) + 1
        parts = np.concatenate([[0], breaks[breaks < len(data)]])
        has = _CONTENT[data[parts]]  # most lines begin with what they hold; the others are looked at one by one
        if offset == 0 and chunk.startswith(BOM):
            has[0] = False
        for part in np.flatnonzero(~has & (data[parts] != ord("\n"))):
            stop = int(parts[part + 1]) if part + 1 < len(parts) else len(data)
            text = chunk[int(parts[part]) : stop]
            has[part] = bool((text.removeprefix(BOM) if offset + part == 0 else text).strip())
        has[0] |= filled
        of_parts = parts + offset
        of_parts[0] = begun
        closed = len(breaks)  # the part after the last break goes on in the next chunk
        starts.append(of_parts[:closed][has[:closed]])
        if has[:closed].any():
            end = offset + int(breaks[np.flatnonzero(has[:closed])[-1]])
        offset += len(data)
        ends_closed = len(parts) == closed
        begun, filled = (offset, False) if ends_closed else (int(of_parts[-1]), bool(has[-1]))
    if filled:
        starts.append(np.array([begun]))
        end = offset
    return np.ascontiguousarray(np.concatenate([*starts, [end]]), np.int64)


def check_line_size(size: int) -> None:
    """Raises Reject for a line of more than :data:`MAX_LINE_BYTES`, before it is read."""
    if size > MAX_LINE_BYTES:
        raise Reject(f"line of more than {MAX_LINE_BYTES // 2**20} MiB")


def parse_line(data: bytes) -> dict[str, Any]:
    """The object that a line holds.

    Raises:
        Reject: the line is empty, no UTF-8, no JSON or no object, or a key has two values.
    """
    data = data.strip()
    if not data:
        raise Reject("empty line")
    try:
        line = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise Reject(f"not UTF-8: byte {error.start} of the line") from error
    except (ValueError, RecursionError) as error:
        raise Reject(f"not JSON: {error}{_hint(data)}") from error
    if not isinstance(line, dict):
        raise Reject(f"a line must be an object, not {type(line).__name__}{_hint(data)}")
    return line


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON allows a key to stand twice; which of two captions is meant it does not say."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if value != found[key]:
                raise Reject(f"key {key!r} stands twice, with different values")
    return found


def _hint(data: bytes) -> str:
    """For the lines of a file that is one JSON value: a list, or objects over several lines."""
    text = data.removeprefix(BOM)
    if text.startswith((b"[", b"]", b"}")) or text.endswith((b",", b"{", b"[")):
        return " (a JSON array? Lines of JSON have an object each: `jq -c '.[]' FILE` writes them)"
    return ""


FORMS = (
    frozenset({"image", "caption"}),
    frozenset({"image", "conversations"}),
    frozenset({"raw_image", "out_image", "instruction"}),
    frozenset({"conversations"}),
)
_KEYS = frozenset().union(*FORMS)
_PICTURES = ("image", "images", "raw_image", "out_image")


class ManifestCorpus:
    """The lines of a JSONL file as documents. Only where each line starts is held in memory, 8 bytes a line.

    Args:
        path: the manifest.
        root: folder that relative image paths start from; None: the manifest's own folder.
        kind: what {"image", "caption"} lines become.
        caption_prompt: asked before each caption of kind caption; empty: nothing is asked.
        image_size: side of the images in pixels, or their buckets.
        name: what mixes and reject logs call it.

    Raises:
        UserError: no such file or root, an empty file, an unknown kind.
    """

    def __init__(
        self,
        path: str | Path,
        root: str | Path | None = None,
        *,
        image_size: int | Buckets,
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
        with self.path.open("rb") as file:
            self._starts = index_lines(file)
        self._counted = (0, 1)  # bytes whose lines :meth:`where` has counted, and the number of the line behind them
        if self.length == 0:
            raise UserError(f"{self.name}: {self.path} has no lines")

    @property
    def length(self) -> int:
        """Lines of the manifest that are not blank, broken ones included."""
        return len(self._starts) - 1

    def document(self, index: int) -> Document:
        """The document of line ``index % length`` (line 0 is the first).

        Raises:
            Reject: the line or an image of it is broken.
        """
        line = self._read_line(int(index) % self.length)
        form = frozenset(key for key in _KEYS if line.get(key) not in (None, [])) - {"image"}
        named = [key for key in ("image", "images") if line.get(key) not in (None, [])]
        if len(named) > 1:
            raise Reject("image and images: one of them names the pictures of a line")
        images: list[Pixels] = []
        if named:
            value, form = line[named[0]], form | {"image"}
            one = named == ["image"] and not isinstance(value, list)
            images = [self._pixels(value, "image")] if one else self._list(value)
        check_media(line, _PICTURES, f" (read: {', '.join(_PICTURES)})")
        if form == {"image", "caption"}:
            if len(images) > 1:
                raise Reject(f"{len(images)} images and one caption")
            return caption_document(self.kind, line["caption"], self.caption_prompt, images[0])
        if form == {"image", "conversations"}:
            return conversation_document(line["conversations"], images)
        if form == {"raw_image", "out_image", "instruction"}:
            source, edited = (self._pixels(line[key], key) for key in ("raw_image", "out_image"))
            return edit_document(line["instruction"], source, edited)
        if form == {"conversations"}:
            return conversation_document(line["conversations"])
        forms = " | ".join(", ".join(sorted(choice)) for choice in FORMS)
        asked = " (questions with answers are a benchmark: evaluation.benchmarks.NAME.path)" if "question" in line else ""
        others = ", ".join(sorted(line.keys() - _KEYS - {"images"}))
        unknown = f" (unknown: {others})" if others and not asked else ""
        raise Reject(f"keys {', '.join(sorted(form)) or '(none)'}{unknown} are none of the four forms: {forms}{asked}")

    def where(self, index: int) -> str:
        """File and number of the line of an index, blank lines counted, as editors show it. One pass for ascending indices."""
        start = int(self._starts[int(index) % self.length])
        at, line = self._counted if self._counted[0] <= start else (0, 1)
        with self.path.open("rb") as file:
            file.seek(at)
            while chunk := file.read(min(start - at, _SCAN_BYTES)):
                at, line = at + len(chunk), line + chunk.count(b"\n")
        self._counted = (at, line)
        return f"{self.path}:{line}"

    def files_read(self, every: bool) -> list[ShardFile]:
        return [file for file in [local_file(self.path)] if file]

    def images_read(self, every: bool) -> list[ShardFile]:
        """Those that lines name under any key, as text or in a list."""
        found: dict[str, ShardFile] = {}
        for number in sampled(self.length, every):
            try:
                line = self._read_line(number)
            except Reject:
                continue
            for value in (line.get(key) for key in _PICTURES):
                for name in value if isinstance(value, list) else [value]:
                    file = local_file(self._place(name, name.strip())) if isinstance(name, str) and name else None
                    if file is not None:
                        found[file.url] = file
        return list(found.values())

    def _list(self, value: Any) -> list[Pixels]:
        if not isinstance(value, list):
            raise Reject(f"images must be a list, not {type(value).__name__}")
        return [self._pixels(one, f"image {number}") for number, one in enumerate(value, start=1)]

    def _pixels(self, value: Any, name: str) -> Pixels:
        return lambda: read_image(self._place(value, filled_text(value, name)), self.image_size)

    def _place(self, name: str, stripped: str) -> Path:
        """Blanks around a name are part of it where a file is called so."""
        return self.root / (name if name != stripped and os.path.lexists(self.root / name) else stripped)

    def _read_line(self, index: int) -> dict[str, Any]:
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        check_line_size(end - start)
        # Opened for each line: a handle kept open would share its position with the workers forked from this process.
        with self.path.open("rb") as file:
            file.seek(start)
            return parse_line(file.read(end - start))
