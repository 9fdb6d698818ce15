"""Speed of training and of generation against slow references that compute the same, in the tests and in `tunalab bench`.

Training: documents padded to 512 tokens, logits and flow head everywhere. Generation: whole padded
sequences at every step. Both sides run the same weights on the same input in one process, in turns,
so that a noisy machine troubles both alike.

    D  documents    B  rows    L  padded tokens    n  images of one size    N  images    T  visual tokens    W  width
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tunalab.data.documents import Text
from tunalab.data.packing import PackedBatch
from tunalab.data.scenes import EXAMPLE_LEVELS, ScenesCorpus, SceneSettings
from tunalab.data.stream import open_stream
from tunalab.data.tokenizer import Tokenizer
from tunalab.inference.generation import OFFICIAL_CLAMP, clamps, noise_of, sample, times
from tunalab.inference.prompts import Prompt, image_prompt, visual_tokens
from tunalab.model import flow
from tunalab.model.attention import DenseAttention, Layout
from tunalab.model.decoder import hidden_states
from tunalab.model.flow_head import rotary_tables
from tunalab.model.objective import Draws, SumCount, draw, flow_loss, losses, noised, to_space
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import ObjectiveConfig, RunConfig, SamplingConfig


def dense_losses(
    model: UnifiedModel, batch: PackedBatch, draws: Draws, objective: ObjectiveConfig, padded: int, pad: int
) -> dict[str, SumCount]:
    """The losses of ``model.objective.losses``, computed the obvious way: a row a document, ``padded`` tokens each."""
    x = to_space(model, batch, draws.posterior_nChw)
    x_t = noised(batch, x, draws.noise_nChw, draws.t_N, objective.noise_scale)
    D = len(batch.start_D)
    ids_DL = torch.full((D, padded), pad)
    label_DL = torch.full((D, padded), -100)
    document_DL, span_DL, patch_DL = (torch.full((D, padded), -1) for _ in range(3))
    columns_DL = torch.ones((D, padded), dtype=torch.int64)
    label_flat = torch.full((batch.ids_BL.numel(),), -100)
    label_flat[batch.logit_K] = batch.label_K
    columns_N = [model.grid(x)[1] for group, x in zip(batch.groups, x_t, strict=True) for _ in range(len(group))]
    slots: dict[int, Tensor] = {}
    for d, (start, length) in enumerate(zip(batch.start_D.tolist(), batch.length_D.tolist(), strict=True)):
        ids_DL[d, :length] = batch.ids_BL.flatten()[start : start + length]
        label_DL[d, :length] = label_flat[start : start + length]
        document_DL[d, :length] = d
        span_DL[d, :length] = batch.span_BL.flatten()[start : start + length]
        for n in span_DL[d].unique().tolist():
            if n >= 0:
                at = (span_DL[d] == n).nonzero().squeeze(1)
                patch_DL[d, at] = torch.arange(-1, len(at) - 1)
                columns_DL[d, at] = columns_N[n]
                slots[n] = d * padded + at
    time_NW = model.time(draws.t_N)
    numbers = iter(range(len(slots)))
    slots_n1T = [torch.stack([slots[n] for n in islice(numbers, len(group))]) for group in batch.groups]
    h = model.embed(ids_DL, slots_n1T, x_t, batch.by_group(time_NW), draws.mask_nT)
    position_DL = torch.arange(padded).expand(D, padded)
    backend = DenseAttention(Layout(document_DL, span_DL, torch.arange(D) * padded, batch.length_D))
    h = hidden_states(model.decoder, h, position_DL, backend)
    logits = model.decoder.lm_head(h)
    text = F.cross_entropy(logits.flatten(0, 1).float(), label_DL.flatten(), ignore_index=-100, reduction="sum")
    rotary = rotary_tables(position_DL, span_DL >= 0, patch_DL, columns_DL, model.head.head_dim)
    h = model.head(h, time_NW, span_DL, rotary, backend).flatten(0, 1)
    by_group = (batch.by_group(values) for values in (batch.generate_N, time_NW))
    prediction = [
        model.to_image(model.head.predict(h[at_n1T[generate_n, 1:]], time_nW[generate_n]), model.grid(x))
        for at_n1T, x, generate_n, time_nW in zip(slots_n1T, x_t, *by_group, strict=True)
    ]
    return {
        "text": SumCount(text, len(batch.label_K)),
        "flow": flow_loss(prediction, x, batch, draws, objective),
    }


def bench_training(
    model: UnifiedModel, config: RunConfig, tokenizer: Tokenizer, repeats: int = 5, padded: int = 512
) -> dict[str, Any]:
    """Median seconds of a training step (forward, backward, clip, AdamW; not the data) of both, and their ratio."""
    batches = sample_batches(config, tokenizer, repeats + 1, model)
    ratios, seconds, agreement, token_ratios = [], {"ours": [0.0], "reference": [0.0]}, 0.0, []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)  # lr 0: the same weights in every turn
    for number, batch in enumerate(batches):
        draws = draw(batch, config.objective, config.seed, model.frontend.space, masking=True)
        fast = partial(losses, model, batch, draws, config.objective)
        slow = partial(dense_losses, model, batch, draws, config.objective, padded, tokenizer.pad)
        ours, our_loss = _step(model, optimizer, fast)
        reference, reference_loss = _step(model, optimizer, slow)
        agreement = max(agreement, *(abs(our_loss[k] - reference_loss[k]) / abs(reference_loss[k]) for k in our_loss))
        if number:  # the first turn warms up
            ratios.append(reference / ours)
            seconds["ours"].append(ours)
            seconds["reference"].append(reference)
            token_ratios.append(padded * len(batch.start_D) / batch.tokens)
    images = statistics.mean(len(batch.generate_N) for batch in batches[1:])
    speedup, bound = statistics.median(ratios), statistics.median(token_ratios)
    return {
        "speedup": speedup,
        "padded_to_real_tokens": bound,
        "share_of_token_ratio": speedup / bound,
        "required_share": 0.95,
        "images_per_second": images / statistics.median(seconds["ours"][1:]),
        "reference_images_per_second": images / statistics.median(seconds["reference"][1:]),
        "largest_relative_loss_difference": agreement,
        "repeats": repeats,
    }


def sample_batches(config: RunConfig, tokenizer: Tokenizer, count: int, model: UnifiedModel) -> list[PackedBatch]:
    """The first packed batches of the run's own stream."""
    with tempfile.TemporaryDirectory() as folder:
        stream = open_stream(config, tokenizer, model.frontend.space.token_pixels, Path(folder) / "rejects.jsonl")
        return [step.batches[0] for step in islice(stream, count)]


