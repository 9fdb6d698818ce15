"""`tunalab plan`: parameters, FLOPs, memory and days of a run, from its settings alone."""

from dataclasses import dataclass

import torch

from tunalab.config import RunConfig
from tunalab.data.accumulation import micro_batches
from tunalab.data.buckets import Buckets
from tunalab.errors import UserError
from tunalab.frontends.components.cache import folder_of, is_built
from tunalab.frontends.components.handle import Components
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.model.build import build_model
from tunalab.model.flops import image_sizes, model_costs
from tunalab.model.unified import UnifiedModel
from tunalab.planning import parameters
from tunalab.planning.activations import trace
from tunalab.planning.hardware import Gpu
from tunalab.planning.memory import Memory, Sharding, memory
from tunalab.planning.parameters import Count, Totals
from tunalab.planning.workload import kinds_of, needs_no_files, row_share, workload
from tunalab.training.blocks import blocks

DAY = 86400.0


@dataclass(frozen=True)
class StagePlan:
    """``flops_per_token``: forward and backward, by part, averaged over the tokens of the stage's mix; ``trained``: parameters."""

    tokens: int
    steps: int
    trained: int
    flops_per_token: dict[str, float]
    flops: float
    days: float
    documents: str


@dataclass(frozen=True)
class Plan:
    """``step_tokens``: tokens an optimiser step on average, padding left out; ``micro_batches``: of a rank and step."""

    experiment: str
    variant: str
    parameters: dict[str, Count]
    totals: Totals
    stages: dict[str, StagePlan]
    step_places: int
    step_tokens: float
    micro_batches: int
    sharding: Sharding
    memory: Memory
    checkpointing: bool
    gpu: Gpu
    utilisation: float

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages.values())

    @property
    def flops(self) -> float:
        return sum(stage.flops for stage in self.stages.values())

    @property
    def days(self) -> float:
        return sum(stage.days for stage in self.stages.values())

    @property
    def bytes_needed(self) -> int:
        """On each GPU, with activation checkpointing or without as the run's settings say."""
        return self.memory.total(self.checkpointing)

    @property
    def fits(self) -> bool | None:
        return None if self.gpu.memory is None else self.bytes_needed <= self.gpu.memory


def make_plan(
    config: RunConfig, gpu: Gpu, gpus: int = 1, utilisation: float = 0.4, sharding: str | None = None, sample: bool = False
) -> Plan:
    """No weights are read and nothing is computed. ``sample``: read the run's own data instead of assuming lengths of documents,
    which happens anyway when its sources are drawn.

    Raises UserError: numbers out of range, a step that the ranks do not share out evenly or that two settings set, sources that
    cannot be opened.
    """
    if gpus < 1:
        raise UserError(f"--gpus {gpus} is out of range (from 1)")
    if not 0 < utilisation <= 1:
        raise UserError(f"--utilisation {utilisation} is out of range (above 0, to 1)")
    components = Components(ComponentSettings.seeded(config.components_seed))
    with torch.device("meta"):
        model = build_model(config, components, vocabulary(config))
    token_pixels = model.frontend.space.token_pixels
    costs = model_costs(model, image_sizes(config.data))
    here = is_built(folder_of(components.root, "tokenizer", components.settings.tokenizer))
    tokenizer = components.tokenizer_for(config.decoder) if sample or (needs_no_files(config) and here) else None
    accumulated = micro_batches(config.data, gpus)
    step_places = accumulated * gpus * config.data.rows * config.data.row_tokens
    stages = {}
    fills = []
    for name, stage in config.stages.items():
        work = workload(config, name, tokenizer, token_pixels)
        flops = costs.parts(work.per_token)
        total = sum(flops.values()) * stage.tokens
        fills.append(work.fill * stage.tokens)
        stages[name] = StagePlan(
            tokens=stage.tokens,
            steps=round(stage.tokens / (work.fill * step_places)),
            trained=parameters.trained_in(model, stage),
            flops_per_token=flops,
            flops=total,
            days=total / (gpus * gpu.flops * utilisation) / DAY,
            documents=work.source,
        )
    counts, totals = parameters.parts(model), parameters.totals(model)
    placed = placement(config, gpus, accumulated, sharding)
    return Plan(
        experiment=config.experiment,
        variant=config.variant,
        parameters=counts,
        totals=totals,
        stages=stages,
        step_places=step_places,
        step_tokens=step_places * sum(fills) / sum(stage.tokens for stage in stages.values()),
        micro_batches=accumulated,
        sharding=placed,
        memory=_memory(config, model, totals, placed, token_pixels),
        checkpointing=config.activation_checkpointing,
        gpu=gpu,
        utilisation=utilisation,
    )


def vocabulary(config: RunConfig) -> int:
    """Rows of the embedding table, without reading a tokenizer. Raises UserError when only the tokenizer would tell."""
    if config.decoder.vocabulary:
        return config.decoder.vocabulary
    if config.decoder.pretrained or config.decoder.tokenizer:
        raise UserError("decoder.vocabulary=0: a plan reads no tokenizer, so the rows of the embedding table must be stated")
    return ComponentSettings().tokenizer.vocabulary


def placement(config: RunConfig, gpus: int, micro_batches: int, strategy: str | None) -> Sharding:
    """``strategy`` or the run's own. Raises UserError for one that is not known or does not go with the number of GPUs."""
    distribution = config.distribution
    strategy = strategy or distribution.strategy
    if strategy == "auto":
        strategy = "none" if gpus == 1 else "ddp"
    if strategy == "none" and gpus > 1:
        raise UserError(f"--sharding none is for one GPU, not {gpus} (choices: ddp, fsdp2)")
    shards = (distribution.shard_size or gpus) if strategy == "fsdp2" else 1
    if gpus % shards:
        raise UserError(f"distribution.shard_size={shards} does not divide {gpus} GPUs")
    return Sharding(strategy, gpus, shards, micro_batches > 1 and not distribution.reduce_always)


def _memory(config: RunConfig, model: UnifiedModel, count: parameters.Totals, sharding: Sharding, token_pixels: int) -> Memory:
    bf16 = config.precision != "fp32"
    tokens = config.data.rows * config.data.row_tokens
    rows = {kind: row_share(kind, config.data, token_pixels, config.decoder.chat) for kind in kinds_of(config)}
    largest = max(sum(p.numel() for p in block.parameters()) for block in blocks(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(f"frontend.{part}." for part in model.frontend.frozen_parts)))
    traced = trace(model, tokens, Buckets.of(config.data).sizes[0], bf16)
    return memory(count, traced, rows, tokens, model.decoder.lm_head.out_features, sharding, largest, bf16)
