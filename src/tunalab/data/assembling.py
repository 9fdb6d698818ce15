"""From texts and pixels to documents: what lines of a manifest, samples of a tar and rows of a table have in common.

Pixels come as functions: texts are judged first, an image is decoded for a sound document only.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from tunalab.data.conversations import PLACEHOLDER, check_text, read_turns, take_placeholder
from tunalab.data.documents import IMAGES_PER_DOCUMENT, Document, Image, Reject, Text, Unfit

Pixels = Callable[[], np.ndarray]
CaptionKind = Literal["caption", "text_to_image"]
CAPTION_KINDS: tuple[CaptionKind, ...] = get_args(CaptionKind)


def filled_text(value: Any, name: str) -> str:
    """``value`` without outer white space. Raises Reject: it is no text, or there is nothing in it."""
    text = check_text(value, name)
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
    """A conversation about ``images``, which stand before its text; without images a document of kind text.

    Raises:
        Reject: the turns are no conversation (:func:`read_turns`).
        Unfit: there are too many images.
    """
    if len(images) > IMAGES_PER_DOCUMENT:
        raise Unfit(f"{len(images)} images, a document takes at most {IMAGES_PER_DOCUMENT}")
    answers: list[Text] = []
    for prompt, answer in read_turns(conversations, len(images)):
        # The image alone may be the question, and an empty run of text is no segment.
        answers += [Text(prompt)] if prompt else []
        answers.append(Text(answer, target=True))
    return Document("vqa" if images else "text", (*(Image(pixels()) for pixels in images), *answers))


def edit_document(instruction: Any, source: Pixels, edited: Pixels) -> Document:
    """An image, what to do with it, and the image to generate. Raises Reject: the instruction is no text or empty."""
    instruction = take_placeholder(filled_text(instruction, "instruction"), images=1)
    if not instruction:
        raise Reject("empty instruction")
    return Document("edit", (Image(source()), Text(instruction), Image(edited(), generate=True)))
