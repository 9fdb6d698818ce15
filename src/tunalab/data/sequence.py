"""From a document to the token sequence the decoder sees. Layouts: see documents.py, and :func:`laid_out` for turns of a chat.

Shapes: L tokens of the sequence, H W C image pixels and channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tunalab.data.documents import Document, Image, Kind, Reject, Text
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError

SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."  # what Qwen2.5's chat template says by default
Piece = tuple[list[int], bool] | Image  # ids of tokens with whether they are predicted, or an image


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
    dropped = drop_prompt and document.kind == "text_to_image"
    segments = [Text("") if dropped and isinstance(segment, Text) else segment for segment in document.segments]
    ids: list[int] = []
    targets: list[bool] = []
    spans: list[ImageSpan] = []
    for piece in laid_out(segments, tokenizer):
        if isinstance(piece, Image):
            height, width = piece.pixels_HWC.shape[:2]
            rows, columns = visual_grid(height, width, token_pixels)
            slots = 1 + rows * columns
            ids.append(tokenizer.boi)
            spans.append(ImageSpan(len(ids), slots, piece.pixels_HWC, piece.generate))
            ids += [tokenizer.image_pad] * slots + [tokenizer.eoi]
            targets += [False] * (2 + slots)
        else:
            tokens, predicted = piece
            ids += tokens
            targets += [predicted] * len(tokens)
    return TokenSequence(document.kind, np.array(ids, dtype=np.int64), np.array(targets, dtype=bool), tuple(spans))


def is_answer(segment: Text | Image) -> bool:
    """Whether the model has to produce it."""
    return segment.generate if isinstance(segment, Image) else segment.target


def has_turns(chat: str, generates: bool) -> bool:
    """Whether documents that ask something, for an image (``generates``) or for text, are laid out in turns."""
    return chat == "qwen_all" or (chat == "qwen" and not generates)


def laid_out(segments: Sequence[Text | Image], tokenizer: Tokenizer) -> Iterator[Piece]:
    """A document's tokens and images in order: plain, or in the turns of the tokenizer's ``chat``.

    Qwen's turns (bos and eos are its <|im_start|> and <|im_end|>), each segment of a user's turn on a line of its own:

        bos "system\\n" SYSTEM eos
        ("\\n" bos "user\\n" [image] "\\n" question eos "\\n" bos "assistant\\n" answer eos, repeated)

    Only answers are predicted, with the eos behind them. Without a question before the first answer (plain text) there are no
    turns, nor, unless the chat is ``qwen_all``, where an image is the answer.
    """
    prompted = not is_answer(segments[0]) and any(map(is_answer, segments))
    generates = any(isinstance(segment, Image) and segment.generate for segment in segments)
    if prompted and has_turns(tokenizer.chat, generates):
        yield from _turns(segments, tokenizer)
        return
    yield [tokenizer.bos], False
    for segment in segments:
        yield _piece(segment, tokenizer)
    if isinstance(segment, Image) or not segment.target:
        yield [tokenizer.eos], False


def _piece(segment: Text | Image, tokenizer: Tokenizer) -> Piece:
    if isinstance(segment, Image):
        return segment
    tokens = tokenizer.encode(segment.text)
    return ([*tokens, tokenizer.eos], True) if segment.target else (tokens, False)


def _turns(segments: Sequence[Text | Image], tokenizer: Tokenizer) -> Iterator[Piece]:
    line = tokenizer.encode("\n")

    def begin(role: str) -> list[int]:
        return [tokenizer.bos, *tokenizer.encode(f"{role}\n")]

    yield [*begin("system"), *tokenizer.encode(SYSTEM), tokenizer.eos], False
    asking = False  # whether a user's turn is open
    for segment, following in zip(segments, [*segments[1:], None], strict=True):
        if not is_answer(segment):
            if not asking:
                yield [*line, *begin("user")], False
            more = following is not None and not is_answer(following)
            if isinstance(segment, Image):
                yield segment
                yield line if more else [], False
            else:  # with its line end: in Qwen2.5's vocabulary a mark and the end behind it are one token
                yield tokenizer.encode(segment.text + "\n" if more else segment.text), False
            asking = True
            continue
        yield [*([tokenizer.eos] if asking else []), *line, *begin("assistant")], False
        asking = False
        yield _piece(segment, tokenizer)
        if isinstance(segment, Image):
            yield [tokenizer.eos], False
    if asking:
        yield [tokenizer.eos], False
