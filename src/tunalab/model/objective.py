"""The training objective, equal for every front-end: what is drawn for a batch, and its losses as (sum, count).

Shapes: B rows, L tokens, N images, M generating images, T visual tokens, K labelled tokens, C h w of the target space.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tunalab.config import ObjectiveConfig
from tunalab.data.packing import PackedBatch
from tunalab.model import flow
from tunalab.model.masking import choose_mask
from tunalab.model.unified import UnifiedModel


@dataclass(eq=False)
class Draws:
    """``t_N`` time of every image (1: clean), ``mask_NT`` masked visual tokens, ``noise_NChw`` standard normal."""

    t_N: Tensor
    mask_NT: Tensor
    noise_NChw: Tensor


@dataclass(frozen=True, eq=False)
class SumCount:
    """A loss before its division, so that it can be averaged over accumulated and distributed batches; an empty set counts 0."""

    sum: Tensor
    count: int


def loss_counts(batch: PackedBatch) -> dict[str, int]:
    """What the losses of a batch will be divided by, known before any forward pass."""
    return {"text": len(batch.label_K), "flow": int(batch.generate_N.sum()) * (batch.span_N_1T.shape[1] - 1)}


def draw(batch: PackedBatch, objective: ObjectiveConfig, seed: int, tokens: int, shape: tuple[int, ...], masking: bool) -> Draws:
    """Times, masks and noise as a function of (seed, an image's place in the stream) alone.

    So they do not depend on how documents were batched, and times and masks not on the front-end either: those are drawn before
    the noise, whose ``shape`` (C, h, w) differs between target spaces.
    """
    device = batch.pixels_NHWC.device
    generator = torch.Generator(device=device)
    N = len(batch.generate_N)
    normal_N = torch.empty(N, device=device)
    uniform_N4 = torch.empty((N, 4), device=device)
    scores_NT = torch.empty((N, tokens), device=device)
    noise = torch.empty((N, *shape), device=device)
    for n, key in enumerate(batch.key_N.tolist()):
        # Multiplying by a large odd number spreads neighbouring (seed, key) over the generator's 64-bit seed space.
        generator.manual_seed((seed * 0x9E3779B97F4A7C15 + key * 0xBF58476D1CE4E5B9) % 2**63)
        normal_N[n : n + 1].normal_(generator=generator)
        uniform_N4[n].uniform_(generator=generator)
        scores_NT[n].uniform_(generator=generator)
        noise[n].normal_(generator=generator)
    noisy_N = uniform_N4[:, 0] < objective.understanding_noise
    source_N = source_images(batch)
    looked_at_N = 1 - torch.where(noisy_N & ~source_N, 0.1 * uniform_N4[:, 1], torch.zeros_like(normal_N))
    t_N = torch.where(batch.generate_N, flow.sample_time(normal_N, objective), looked_at_N)
    mask_NT = torch.zeros_like(scores_NT, dtype=torch.bool)
    if masking:
        mask_NT = choose_mask(uniform_N4[:, 2:], scores_NT, batch.generate_N, source_N, objective.masking)
    return Draws(t_N, mask_NT, noise)


def source_images(batch: PackedBatch) -> Tensor:
    """Which images are the source of an edit, (N,) bool: looked at, in a document that generates another.

    What an edit keeps can only be copied from a source that is clean and whole.
    """
    document_N = batch.document_BL.flatten()[batch.span_N_1T[:, 0]]
    return ~batch.generate_N & torch.isin(document_N, document_N[batch.generate_N])


def to_space(model: UnifiedModel, batch: PackedBatch) -> Tensor:
    """The batch's images in the target space: uint8 (N, H, W, 3) to x (N, C, h, w)."""
    if not len(batch.generate_N):
        return batch.pixels_NHWC.new_zeros((0, *space_shape(model, batch)[0]), dtype=torch.float32)
    return model.frontend.to_space(batch.pixels_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1)


def space_shape(model: UnifiedModel, batch: PackedBatch) -> tuple[tuple[int, ...], int]:
    """(C, h, w) of the batch's images in the target space, and their number of visual tokens."""
    space = model.frontend.space
    if not len(batch.generate_N):  # a batch of text alone has no image size
        return (space.channels, 0, 0), 0
    height, width = batch.pixels_NHWC.shape[1:3]
    rows, columns = space.grid(height, width)
    return (space.channels, height // space.stride, width // space.stride), rows * columns


def losses(
    model: UnifiedModel, batch: PackedBatch, draws: Draws, objective: ObjectiveConfig, x_NChw: Tensor | None = None
) -> dict[str, SumCount]:
    """``text``: cross-entropy over labelled tokens. ``flow``: squared error of the velocity, averaged within each visual token
    and summed over the visual tokens of generating images.

    ``x_NChw`` may be given when it is already known (:func:`to_space`).
    """
    x = to_space(model, batch) if x_NChw is None else x_NChw
    x_t = flow.interpolate(x, draws.noise_NChw, draws.t_N, objective.noise_scale)
    output = model(batch, x_t, draws.t_N, draws.mask_NT)
    text = F.cross_entropy(output.logits_KV.float(), batch.label_K, reduction="sum")
    return {
        "text": SumCount(text, len(batch.label_K)),
        "flow": flow_loss(output.prediction_MChw, x, draws, batch.generate_N, objective, draws.mask_NT.shape[1]),
    }


def flow_loss(
    prediction_MChw: Tensor, x_NChw: Tensor, draws: Draws, generate_N: Tensor, objective: ObjectiveConfig, tokens: int
) -> SumCount:
    """Masked and unmasked positions weigh the same."""
    t_M = draws.t_N[generate_N]
    goal = flow.target(x_NChw[generate_N], draws.noise_NChw[generate_N], objective.prediction, objective.noise_scale)
    error_M = (prediction_MChw.float() - goal).square().flatten(1).mean(1) if len(t_M) else t_M
    weight_M = flow.loss_weight(t_M, objective.prediction, objective.min_one_minus_t)
    return SumCount((error_M * weight_M).sum() * tokens + 0 * prediction_MChw.sum(), len(t_M) * tokens)
