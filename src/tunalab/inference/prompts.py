"""Prompts, and answers to them. A prompt is the part of a document before what the model has to produce (data/sequence.py).

Shapes: B rows, L tokens of a prompt, N images, T visual tokens, D width; H W C image pixels and channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tunalab.data.documents import Image, Text
from tunalab.data.sequence import ImageSpan, laid_out
from tunalab.data.tokenizer import Tokenizer
from tunalab.frontends.contract import TargetSpace, signed
from tunalab.model.attention import CachedAttention, may_attend
from tunalab.model.decoder import hidden_states
from tunalab.model.flow_head import rotary_tables
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import SamplingConfig


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
    given = [Text(segment) if isinstance(segment, str) else Image(segment) for segment in segments]
    answer = Image(np.empty((0, 0, 3), dtype=np.uint8), generate=True) if before_image else Text("", target=True)
    ids: list[int] = []
    spans = []
    for piece in laid_out([*given, answer], tokenizer):
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

    Edits without one start from the prompt of :func:`image_prompt` too, which is in training when it is empty: no instruction
    is ever dropped, and from the source without one, trained models were guided away from the edited image, further with more
    guidance.
    """
    if source_HWC is None or not sampling.edit_guidance:
        return image_prompt(tokenizer, space, sampling.negative_prompt)
    return edit_prompt(tokenizer, space, source_HWC, sampling.negative_prompt)


def edit_sampling(sampling: SamplingConfig) -> SamplingConfig:
    """How edits are sampled."""
    return replace(sampling, guidance=sampling.edit_guidance or sampling.guidance)


@dataclass(eq=False)
class Prefixes:
    """Encoded prompts: the keys and values of every layer, and the last hidden state.

    Prompts of one layout share a forward pass and prompts of one content a row of it, so there is neither padding nor repetition.
    The rows are not in the order of the prompts: ``prompt_B`` says which prompt a row belongs to. ``head`` is filled only where the
    flow head reads them too.
    """

    decoder: CachedAttention
    head: CachedAttention
    prompt_B: Tensor
    length_B: Tensor
    last_BD: Tensor


def device_of(model: UnifiedModel) -> torch.device:
    return model.mask_token.token_D.device


@torch.no_grad()
def encode_prefixes(model: UnifiedModel, prompts: Sequence[Prompt], flow_head: bool) -> Prefixes:
    """Encode prompts, text and images alike, at t = 1 for every image.

    ``flow_head``: also through the blocks of the flow head. There text passes unmodulated (shift 0, scale 0, gate 1), so its
    keys and values do not depend on the time of the image to come.
    """
    if not prompts:
        raise ValueError("no prompts to encode")
    layouts: dict[object, dict[object, list[int]]] = {}
    for number, prompt in enumerate(prompts):
        layouts.setdefault(prompt.layout, {}).setdefault(prompt.content, []).append(number)
    parts = []
    for contents in layouts.values():
        part = _encode_layout(model, [prompts[numbers[0]] for numbers in contents.values()], flow_head)
        copies = [copy for copy, numbers in enumerate(contents.values()) for _ in numbers]
        order = [number for numbers in contents.values() for number in numbers]
        parts.append(_repeat(part, copies, order))
    return join_prefixes(parts)


def join_prefixes(parts: Sequence[Prefixes]) -> Prefixes:
    """Rows of all parts behind each other."""
    return Prefixes(
        CachedAttention.join([part.decoder for part in parts]),
        CachedAttention.join([part.head for part in parts]),
        torch.cat([part.prompt_B for part in parts]),
        torch.cat([part.length_B for part in parts]),
        torch.cat([part.last_BD for part in parts]),
    )


def _repeat(part: Prefixes, copies: list[int], order: list[int]) -> Prefixes:
    device = part.last_BD.device
    row_B = torch.tensor(copies, device=device)
    return Prefixes(
        part.decoder.select(copies),
        part.head.select(copies),
        torch.tensor(order, device=device),
        part.length_B[row_B],
        part.last_BD[row_B],
    )


