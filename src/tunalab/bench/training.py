"""Training speed against the dense reference: documents padded to 512 tokens, logits and flow head everywhere.

Both run the same weights on the same documents in one process, in turns, so that a noisy machine
troubles both alike.

Shapes: D documents, L padded tokens, n images of one size, T visual tokens, W width.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tunalab.data.buckets import Size
from tunalab.data.documents import Document, Image, Kind, Text
from tunalab.data.packing import PackedBatch
from tunalab.data.stream import open_stream
from tunalab.data.tokenizer import Tokenizer
from tunalab.model.attention import DenseAttention, Layout
from tunalab.model.decoder import hidden_states
from tunalab.model.flow_head import rotary_tables
from tunalab.model.objective import Draws, SumCount, draw, flow_loss, losses, noised, to_space
from tunalab.model.unified import UnifiedModel
from tunalab.planning.workload import ASSUMED
from tunalab.settings.schema import ObjectiveConfig, RunConfig


class AssumedCorpus:
    """Endless documents of one kind. Text varies by half about the assumed length, images take the ``sizes`` at random."""

    length = None

    def __init__(self, name: str, kind: Kind, sizes: list[Size]) -> None:
        self.name = name
        self.kind = kind
        self.sizes = sizes

    def document(self, index: int) -> Document:
        rng = np.random.default_rng([*self.name.encode(), index])
        shape = ASSUMED[self.kind]
        # Not counted in a text of so many tokens: bos, and the eos that is predicted or closes a document without answer.
        asked = shape.text - 1 - (shape.labels or 1)

        def image(generate: bool = False) -> Image:
            height, width = self.sizes[rng.integers(len(self.sizes))]
            return Image(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), generate)

        def text(tokens: float, target: bool = False) -> list[Text]:
            digits = round(tokens * rng.uniform(0.5, 1.5))  # each is one token (data/tokenizer.py)
            return [Text("".join(map(str, rng.integers(0, 10, digits))), target)] if digits else []

        segments = [image() for _ in range(shape.looked_at)] + text(asked)
        segments += text(shape.labels - 1, target=True) if shape.labels else []
        return Document(self.kind, (*segments, *(image(generate=True) for _ in range(shape.generated))))


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
    known = (batch.by_group(values) for values in (batch.generate_N, time_NW))
    prediction = [
        model.to_image(model.head.predict(h[at_n1T[generate_n, 1:]], time_nW[generate_n]), model.grid(x))
        for at_n1T, x, generate_n, time_nW in zip(slots_n1T, x_t, *known, strict=True)
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
