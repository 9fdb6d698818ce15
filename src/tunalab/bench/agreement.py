"""The losses and gradients of a device's fast path, against the plainest one: dense attention in float32 on the CPU."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from tunalab.bench.generation import randomise_zero_layers
from tunalab.bench.step import assumed_steps, small_tokenizer
from tunalab.config import RunConfig
from tunalab.data.packing import PackedBatch
from tunalab.model.build import build_model
from tunalab.model.objective import Draws, draw, losses
from tunalab.model.unified import UnifiedModel
from tunalab.training.blocks import prepare_blocks


def bench_agreement(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Relative differences of each loss, and of all gradients together, on one batch with the same weights and draws.

    ``config`` says how the fast path computes: attention, precision, recomputed and compiled blocks.
    """
    tokenizer = small_tokenizer()
    model = build_model(config, None, tokenizer.vocabulary)
    randomise_zero_layers(model)
    model.train()
    step = assumed_steps(config, tokenizer, 1, model.frontend.space.token_pixels)[0]
    batch = step.mine.batches[0]
    draws = draw(batch, config.objective, config.seed, model.frontend.space, masking=True)
    model.attention = "dense"
    expected, expected_gradient = _run(model, batch, draws, config, bf16=False)
    model.attention = config.attention
    model.to(device)
    prepare_blocks(model, config.activation_checkpointing, config.compile_blocks)
    found, gradient = _run(model, batch.to(device), moved(draws, device), config, config.precision == "bf16")
    return {
        "relative_loss_difference": {name: abs(found[name] / expected[name] - 1) for name in expected},
        "relative_gradient_difference": ((gradient - expected_gradient).norm() / expected_gradient.norm()).item(),
        "losses": found,
        "reference_losses": expected,
        "tokens": batch.tokens,
    }


def _run(model: UnifiedModel, batch: PackedBatch, draws: Draws, config: RunConfig, bf16: bool) -> tuple[dict[str, float], Tensor]:
    """Losses a token or visual token, and the gradient of their sum over all parameters, on the CPU."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(batch.ids_BL.device.type, torch.bfloat16) if bf16 else nullcontext():
        means = {name: part.sum / part.count for name, part in losses(model, batch, draws, config.objective).items()}
        torch.stack(list(means.values())).sum().backward()
    gradient = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
    return {name: mean.item() for name, mean in means.items()}, gradient


def moved(draws: Draws, device: torch.device) -> Draws:
    """To be the same on every device, draws are made on one: each has a generator of its own."""
    return Draws(
        draws.t_N.to(device), [mask.to(device) for mask in draws.mask_nT], [noise.to(device) for noise in draws.noise_nChw]
    )
