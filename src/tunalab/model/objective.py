"""The training objective, equal for every front-end: what is drawn for a batch, and its losses as (sum, count).

At full scale a row's logits (labels x vocabulary in float32, with their gradients) would be the largest tensors of
a step. Beyond CHUNK labels they are made, used and forgotten a chunk at a time, and made once more in the backward
pass; with ``fused_text_loss`` the kernels of Liger turn each chunk into its gradient at once.

Shapes: N images; n images of one size (a group of the batch), m generating ones among them, T visual tokens, C h w of
the target space; M generating images, K labelled tokens, D width, V vocabulary. Lists hold one tensor per group.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunalab.data.packing import PackedBatch
from tunalab.errors import UserError
from tunalab.frontends.contract import TargetSpace, signed
from tunalab.model import flow
from tunalab.model.masking import choose_mask
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import ObjectiveConfig

# Labels whose logits are alive at a time. Under autocast the chunks' gradients of the table are added up in bfloat16, which rounds
# more the more there are: 0.24% with one, 0.43% with eight (a long row of text).
CHUNK = 2048


def text_loss(table: nn.Linear, h_KD: Tensor, label_K: Tensor, chunk: int = CHUNK) -> Tensor:
    """Nats, summed over labels. ``table``: the decoder's output layer, D to V."""
    if len(label_K) <= chunk:
        return _summed(table, h_KD, label_K)
    sums = [
        checkpoint(_summed, table, h, label, use_reentrant=False, preserve_rng_state=False)
        for h, label in zip(h_KD.split(chunk), label_K.split(chunk), strict=True)
    ]
    return torch.stack(sums).sum()


def fused_text_loss(table: nn.Linear, h_KD: Tensor, label_K: Tensor) -> Tensor:
    """The same by Liger's kernels, which compute gradients together with the loss: logits are made once, at most about twice as
    many numbers as ``h_KD`` holds at a time. The table's gradient, added up in the table's own precision (float32 in training),
    waits from then on for the backward pass.

    Raises UserError: Liger is not installed, or there is no CUDA device (:func:`check_fused_text_loss`).
    """
    if len(label_K) == 0:  # of which the kernels would make chunks
        return _summed(table, h_KD, label_K)
    check_fused_text_loss()
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    loss: Tensor = LigerFusedLinearCrossEntropyLoss(reduction="sum")(table.weight, h_KD, label_K)
    return loss


def check_fused_text_loss() -> None:
    """Raises UserError where :func:`fused_text_loss` cannot run. Triton's interpreter, which tests use, needs no device."""
    if find_spec("liger_kernel") is None:
        raise UserError("fused_text_loss=true needs Liger's kernels: pip install 'tunalab[gpu]'")
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(
            "fused_text_loss=true needs a CUDA device, and there is none (the same loss without: fused_text_loss=false)"
        )


def _summed(table: nn.Linear, h_KD: Tensor, label_K: Tensor) -> Tensor:
    return F.cross_entropy(table(h_KD).float(), label_K, reduction="sum")


@dataclass(eq=False)
class Draws:
    """``t_N`` time of every image (1: clean), ``mask_nT`` masked visual tokens, ``noise_nChw`` standard normal, and so is
    ``posterior_nChw``, which chooses x where a front-end has many of an image.
    """

    t_N: Tensor
    mask_nT: list[Tensor]
    noise_nChw: list[Tensor]
    posterior_nChw: list[Tensor] | None = None


@dataclass(frozen=True, eq=False)
class SumCount:
    """A loss before its division, so that it can be averaged over accumulated and distributed batches; an empty set counts 0."""

    sum: Tensor
    count: int


def loss_counts(batch: PackedBatch) -> dict[str, int]:
    """What the losses of a batch will be divided by, known before any forward pass."""
    generating = zip(batch.groups, batch.by_group(batch.generate_N), strict=True)
    return {"text": len(batch.label_K), "flow": sum(int(generate_n.sum()) * group.tokens for group, generate_n in generating)}


