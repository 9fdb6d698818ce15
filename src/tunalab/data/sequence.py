"""From a document to the token sequence the decoder sees. Layouts: see documents.py.

Shapes: L tokens of the sequence, H W C image pixels and channels.
"""

from dataclasses import dataclass

import numpy as np

from tunalab.data.documents import Document, Kind, Reject, Text
from tunalab.data.tokenizer import Tokenizer


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


def to_sequence(document: Document, tokenizer: Tokenizer, image_tokens: int, drop_prompt: bool = False) -> TokenSequence:
    """Lay a document out as tokens; ``image_tokens`` visual tokens stand for every image, after one time token.

    Text that is a target is closed by eos and predicted together with it; prompts are never predicted. ``drop_prompt`` leaves
    a generation prompt empty, which trains the unconditional branch of guidance. Raises Reject for a document without segments.
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
            ids.append(tokenizer.boi)
            spans.append(ImageSpan(len(ids), 1 + image_tokens, segment.pixels_HWC, segment.generate))
            ids += [tokenizer.image_pad] * (1 + image_tokens) + [tokenizer.eoi]
            targets += [False] * (3 + image_tokens)
    if not closed:
        ids.append(tokenizer.eos)
        targets.append(False)
    return TokenSequence(document.kind, np.array(ids, dtype=np.int64), np.array(targets, dtype=bool), tuple(spans))