def _encode_layout(model: UnifiedModel, prompts: list[Prompt], flow_head: bool) -> Prefixes:
    device = device_of(model)
    B, spans = len(prompts), prompts[0].spans
    ids_BL = torch.from_numpy(np.stack([prompt.ids_L for prompt in prompts])).to(device)
    L = ids_BL.shape[1]
    position_BL = torch.arange(L, device=device).expand(B, L)
    # Images are numbered image by image: all first images of the rows, then all second ones.
    span_L = torch.full((L,), -1, dtype=torch.int64, device=device)
    patch_L = torch.full((L,), -1, dtype=torch.int64, device=device)
    span_BL = span_L.repeat(B, 1)
    h_BLD = model.decoder.model.embed_tokens(ids_BL)
    columns_L = torch.ones_like(span_L)
    times = []
    for number, span in enumerate(spans):
        slots = slice(span.offset, span.offset + span.length)
        span_L[slots] = number
        span_BL[:, slots] = number * B + torch.arange(B, device=device)[:, None]
        patch_L[slots] = torch.arange(-1, span.length - 1, device=device)
        visual_BTD, columns_L[slots] = visual_tokens(model, [prompt.spans[number].pixels_HWC for prompt in prompts])
        time_BD = model.time(torch.ones(B, device=device))
        slot_B1T = torch.arange(B, device=device)[:, None] * L + torch.arange(slots.start, slots.stop, device=device)
        h_BLD = model.scatter(h_BLD, [slot_B1T], [visual_BTD], [time_BD])
        times.append(time_BD)
    mask_LL = may_attend(torch.zeros_like(span_L)[None], span_L[None])[0]
    decoder, head = CachedAttention([B], mask_LL), CachedAttention([B], mask_LL)
    h_BLD = hidden_states(model.decoder, h_BLD, position_BL, decoder)
    if flow_head:
        time_ND = torch.cat(times) if times else h_BLD.new_zeros((0, h_BLD.shape[-1]))
        rotary = rotary_tables(position_BL[:1], span_L[None] >= 0, patch_L[None], columns_L[None], model.head.head_dim)
        model.head(h_BLD, time_ND, span_BL, rotary, head)
    decoder.mask_LL = head.mask_LL = None
    return Prefixes(decoder, head, torch.arange(B, device=device), torch.full((B,), L, device=device), h_BLD[:, -1])


def visual_tokens(model: UnifiedModel, images: Sequence[np.ndarray]) -> tuple[Tensor, int]:
    """Unmasked visual tokens (N, T, D) of clean RGB images (H, W, 3) uint8, and the columns of their grid."""
    pixels_NHWC = torch.from_numpy(np.stack(images)).to(device_of(model))
    with torch.autocast(pixels_NHWC.device.type, enabled=False):  # as in training
        x_NChw = model.frontend.to_space(signed(pixels_NHWC.permute(0, 3, 1, 2)))
    rows, columns = model.grid(x_NChw)
    mask_NT = torch.zeros((len(images), rows * columns), dtype=torch.bool, device=x_NChw.device)
    return model.visual(x_NChw, mask_NT), columns


# Answers: greedy, batched, with a cache of keys and values, without any noise.


def answer(
    model: UnifiedModel,
    tokenizer: Tokenizer,
    questions: Sequence[tuple[np.ndarray | None, str]],
    max_tokens: int,
    batch_tokens: int = 4096,
) -> list[str]:
    """The most likely answer, token by token, to every question: (image (H, W, 3) uint8 or None, prompt).

    An answer ends at eos, or after ``max_tokens`` tokens (eos counted). ``batch_tokens`` bounds the prompt tokens held at
    a time; the answers do not depend on it.
    """
    answers = answer_ids(model, tokenizer, questions, max_tokens, batch_tokens)
    decoded = {ids: tokenizer.decode(ids) for ids in {tuple(ids) for ids in answers}}  # most answers are given many times
    return [decoded[tuple(ids)] for ids in answers]


def answer_ids(
    model: UnifiedModel,
    tokenizer: Tokenizer,
    questions: Sequence[tuple[np.ndarray | None, str]],
    max_tokens: int,
    batch_tokens: int = 4096,
) -> list[list[int]]:
    """As :func:`answer`, the token ids without the eos at their end.

    Decoding is greedy, so the first n ids of an answer are the answer under ``max_tokens=n``.
    """
    prompts = [question_prompt(tokenizer, model.frontend.space, *question) for question in questions]
    return answer_prompts(model, prompts, max_tokens, tokenizer.eos, batch_tokens)


def answer_prompts(
    model: UnifiedModel, prompts: Sequence[Prompt], max_tokens: int, eos: int, batch_tokens: int = 4096
) -> list[list[int]]:
    """As :func:`answer`, from prompts to token ids, without the eos at their end."""
    return answers_and_likelihoods(model, prompts, [()] * len(prompts), max_tokens, eos, batch_tokens)[0]


