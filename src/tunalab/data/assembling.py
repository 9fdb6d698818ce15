"""From texts and pixels to documents: what lines of a manifest, samples of a tar and rows have in common.

Pixels come as functions: texts are judged first, an image is decoded for a sound document only.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from tunalab.data.documents import IMAGES_PER_DOCUMENT, Document, Image, Reject, Text, Unfit

PLACEHOLDER = "<image>"
_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}


def read_turns(conversations: Any, images: int) -> list[tuple[str, str]]:
    """The (prompt, answer) pairs of a conversation about ``images`` images.

    Turns alternate between human and gpt; a system turn may come first and opens the first prompt. That prompt has a
    placeholder for each image (:func:`place_images`), which a system turn follows where images come first. Later in the
    conversation a placeholder would answer for turns that were held without its image. Answers keep their indentation.

    Raises:
        Reject: anything else, with the number of the turn (from 1).
    """
    if not isinstance(conversations, list) or not conversations:
        raise Reject("conversations must be a list with at least one turn")
    turns = [_read_turn(turn, number) for number, turn in enumerate(conversations, start=1)]
    system = turns.pop(0)[1] if turns[0][0] == "system" else ""
    roles = [role for role, _ in turns]
    if not roles or roles != ["human", "gpt"] * (len(roles) // 2):
        raise Reject(f"turns must alternate between human and gpt, starting with human; found {', '.join(roles[:8])}")
    if PLACEHOLDER in system or any(PLACEHOLDER in value for _, value in turns[1:]):
        raise Reject(f"{PLACEHOLDER} outside the first human turn")

    pairs = []
    for number in range(0, len(turns), 2):
        prompt, answer = turns[number][1], turns[number + 1][1]
        if number == 0:
            prompt = place_images(prompt, images)
        if not prompt:
            raise Reject("empty prompt")
        if number == 0 and system:
            text = prompt
            while text.startswith(PLACEHOLDER):
                text = text.removeprefix(PLACEHOLDER)
            prompt = prompt[: len(prompt) - len(text)] + f"{system}\n{text}".strip()
        if not answer:
            raise Reject("empty answer")
        pairs.append((prompt, answer))
    return pairs


def place_images(text: str, images: int) -> str:
    """``text`` with a placeholder for each of its ``images``, without white space beside them.

    A placeholder stays where it stands. Without any the images come first, and also where all stand on lines of their own
    behind the text: data sets write a question so as often as with the image first, and mean the same.

    Raises:
        Reject: it has some, but not one for each image.
    """
    before, *after = text.split(PLACEHOLDER)
    if after and not images:
        raise Reject(f"{PLACEHOLDER} without an image")
    if after and len(after) != images:
        raise Reject(f"{len(after)} times {PLACEHOLDER}, {'one image' if images == 1 else f'{images} images'}")
    if not after or (before.rstrip(" \t").endswith("\n") and not "".join(after).strip()):
        return PLACEHOLDER * images + before.strip()
    return PLACEHOLDER.join(part.strip() for part in (before, *after))


def check_text(value: Any, name: str, indented: bool = False) -> str:
    """``value`` without outer white space and without a byte order mark.

    ``indented``: it may be code, so the indentation of its first line stays. One blank before a single line is none.

    Raises:
        Reject: it is no string, no UTF-8, or holds half a surrogate pair: JSON can escape it, no tokenizer can encode it.
    """
    if isinstance(value, bytes):  # of a table
        raise Reject(f"{name} is not UTF-8")
    if not isinstance(value, str):
        raise Reject(f"{name} must be a string, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Reject(f"{name} holds half a surrogate pair at character {error.start}") from error
    value = value.removeprefix("\ufeff").rstrip()
    text = value.lstrip()
    indentation = value[: len(value) - len(text)].rpartition("\n")[2]
    kept = indented and (indentation != " " or "\n" in text)
    return indentation + text if kept else text


def _read_turn(turn: Any, number: int) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise Reject(f"turn {number} must be an object, not {type(turn).__name__}")
    role, value = (turn.get("from"), turn.get("value")) if "from" in turn else (turn.get("role"), turn.get("content"))
    if not isinstance(role, str) or role not in _ROLES:
        raise Reject(f"turn {number} is from {role!r}; choices: {', '.join(_ROLES)}")
    return _ROLES[role], check_text(value, f"the value of turn {number}", indented=_ROLES[role] == "gpt")


Pixels = Callable[[], np.ndarray]
CaptionKind = Literal["caption", "text_to_image"]
CAPTION_KINDS: tuple[CaptionKind, ...] = get_args(CaptionKind)


# Keys that name a picture, video or audio, as data sets write them: Image, images, video_path, source_image, image_1, image_list.
_MEDIA = re.compile(
    r"(?P<before>.+[_-])?(?P<kind>image|img|picture|photo|screenshot|video|audio)s?([_-]?[0-9]+)?"
    r"(?P<behind>[_-]?(path|file|filename|name|url|uri|bytes|base64|data)s?)?([_-]?([0-9]+|list))?",
    re.IGNORECASE,
)
# Of a turn: what an assistant does instead of what it says.
_CALLS = ("tool_calls", "function_call")


def names_media(key: str) -> bool:
    """Whether a key or a column is called like a picture, video or audio."""
    return _MEDIA.fullmatch(key) is not None


def check_media(line: Mapping[str, Any], read: Iterable[str] = (), instead: str = "") -> None:
    """Raises Reject for a key that names a picture, video or audio and is none of those that are ``read``.

    Only what holds text, a list or an object: sizes and counts are no media. Beside a picture that is read, the place or the
    name of a picture (``image_url``) is taken for its own. ``instead`` ends the reason.
    """
    read = [key for key in read if line.get(key)]
    for key, value in line.items():
        found = _MEDIA.fullmatch(key)
        if found is None or key in read or not value or not isinstance(value, str | bytes | list | dict):
            continue
        if read and found["behind"] and found["kind"].lower() not in ("video", "audio"):
            continue
        raise Reject(f"key {key!r} names what is not read, and would be left out{instead}")


def _check_turns(turns: Any) -> None:
    """Raises Reject for a turn with a picture, video, audio or call of its own."""
    for number, turn in enumerate(turns if isinstance(turns, list) else [], start=1):
        if not isinstance(turn, dict):
            continue
        for key in _CALLS:
            if turn.get(key):
                raise Reject(f"turn {number}: key {key!r} holds what is not read, and would be left out")
        try:
            check_media(turn)
        except Reject as reject:
            raise Reject(f"turn {number}: {reject}") from reject


def filled_text(value: Any, name: str, indented: bool = False) -> str:
    """``value`` as :func:`check_text` gives it. Raises Reject: it is no text, or there is nothing in it."""
    text = check_text(value, name, indented)
    if not text:
        raise Reject(f"empty {name}")
    return text


def caption_document(kind: str, caption: Any, caption_prompt: str, pixels: Pixels) -> Document:
    """An image with its caption, as the answer to ``caption_prompt`` (kind caption) or as what is generated from it.

    Raises:
        Reject: the caption is no text, is empty or holds an image placeholder.
    """
    caption = filled_text(caption, "caption")
    if PLACEHOLDER in caption:
        raise Reject(f"{PLACEHOLDER} in a caption")
    if kind == "caption":
        prompt = (Text(caption_prompt),) if caption_prompt else ()
        return Document("caption", (Image(pixels()), *prompt, Text(caption, target=True)))
    return Document("text_to_image", (Text(caption), Image(pixels(), generate=True)))


def conversation_document(conversations: Any, images: Sequence[Pixels] = ()) -> Document:
    """A conversation about ``images``, which stand where :func:`place_images` puts them; without images of kind text.

    Raises:
        Reject: the turns are no conversation (:func:`read_turns`), or one holds more than its text.
        Unfit: there are too many images.
    """
    if len(images) > IMAGES_PER_DOCUMENT:
        raise Unfit(f"{len(images)} images, a document takes at most {IMAGES_PER_DOCUMENT}")
    _check_turns(conversations)
    (first, answer), *later = read_turns(conversations, len(images))
    segments = [*_laid_out(first, images), Text(answer, target=True)]
    for prompt, answer in later:
        segments += [Text(prompt), Text(answer, target=True)]
    return Document("vqa" if images else "text", tuple(segments))


def edit_document(instruction: Any, source: Pixels, edited: Pixels) -> Document:
    """An image, what to do with it, and the image to generate. Raises Reject: the instruction is no text or empty."""
    instruction = place_images(filled_text(instruction, "instruction"), images=1)
    if instruction == PLACEHOLDER:
        raise Reject("empty instruction")
    return Document("edit", (*_laid_out(instruction, [source]), Image(edited(), generate=True)))


def _laid_out(text: str, images: Sequence[Pixels]) -> list[Text | Image]:
    """The parts of a text with its images in place of their placeholders. An empty run of text is no segment."""
    segments: list[Text | Image] = []
    for number, part in enumerate(text.split(PLACEHOLDER)):
        segments += [Image(images[number - 1]())] if number else []
        segments += [Text(part)] if part else []
    return segments
