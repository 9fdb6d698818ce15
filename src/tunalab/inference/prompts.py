"""Prompts: the part of a document that stands before what the model has to produce. Layouts: see data/sequence.py.

Shapes: L tokens, H W C image pixels and channels.
"""

from dataclasses import dataclass, replace

import numpy as np

from tunalab.config import SamplingConfig
from tunalab.data.documents import Image, Text
from tunalab.data.sequence import ImageSpan, laid_out
from tunalab.data.tokenizer import Tokenizer
from tunalab.frontends.contract import TargetSpace


@dataclass(frozen=True, eq=False)
class Prompt:
    """``ids_L`` int64, image slots holding image_pad, and the spans of the images in it, all of them clean."""

    ids_L: np.ndarray
    spans: tuple[ImageSpan, ...] = ()

    @property
    def layout(self) -> tuple[object, ...]:
        """Prompts of one layout can be encoded in one batch: same length, same images at the same places."""
        return (len(self.ids_L), *((span.offset, span.length, span.pixels_HWC.shape) for span in self.spans))

    @property
    def content(self) -> tuple[object, ...]:
        """Prompts of one content need to be encoded once. Images are the same if they are the same array."""
        return (self.ids_L.tobytes(), *(id(span.pixels_HWC) for span in self.spans))


def build_prompt(tokenizer: Tokenizer, space: TargetSpace, segments: list[str | np.ndarray], before_image: bool = False) -> Prompt:
    """What a document holds before its answer, of these segments in order: texts, and images (H, W, 3) uint8 between boi and eoi.

    ``before_image``: the answer is an image, and the prompt ends with boi. Raises UserError for an image that the space does not
    cut exactly.
    """
    asked = [Text(segment) if isinstance(segment, str) else Image(segment) for segment in segments]
    answer = Image(np.empty((0, 0, 3), dtype=np.uint8), generate=True) if before_image else Text("", target=True)
    ids: list[int] = []
    spans = []
    for piece in laid_out([*asked, answer], tokenizer):
        if isinstance(piece, Image):
            if piece is answer:
                ids.append(tokenizer.boi)
                break
            rows, columns = space.grid(*piece.pixels_HWC.shape[:2])
            slots = 1 + rows * columns
            spans.append(ImageSpan(len(ids) + 1, slots, piece.pixels_HWC, generate=False))
            ids += [tokenizer.boi, *[tokenizer.image_pad] * slots, tokenizer.eoi]
            continue
        tokens, predicted = piece
        if predicted:
            break
        ids += tokens
    return Prompt(np.array(ids, dtype=np.int64), tuple(spans))


def question_prompt(tokenizer: Tokenizer, space: TargetSpace, pixels_HWC: np.ndarray | None, question: str) -> Prompt:
    """``bos boi [time][patches] eoi question``, or these in turns; without the image part when there is no image."""
    return build_prompt(tokenizer, space, [question] if pixels_HWC is None else [pixels_HWC, question])


def image_prompt(tokenizer: Tokenizer, space: TargetSpace, text: str) -> Prompt:
    """``bos text boi``; an empty text is the unconditional branch of guidance."""
    return build_prompt(tokenizer, space, [text], before_image=True)


def edit_prompt(tokenizer: Tokenizer, space: TargetSpace, source_HWC: np.ndarray, instruction: str) -> Prompt:
    """``bos boi [source] eoi instruction boi``; without an instruction the source alone, as a copy has it (data/copies.py)."""
    return build_prompt(tokenizer, space, [source_HWC, *([instruction] if instruction else [])], before_image=True)


def unconditional_prompt(
    tokenizer: Tokenizer, space: TargetSpace, sampling: SamplingConfig, source_HWC: np.ndarray | None = None
) -> Prompt:
    """What guidance starts from: the negative prompt, of an edit with a guidance of its own behind the source.

    Edits without one start from the prompt of :func:`image_prompt` too, which training has seen when it is empty: no instruction
    is ever dropped, and from the source without one, trained models were guided away from the edited image, further with more
    guidance.
    """
    if source_HWC is None or not sampling.edit_guidance:
        return image_prompt(tokenizer, space, sampling.negative_prompt)
    return edit_prompt(tokenizer, space, source_HWC, sampling.negative_prompt)


def edit_sampling(sampling: SamplingConfig) -> SamplingConfig:
    """How edits are sampled."""
    return replace(sampling, guidance=sampling.edit_guidance or sampling.guidance)
