"""What a run would cost on one core, for a dry run: tokens, FLOPs from a sample of its stream, minutes from a stated rate."""

from typing import Any

import torch

from tunalab.config import RunConfig, budget
from tunalab.frontends.components.handle import Components
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.model.build import build_model
from tunalab.model.flops import image_sizes, model_costs
from tunalab.planning.workload import sampled

# Model FLOPs a second over a whole run, start and evaluations included, on one core of the machine that results/figure6 names.
CORE_FLOPS = 2.6e10


def estimate(config: RunConfig) -> dict[str, Any]:
    """Variant, mask ratio, seed, tokens, FLOPs and minutes on one core; the first stage's documents stand for all."""
    components = Components(ComponentSettings.seeded(config.components_seed))
    tokenizer = components.tokenizer_for(config.decoder)
    with torch.device("meta"):
        model = build_model(config, components, tokenizer.vocabulary)
    costs = model_costs(model, image_sizes(config.data))
    first = next(name for name, stage in config.stages.items() if stage.tokens)
    work = sampled(config, first, tokenizer, model.frontend.space.token_pixels)
    tokens = budget(config)
    total = sum(costs.parts(work.per_token).values()) * tokens
    return {
        "variant": config.variant,
        "mask ratio": f"{config.objective.masking.ratio:g}",
        "seed": config.seed,
        "image": f"{config.data.image_size} px",
        "tokens": tokens,
        "flops": total,
        "minutes": total / CORE_FLOPS / 60,
    }