def draw(
    batch: PackedBatch, objective: ObjectiveConfig, seed: int, space: TargetSpace, masking: bool, posterior: bool = False
) -> Draws:
    """Times, masks, noise and, with ``posterior``, what chooses x as a function of (seed, an image's place in the stream) alone.

    So they do not depend on how documents were batched, and times and masks not on the front-end either: those are drawn before
    the noise, whose shape differs between target spaces, and the noise before what chooses x.
    Raises UserError for an image that the space does not cut exactly.
    """
    device = batch.key_N.device
    generator = torch.Generator(device=device)
    N = len(batch.generate_N)
    normal_N = torch.empty(N, device=device)
    uniform_N4 = torch.empty((N, 4), device=device)
    scores_nT, noise_nChw, posterior_nChw = [], [], []
    keys = enumerate(batch.key_N.tolist())
    for group in batch.groups:
        rows, columns = space.grid(*group.size)
        scores = torch.empty((len(group), group.tokens), device=device)
        noise = torch.empty((len(group), space.channels, rows * space.patch, columns * space.patch), device=device)
        choice = torch.empty_like(noise) if posterior else noise[:0]
        for i, (n, key) in enumerate(islice(keys, len(group))):
            # Multiplying by a large odd number spreads neighbouring (seed, key) over the generator's 64-bit seed space.
            generator.manual_seed((seed * 0x9E3779B97F4A7C15 + key * 0xBF58476D1CE4E5B9) % 2**63)
            normal_N[n : n + 1].normal_(generator=generator)
            uniform_N4[n].uniform_(generator=generator)
            scores[i].uniform_(generator=generator)
            noise[i].normal_(generator=generator)
            if posterior:
                choice[i].normal_(generator=generator)
        scores_nT.append(scores)
        noise_nChw.append(noise)
        posterior_nChw.append(choice)
    noisy_N = uniform_N4[:, 0] < objective.understanding_noise
    source_N = source_images(batch)
    looked_at_N = 1 - torch.where(noisy_N & ~source_N, 0.1 * uniform_N4[:, 1], torch.zeros_like(normal_N))
    tokens_N = torch.tensor([group.tokens for group in batch.groups for _ in range(len(group))], device=device)
    t_N = torch.where(batch.generate_N, flow.sample_time(normal_N, tokens_N, objective), looked_at_N)
    chosen = posterior_nChw if posterior else None
    if not masking:
        return Draws(t_N, [torch.zeros_like(scores, dtype=torch.bool) for scores in scores_nT], noise_nChw, chosen)
    by_group = (batch.by_group(values) for values in (uniform_N4[:, 2:], batch.generate_N, source_N))
    masks = [
        choose_mask(uniform_n2, scores, generate_n, source_n, objective.masking)
        for scores, uniform_n2, generate_n, source_n in zip(scores_nT, *by_group, strict=True)
    ]
    return Draws(t_N, masks, noise_nChw, chosen)


def source_images(batch: PackedBatch) -> Tensor:
    """Which images are the source of an edit, (N,) bool: looked at, in a document that generates another.

    What an edit keeps can only be copied from a source that is clean and whole.
    """
    document_N = batch.document_of_images()
    return ~batch.generate_N & torch.isin(document_N, document_N[batch.generate_N])


def to_space(model: UnifiedModel, batch: PackedBatch, posterior_nChw: list[Tensor] | None = None) -> list[Tensor]:
    """The batch's images in the target space: uint8 (n, H, W, 3) to x (n, C, h, w), float32 also where the model computes in less:
    what x loses here no loss could tell. ``posterior_nChw``: of the draws of training.
    """
    chosen: Sequence[Tensor | None] = posterior_nChw or [None] * len(batch.groups)
    with torch.autocast(batch.key_N.device.type, enabled=False):
        return [
            model.frontend.to_space(signed(group.pixels_nHWC.permute(0, 3, 1, 2)), choice)
            for group, choice in zip(batch.groups, chosen, strict=True)
        ]


def noised(batch: PackedBatch, x_nChw: list[Tensor], noise_nChw: list[Tensor], t_N: Tensor, noise_scale: float) -> list[Tensor]:
    """x_t of every image at its time."""
    return [
        flow.interpolate(x, noise, t_n, noise_scale) for x, noise, t_n in zip(x_nChw, noise_nChw, batch.by_group(t_N), strict=True)
    ]


def losses(
    model: UnifiedModel, batch: PackedBatch, draws: Draws, objective: ObjectiveConfig, x_nChw: list[Tensor] | None = None
) -> dict[str, SumCount]:
    """``text``: cross-entropy over labelled tokens. ``flow``: squared error of the velocity, averaged within each visual token
    and summed over the visual tokens of generating images.

    ``x_nChw`` may be given when it is there already (:func:`to_space`).
    """
    x = to_space(model, batch, draws.posterior_nChw) if x_nChw is None else x_nChw
    x_t = noised(batch, x, draws.noise_nChw, draws.t_N, objective.noise_scale)
    output = model(batch, x_t, draws.t_N, draws.mask_nT)
    text = (fused_text_loss if model.fused_text_loss else text_loss)(output.table, output.hidden_KD, batch.label_K)
    return {
        "text": SumCount(text, len(batch.label_K)),
        "flow": flow_loss(output.prediction_mChw, x, batch, draws, objective),
    }


def flow_loss(
    prediction_mChw: list[Tensor],
    x_nChw: list[Tensor],
    batch: PackedBatch,
    draws: Draws,
    objective: ObjectiveConfig,
    chosen_N: Tensor | None = None,
) -> SumCount:
    """Masked and unmasked positions weigh the same, and so do the tokens of small and large images.

    ``chosen_N``: count these of the generating images alone, (N,) bool.
    """
    chosen = batch.generate_N if chosen_N is None else batch.generate_N & chosen_N
    total, count = torch.zeros((), device=batch.generate_N.device), 0
    by_group = (batch.by_group(values) for values in (batch.generate_N, chosen, draws.t_N))
    for group, prediction, x, noise, generate_n, chosen_n, t_n in zip(
        batch.groups, prediction_mChw, x_nChw, draws.noise_nChw, *by_group, strict=True
    ):
        t = t_n[chosen_n]
        goal = flow.target(x[chosen_n], noise[chosen_n], objective.prediction, objective.noise_scale)
        counted = prediction if chosen_N is None else prediction[chosen_n[generate_n]]
        error = (counted - goal).square().flatten(1).mean(1) if len(t) else t
        weight = flow.loss_weight(t, objective.prediction, objective.min_one_minus_t)
        total = total + (error * weight).sum() * group.tokens + 0 * prediction.sum()
        count += len(t) * group.tokens
    return SumCount(total, count)
