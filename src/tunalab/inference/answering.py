"""Answering questions: greedy, batched, with a cache of keys and values, and without any noise.

Shapes: B rows, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tunalab.data.tokenizer import Tokenizer
from tunalab.inference.prompts import Prompt, encode_prefixes, question_prompt
from tunalab.model.decoder import hidden_states
from tunalab.model.unified import UnifiedModel


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


@torch.no_grad()
def answer_prompts(
    model: UnifiedModel, prompts: Sequence[Prompt], max_tokens: int, eos: int, batch_tokens: int = 4096
) -> list[list[int]]:
    """As :func:`answer`, from prompts to token ids, without the eos at their end."""
    answers: list[list[int]] = [[] for _ in prompts]
    for numbers in batches([len(prompt.ids_L) for prompt in prompts], batch_tokens):
        found = _answer_batch(model, [prompts[number] for number in numbers], max_tokens, eos)
        for number, ids in zip(numbers, found, strict=True):
            answers[number] = ids
    return answers


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


def _answer_batch(model: UnifiedModel, prompts: Sequence[Prompt], max_tokens: int, eos: int) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    prefixes = encode_prefixes(model, prompts, flow_head=False)
    cache, position_B, last_BD = prefixes.decoder, prefixes.length_B, prefixes.last_BD
    asked = prefixes.prompt_B.tolist()
    for step in range(max_tokens):
        id_B: Tensor = model.decoder.lm_head(last_BD).argmax(dim=-1)
        ids = id_B.tolist()
        going_on = [row for row, token in enumerate(ids) if token != eos]
        for row in going_on:
            answers[asked[row]].append(ids[row])
        if not going_on or step == max_tokens - 1:
            break
        if len(going_on) < len(asked):
            row_B = torch.tensor(going_on, device=id_B.device)
            cache, asked = cache.select(going_on), [asked[row] for row in going_on]
            id_B, position_B = id_B[row_B], position_B[row_B]
        h_B1D = model.decoder.model.embed_tokens(id_B[:, None])
        last_BD = hidden_states(model.decoder, h_B1D, position_B[:, None], cache)[:, 0]
        position_B = position_B + 1
    return answers