@torch.no_grad()
def answers_and_likelihoods(
    model: UnifiedModel,
    prompts: Sequence[Prompt],
    options: Sequence[Sequence[Sequence[int]]],
    max_tokens: int,
    eos: int,
    batch_tokens: int = 4096,
) -> tuple[list[list[int]], list[list[float]]]:
    """As :func:`answer_prompts`, and of every option of a prompt (token ids) the log-likelihood of its tokens, in nats.

    The eos behind an option is not part of it: an option of one token costs nothing beyond the answer.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    likelihoods: list[list[float]] = [[] for _ in prompts]
    for numbers in batches([len(prompt.ids_L) for prompt in prompts], batch_tokens):
        prefixes = encode_prefixes(model, [prompts[number] for number in numbers], flow_head=False)
        for row, one in zip(prefixes.prompt_B.tolist(), _likelihoods(model, prefixes, [options[n] for n in numbers]), strict=True):
            likelihoods[numbers[row]] = one
        for number, ids in zip(numbers, _answer_batch(model, prefixes, max_tokens, eos), strict=True):
            answers[number] = ids
    return answers, likelihoods


def _likelihoods(model: UnifiedModel, prefixes: Prefixes, options: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
    """Of the options of each row of ``prefixes``, in their order. ``options``: of each prompt, by its number in the batch."""
    of_row = [options[prompt] for prompt in prefixes.prompt_B.tolist()]
    found = [[0.0] * len(row) for row in of_row]
    going_on = [(row, number) for row, those in enumerate(of_row) for number in range(len(those))]
    if not going_on:
        return found
    log_p_BV = torch.log_softmax(model.decoder.lm_head(prefixes.last_BD).float(), dim=-1)
    device = log_p_BV.device
    rows = [row for row, _ in going_on]  # of log_p_BV, for each option that goes on
    cache = CachedAttention.join([prefixes.decoder])  # its own: the answers go on from the prefixes as they are
    position_B = prefixes.length_B
    for step in range(max(len(one) for those in of_row for one in those)):
        tokens = [of_row[row][number][step] for row, number in going_on]
        for (row, number), value in zip(going_on, log_p_BV[rows, tokens].tolist(), strict=True):
            found[row][number] += value
        kept = [k for k, (row, number) in enumerate(going_on) if len(of_row[row][number]) > step + 1]
        if not kept:
            break
        # From here on each option is a row of its own, behind its tokens so far.
        chosen = [rows[k] for k in kept]
        cache, position_B = cache.select(chosen), position_B[torch.tensor(chosen, device=device)]
        id_B = torch.tensor([tokens[k] for k in kept], device=device)
        h_B1D = model.decoder.model.embed_tokens(id_B[:, None])
        last_BD = hidden_states(model.decoder, h_B1D, position_B[:, None], cache)[:, 0]
        log_p_BV = torch.log_softmax(model.decoder.lm_head(last_BD).float(), dim=-1)
        position_B = position_B + 1
        going_on, rows = [going_on[k] for k in kept], list(range(len(kept)))
    return found


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of the prompts of each batch: equal lengths side by side, so that a batch has few layouts."""
    batch: list[int] = []
    held = 0
    for number in sorted(range(len(lengths)), key=lambda number: (lengths[number], number)):
        if batch and held + lengths[number] > batch_tokens:
            yield batch
            batch, held = [], 0
        batch.append(number)
        held += lengths[number]
    if batch:
        yield batch


def _answer_batch(model: UnifiedModel, prefixes: Prefixes, max_tokens: int, eos: int) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in range(len(prefixes.prompt_B))]
    cache, position_B, last_BD = prefixes.decoder, prefixes.length_B, prefixes.last_BD
    rows = prefixes.prompt_B.tolist()
    for step in range(max_tokens):
        id_B: Tensor = model.decoder.lm_head(last_BD).argmax(dim=-1)
        ids = id_B.tolist()
        going_on = [row for row, token in enumerate(ids) if token != eos]
        for row in going_on:
            answers[rows[row]].append(ids[row])
        if not going_on or step == max_tokens - 1:
            break
        if len(going_on) < len(rows):
            row_B = torch.tensor(going_on, device=id_B.device)
            cache, rows = cache.select(going_on), [rows[row] for row in going_on]
            id_B, position_B = id_B[row_B], position_B[row_B]
        h_B1D = model.decoder.model.embed_tokens(id_B[:, None])
        last_BD = hidden_states(model.decoder, h_B1D, position_B[:, None], cache)[:, 0]
        position_B = position_B + 1
    return answers