def _step(
    model: UnifiedModel, optimizer: torch.optim.Optimizer, compute: Callable[[], dict[str, SumCount]]
) -> tuple[float, dict[str, float]]:
    began = time.perf_counter()
    parts = compute()
    loss = sum((part.sum / max(part.count, 1) for part in parts.values()), torch.zeros(()))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - began, {name: (part.sum / max(part.count, 1)).item() for name, part in parts.items()}


@torch.no_grad()
def reference_answer(model: UnifiedModel, prompt: Prompt, max_tokens: int) -> list[int]:
    """Greedy ids, also beyond eos: one full forward pass a token."""
    ids = prompt.ids_L.tolist()
    for _ in range(max_tokens):
        hidden_LD = _run(model, [ids], [prompt], len(ids), None, None)[0]
        ids.append(int(model.decoder.lm_head(hidden_LD[-1]).argmax()))
    return ids[len(prompt.ids_L) :]


@torch.no_grad()
def reference_likelihood(model: UnifiedModel, prompt: Prompt, option: Sequence[int]) -> float:
    """Log-likelihood of the tokens behind a prompt, in nats: one full forward pass a token."""
    ids, found = prompt.ids_L.tolist(), 0.0
    for token in option:
        hidden_LD = _run(model, [ids], [prompt], len(ids), None, None)[0]
        found += float(model.decoder.lm_head(hidden_LD[-1]).log_softmax(-1)[token])
        ids.append(token)
    return found


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
    lengths_B = torch.tensor([len(row) for row in rows])
    backend = DenseAttention(Layout(document_BL, span_BL, torch.arange(B) * padded, lengths_B))
    h_BLD = hidden_states(model.decoder, h_BLD, position_BL, backend)
    if x_NChw is None:
        return h_BLD
    rotary = rotary_tables(position_BL, span_BL >= 0, patch_BL, columns_BL, model.head.head_dim)
    return model.head(h_BLD, torch.stack(times), span_BL, rotary, backend)


def bench_generation(
    model: UnifiedModel, config: RunConfig, tokenizer: Tokenizer, images: int = 8, repeats: int = 3, padded: int = 512
) -> dict[str, Any]:
    """Seconds an image of both, in turns, over the same prompts and noise; median ratio; largest difference of the images."""
    settings = SceneSettings(config.data.image_size, EXAMPLE_LEVELS, config.data.questions_per_image, seed=0, placement="grid")
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
