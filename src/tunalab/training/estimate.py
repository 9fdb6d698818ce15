"""What a run would cost, for a dry run: tokens, FLOPs from a sample of its stream, minutes from a stated rate."""

import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tunalab.config import RunConfig
from tunalab.data.stream import open_stream
from tunalab.frontends.components.handle import Components
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.frontends.registry import build_frontend
from tunalab.model.flops import flop_costs

# Model FLOPs a second over a whole run, start and evaluations included, on one core of the machine that results/figure6 names.
CORE_FLOPS = 2.6e10
SAMPLE_STEPS = 4


def estimate(config: RunConfig) -> dict[str, Any]:
    """Variant, mask ratio, seed, tokens, FLOPs and minutes on one core."""
    components = Components(ComponentSettings.seeded(config.components_seed))
    tokenizer = components.tokenizer_for(config.decoder)
    costs = flop_costs(config, tokenizer.vocabulary)
    tokens = sum(stage.tokens for stage in config.stages.values())
    seen = flops = 0.0
    side = config.data.image_size
    with torch.device("meta"):
        token_pixels = build_frontend(config.frontend, config.decoder.width, side).space.token_pixels
    with tempfile.TemporaryDirectory() as folder:
        stream = open_stream(config, tokenizer, token_pixels, Path(folder) / "rejects.jsonl")
        for step in islice(stream, SAMPLE_STEPS):
            seen += step.tokens
            flops += sum(costs.step(batch) for batch in step.batches)
    total = flops / seen * tokens
    return {
        "variant": config.variant,
        "mask ratio": f"{config.objective.masking.ratio:g}",
        "seed": config.seed,
        "image": f"{side} px",
        "tokens": tokens,
        "flops": total,
        "minutes": total / CORE_FLOPS / 60,
    }
