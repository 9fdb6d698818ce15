"""From a document to the token sequence the decoder sees. Layouts: see documents.py.

Shapes: L tokens of the sequence, H W C image pixels and channels.
"""

from dataclasses import dataclass

import numpy as np

from tunalab.data.documents import Document, Kind, Reject, Text
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError


@dataclass(frozen=True, eq=False)
class ImageSpan:
    """Where an image stands: its time token at ``offset``, then its visual tokens, row-major; ``length`` slots in all."""

    offset: int
    length: int
    pixels_HWC: np.ndarray
    generate: bool


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """``ids_L`` int64 (image slots hold the tokenizer's image_pad), ``target_L`` bool: predicted from the token before it."""

    kind: Kind
    ids_L: np.ndarray
    target_L: np.ndarray
    spans: tuple[ImageSpan, ...]


def visual_grid(height: int, width: int, token_pixels: int) -> tuple[int, int]:
    """Rows and columns of visual tokens, each ``token_pixels`` pixels along a side, of an image of ``height`` x ``width`` pixels.

    Raises UserError when a side is not a multiple of ``token_pixels``: padding or cropping would be silent.
    """
    if height % token_pixels or width % token_pixels or min(height, width) < 1:
        raise UserError(f"image of {height}x{width} pixels is not cut exactly by tokens of {token_pixels} pixels")
    return height // token_pixels, width // token_pixels


def to_sequence(document: Document, tokenizer: Tokenizer, token_pixels: int, drop_prompt: bool = False) -> TokenSequence:
    """Lay a document out as tokens; an image is one time token, then a visual token for every square of ``token_pixels`` pixels.

    Text that is a target is closed by eos and predicted together with it; prompts are never predicted. ``drop_prompt`` leaves
    a generation prompt empty, which trains the unconditional branch of guidance. Raises Reject for a document without segments,
    UserError for an image that is not cut exactly.
    """
    if not document.segments:
        raise Reject("document without content")
    ids: list[int] = [tokenizer.bos]
    targets: list[bool] = [False]
    spans: list[ImageSpan] = []
    closed = False  # whether the last token is already an eos
    for segment in document.segments:
        closed = False
        if isinstance(segment, Text):
            if drop_prompt and document.kind == "text_to_image":
                continue
            tokens = tokenizer.encode(segment.text)
            if segment.target:
                tokens = [*tokens, tokenizer.eos]
                closed = True
            ids += tokens
            targets += [segment.target] * len(tokens)
        else:
            height, width = segment.pixels_HWC.shape[:2]
            rows, columns = visual_grid(height, width, token_pixels)
            slots = 1 + rows * columns
            ids.append(tokenizer.boi)
            spans.append(ImageSpan(len(ids), slots, segment.pixels_HWC, segment.generate))
            ids += [tokenizer.image_pad] * slots + [tokenizer.eoi]
            targets += [False] * (2 + slots)
    if not closed:
        ids.append(tokenizer.eos)
        targets.append(False)
    return TokenSequence(document.kind, np.array(ids, dtype=np.int64), np.array(targets, dtype=bool), tuple(spans))
