"""Speed of image generation against the slow reference, which runs whole padded sequences at every step.

What the fast code is compared with, in the tests and in the benchmark.

Shapes: B rows, L tokens of a padded row, N images, T visual tokens, D width.
"""

import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunalab.data.documents import Text
from tunalab.data.scenes import EXAMPLE_LEVELS, ScenesCorpus, SceneSettings
from tunalab.data.tokenizer import Tokenizer
from tunalab.inference.generation import OFFICIAL_CLAMP, clamps, noise_of, sample, times
from tunalab.inference.prompts import Prompt, image_prompt, visual_tokens
from tunalab.model import flow
from tunalab.model.attention import DenseAttention, Layout
from tunalab.model.decoder import hidden_states
from tunalab.model.flow_head import rotary_tables
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import ObjectiveConfig, RunConfig, SamplingConfig


@torch.no_grad()
def reference_answer(model: UnifiedModel, prompt: Prompt, max_tokens: int) -> list[int]:
    """Greedy ids, also beyond eos: one full forward pass a token."""
    ids = prompt.ids_L.tolist()
    for _ in range(max_tokens):
        hidden_LD = _run(model, [ids], [prompt], len(ids), None, None)[0]
        ids.append(int(model.decoder.lm_head(hidden_LD[-1]).argmax()))
    return ids[len(prompt.ids_L) :]


@torch.no_grad()
def reference_sample(
    model: UnifiedModel,
    prompts: Sequence[Prompt],
    unconditional: Sequence[Prompt],
    noise_NChw: Tensor,
    sampling: SamplingConfig,
    objective: ObjectiveConfig,
    padded: int,
    pad: int = 0,
) -> Tensor:
    """x (N, C, h, w). Both branches of guidance whatever its value, rows of ``padded`` tokens, the head on all of them."""
    T = model.grid(noise_NChw)[0] * model.grid(noise_NChw)[1]

    def velocity(x: Tensor, t: float) -> Tensor:
        predictions = []
        for branch in (prompts, unconditional):
            rows = [prompt.ids_L.tolist() + [pad] * (1 + T) for prompt in branch]
            hidden_BLD = _run(model, rows, branch, padded, x, t)
            first = [len(prompt.ids_L) + 1 for prompt in branch]
            span_NTD = torch.stack([hidden_BLD[n, at : at + T] for n, at in enumerate(first)])
            tokens_NTP = model.head.predict(span_NTD, model.time(torch.full((len(x),), t)))
            predictions.append(model.to_image(tokens_NTP, model.grid(x)))
        conditional, plain = predictions
        guided = plain + sampling.guidance * (conditional - plain)
        return flow.velocity(guided, x, torch.full((len(x),), t), objective.prediction, OFFICIAL_CLAMP if clamps(sampling) else 0)

    x = objective.noise_scale * noise_NChw
    grid = times(sampling)
    for t, t_next in pairwise(grid):
        v = velocity(x, t)
        if sampling.method == "heun" and t_next < grid[-1]:
            v = (v + velocity(x + (t_next - t) * v, t_next)) / 2
        x = x + (t_next - t) * v
    return x


def _run(
    model: UnifiedModel,
    rows: list[list[int]],
    prompts: Sequence[Prompt],
    padded: int,
    x_NChw: Tensor | None,
    t: float | None,
) -> Tensor:
    """Hidden states (B, L, D) of rows padded to ``padded`` tokens: the decoder's, or, where x_t follows, the head's."""
    B = len(rows)
    ids_BL = torch.zeros((B, padded), dtype=torch.int64)
    document_BL = torch.full((B, padded), -1)
    span_BL, patch_BL = torch.full((B, padded), -1), torch.full((B, padded), -1)
    columns_BL = torch.ones((B, padded), dtype=torch.int64)
    h_BLD = model.decoder.model.embed_tokens(ids_BL).clone()
    times = []
    for b, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids_BL[b, : len(row)] = torch.tensor(row)
        document_BL[b, : len(row)] = b
        h_BLD[b, : len(row)] = model.decoder.model.embed_tokens(ids_BL[b, : len(row)])
        images: list[tuple[int, Tensor, int, float]] = []
        for span in prompt.spans:
            visual_1TD, columns = visual_tokens(model, [np.asarray(span.pixels_HWC)])
            images.append((span.offset, visual_1TD[0], columns, 1.0))
        if x_NChw is not None and t is not None:
            rows_of_image, columns = model.grid(x_NChw)
            visual_TD = model.visual(x_NChw[b : b + 1], torch.zeros((1, rows_of_image * columns), dtype=torch.bool))[0]
            images.append((len(prompt.ids_L), visual_TD, columns, t))
        for offset, visual_TD, columns, moment in images:
            slots = slice(offset, offset + 1 + len(visual_TD))
            times.append(model.time(torch.tensor([moment]))[0])
            h_BLD[b, slots] = torch.cat([times[-1][None], visual_TD])
            span_BL[b, slots] = len(times) - 1
            patch_BL[b, slots] = torch.arange(-1, len(visual_TD))
            columns_BL[b, slots] = columns
    position_BL = torch.arange(padded).expand(B, padded)
    length = torch.tensor([len(row) for row in rows])
    backend = DenseAttention(Layout(document_BL, span_BL, torch.arange(B) * padded, length))
    h_BLD = hidden_states(model.decoder, h_BLD, position_BL, backend)
    if x_NChw is None:
        return h_BLD
    rotary = rotary_tables(position_BL, span_BL >= 0, patch_BL, columns_BL, model.head.head_dim)
    return model.head(h_BLD, torch.stack(times), span_BL, rotary, backend)


def bench_generation(
    model: UnifiedModel, config: RunConfig, tokenizer: Tokenizer, images: int = 8, repeats: int = 3, padded: int = 512
) -> dict[str, Any]:
    """Seconds an image of both, in turns, over the same prompts and noise; median ratio; largest difference of the images."""
    settings = SceneSettings(config.data.image_size, EXAMPLE_LEVELS, config.data.questions_per_image, seed=0)
    corpus = ScenesCorpus("text_to_image", "test", settings)
    space = model.frontend.space
    texts = [s.text for n in range(images) for s in corpus.document(n).segments if isinstance(s, Text)]
    prompts = [image_prompt(tokenizer, space, text) for text in texts]
    plain = [image_prompt(tokenizer, space, "")] * images
    side = config.data.image_size // space.stride
    noise = noise_of(range(images), (space.channels, side, side))
    ours, reference, difference = [], [], 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        fast = sample(model, prompts, plain, noise, config.sampling, config.objective)
        ours.append((time.perf_counter() - began) / images)
        began = time.perf_counter()
        slow = reference_sample(model, prompts, plain, noise, config.sampling, config.objective, padded, tokenizer.pad)
        reference.append((time.perf_counter() - began) / images)
        difference = max(difference, (fast - slow).abs().max().item())
    return {
        "speedup": statistics.median(slow / fast for fast, slow in zip(ours, reference, strict=True)),
        "required_speedup": 10.0,
        "seconds_per_image": statistics.median(ours),
        "reference_seconds_per_image": statistics.median(reference),
        "largest_pixel_difference": difference,
        "images": images,
        "tokens_per_image": (side // space.patch) ** 2,
        "sampler": f"{config.sampling.method}, {config.sampling.steps} steps, guidance {config.sampling.guidance}",
        "repeats": repeats,
    }


def randomise_zero_layers(model: UnifiedModel) -> None:
    """Draw the layers that start at zero: an untrained model predicts 0 everywhere, and equality would prove nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
