"""`tunalab plan`: parameters, FLOPs, memory and days of a run, from its settings alone."""

import csv
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from typing import Any

import torch

from tunalab.data.buckets import Buckets
from tunalab.data.packing import micro_batches
from tunalab.errors import UserError
from tunalab.frontends.components.store import Components, tiny_tokenizer
from tunalab.model.flops import image_sizes, model_costs
from tunalab.model.unified import UnifiedModel, build_model
from tunalab.planning.memory import (
    WITH,
    WITHOUT,
    Count,
    Memory,
    Sharding,
    Totals,
    memory,
    parts,
    start_bytes,
    totals,
    trace,
    trained_in,
)
from tunalab.planning.workload import kinds_of, needs_no_files, row_share, workload
from tunalab.settings.schema import RunConfig
from tunalab.terminal import columns, duration
from tunalab.training.blocks import blocks

DAY = 86400.0
GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """An accelerator, as its maker's data sheet states it.

    ``flops``: multiplications and additions per second, dense bfloat16; ``memory``: bytes; ``hourly``: dollars per hour; both None
    when unknown.
    """

    name: str
    flops: float
    memory: int | None
    hourly: float | None = None

    def priced(self, price: float | None) -> "Gpu":
        """At ``price`` dollars per hour, or at its own. Raises UserError: it is negative or no number."""
        if price is None:
            return self
        if not 0 <= price < float("inf"):
            raise UserError(f"--price {price} is out of range (from 0)")
        return replace(self, hourly=price)


def _cards() -> "dict[str, Gpu]":
    """Of cards.csv, whose comments say where its numbers are from."""
    text = files("tunalab.planning").joinpath("cards.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {
        row["name"]: Gpu(
            row["name"], 1e12 * float(row["tflops"]), round(float(row["memory_gib"]) * GIB), float(row["dollars_per_hour"])
        )
        for row in rows
    }


GPUS = _cards()
DEFAULT = "h100"


def find_gpu(name: str | None, flops: float | None) -> Gpu:
    """By name, and with ``flops`` in the place of its rate; with a rate alone its memory and price are not known.

    Raises UserError for an unknown name or a rate that is none.
    """
    if flops is not None and not 0 < flops < float("inf"):
        raise UserError(f"--gpu-flops {flops} is out of range (above 0)")
    if name is None and flops is not None:
        return Gpu("GPU", flops, None)
    name = name or DEFAULT
    if name not in GPUS:
        raise UserError(f"--gpu {name} is not known (choices: {', '.join(GPUS)}; any other by --gpu-flops alone)")
    gpu = GPUS[name]
    return gpu if flops is None else replace(gpu, flops=flops)


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
    """``step_tokens``: tokens per optimiser step on average, padding left out; ``micro_batches``: of a rank and step; ``start_up``:
    bytes of main memory that a process needs for the weights before its first step.
    """

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
    start_up: int
    checkpointing: bool
    gpu: Gpu
    utilisation: float
    precision: str = "auto"

    @property
    def rate_unknown(self) -> bool:
        """Whether the run multiplies in float32, of which cards.csv has no rate."""
        known = GPUS.get(self.gpu.name)
        return self.precision == "fp32" and known is not None and known.flops == self.gpu.flops

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
    def tokens_per_second(self) -> float:
        """Of all GPUs together, on average over the stages."""
        return self.tokens / (self.days * DAY)

    @property
    def gpu_hours(self) -> float:
        """Of all GPUs together."""
        return self.days * 24 * self.sharding.ranks

    @property
    def price(self) -> float | None:
        """Dollars, None when the GPU's price is unknown."""
        return None if self.gpu.hourly is None else self.gpu_hours * self.gpu.hourly

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
    components = Components(config.components_seed)
    with torch.device("meta"):
        model = build_model(config, components, vocabulary(config))
    token_pixels = model.frontend.space.token_pixels
    costs = model_costs(model, image_sizes(config.data))
    tokenizer = components.tokenizer_for(config.decoder) if sample or needs_no_files(config) else None
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
            trained=trained_in(model, stage, config.optimizer),
            flops_per_token=flops,
            flops=total,
            days=total / (gpus * gpu.flops * utilisation) / DAY,
            documents=work.source,
        )
    counts, whole = parts(model), totals(model)
    placed = placement(config, gpus, accumulated, sharding)
    start_up = start_bytes(model, whole, placed)
    return Plan(
        experiment=config.experiment,
        variant=config.variant,
        parameters=counts,
        totals=whole,
        stages=stages,
        step_places=step_places,
        step_tokens=step_places * sum(fills) / sum(stage.tokens for stage in stages.values()),
        micro_batches=accumulated,
        sharding=placed,
        memory=_memory(config, model, whole, placed, token_pixels),
        start_up=start_up,
        checkpointing=config.activation_checkpointing,
        gpu=gpu,
        utilisation=utilisation,
        precision=config.precision,
    )


def vocabulary(config: RunConfig) -> int:
    """Rows of the embedding table, without reading a tokenizer. Raises UserError when only the tokenizer would tell."""
    if config.decoder.vocabulary:
        return config.decoder.vocabulary
    if config.decoder.pretrained or config.decoder.tokenizer:
        raise UserError("decoder.vocabulary=0: a plan reads no tokenizer, so the rows of the embedding table must be stated")
    return int(tiny_tokenizer().entry["ids"])


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


def _memory(config: RunConfig, model: UnifiedModel, count: Totals, sharding: Sharding, token_pixels: int) -> Memory:
    bf16 = config.precision != "fp32"
    tokens = config.data.rows * config.data.row_tokens
    rows = {kind: row_share(kind, config.data, token_pixels, config.decoder.chat) for kind in kinds_of(config)}
    largest = max(sum(p.numel() for p in block.parameters()) for block in blocks(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(f"frontend.{part}." for part in model.frontend.frozen_parts)))
    traced = trace(model, tokens, Buckets.of(config.data).sizes[0], bf16, config.fused_text_loss)
    return memory(count, traced, rows, tokens, model.decoder.lm_head.out_features, sharding, largest, bf16)


SPARE = 0.1  # of the memory, for what LIMITS names
FP32 = ", its rate in bfloat16; in float32 (precision=fp32) it has 2 to 16 times less: --gpu-flops says how much"
LIMITS = "Not counted: CUDA context, communication buffers, fragmentation, workspace of a frozen VAE (leave a tenth)."


def to_plain(plan: Plan) -> dict[str, Any]:
    """Everything in the plan, sums included."""
    return {
        **asdict(plan),
        "tokens": plan.tokens,
        "flops": plan.flops,
        "days": plan.days,
        "tokens_per_second": plan.tokens_per_second,
        "gpu_hours": plan.gpu_hours,
        "price": plan.price,
        "bytes_needed": plan.bytes_needed,
        "fits": plan.fits,
    }


def to_text(plan: Plan) -> str:
    sections = [_parameters(plan), _flops(plan), _stages(plan), _report_memory(plan)]
    return "\n\n".join([f"{plan.experiment}, {plan.variant}", *sections])


def _parameters(plan: Plan) -> str:
    rows = [["parameters", "trained", "frozen"]]
    rows += [[name, _count(count.trained), _count(count.frozen)] for name, count in plan.parameters.items()]
    rows.append(["total", _count(plan.totals.trained), _count(plan.totals.frozen)])
    return columns(rows)


def _flops(plan: Plan) -> str:
    names = list(plan.stages)
    parts = list(next(iter(plan.stages.values())).flops_per_token)
    prefix, scale = ("G", 1e9) if plan.flops / plan.tokens >= 1e9 else ("M", 1e6)
    rows = [[f"{prefix}FLOPs per token, forward and backward", *names]]
    for part in parts:
        values = [stage.flops_per_token[part] for stage in plan.stages.values()]
        if any(values):
            rows.append([part, *(f"{value / scale:.3g}" for value in values)])
    rows.append(["total", *(f"{sum(stage.flops_per_token.values()) / scale:.3g}" for stage in plan.stages.values())])
    sources = sorted({stage.documents for stage in plan.stages.values()})
    return columns(rows) + f"\naverages over each stage's mix, from {' and '.join(sources)}"


def _stages(plan: Plan) -> str:
    rows = [["stage", "tokens", "steps", "trains", "FLOPs", "takes"]]
    for name, stage in plan.stages.items():
        rows.append(
            [
                name,
                f"{stage.tokens:.3g}",
                f"{stage.steps:,}",
                _count(stage.trained),
                f"{stage.flops:.3g}",
                duration(DAY * stage.days),
            ]
        )
    rows.append(["total", f"{plan.tokens:.3g}", "", "", f"{plan.flops:.3g}", duration(DAY * plan.days)])
    gpus = f"{plan.sharding.ranks} x {plan.gpu.name}"
    step = (
        f"per step: {plan.step_places:,} places, about {plan.step_tokens:,.0f} tokens; {plan.micro_batches} micro-batch(es) per GPU"
    )
    rate = f"{gpus} at {plan.utilisation:.0%} of {plan.gpu.flops / 1e12:,.4g} TFLOP/s{FP32 if plan.rate_unknown else ''}"
    price = "price unknown: --price says it"
    if plan.price is not None:
        price = f"${amount(plan.price)} at ${plan.gpu.hourly:,.4g} per GPU-hour"
    cost = f"about {plan.tokens_per_second:,.0f} tokens per second; {amount(plan.gpu_hours)} GPU-hours; {price}"
    return f"{columns(rows)}\n{step}\n{rate}; recomputed FLOPs do not count, so checkpointing lowers what is reached\n{cost}"


def _report_memory(plan: Plan) -> str:
    memory, sharding = plan.memory, plan.sharding
    unit, scale = ("GiB", 2**30) if memory.total(False) >= 2**30 else ("MiB", 2**20)

    def show(size: int) -> str:
        return f"{size / scale:,.1f}"

    over = f" over {sharding.shards}" if sharding.shards > 1 else ""
    rows = [[f"{unit} per GPU ({sharding.strategy}{over})", WITHOUT, WITH]]
    rows += [[kind, show(size), show(size)] for kind, size in memory.states.items()]
    # The kinds of document whose rows need most, without and with checkpointing.
    fullest = " / ".join(dict.fromkeys(kind.replace("_", " ") for kind in (plan.memory.row[WITHOUT], plan.memory.row[WITH])))
    rows.append([f"activations (a row of {fullest})", show(memory.activations[WITHOUT]), show(memory.activations[WITH])])
    rows.append(["total", show(memory.total(False)), show(memory.total(True))])
    verdict = f"this run, {WITH if plan.checkpointing else WITHOUT}: {show(plan.bytes_needed)} {unit}"
    if plan.gpu.memory is not None:
        tight = ", with less than a tenth to spare" if plan.bytes_needed > (1 - SPARE) * plan.gpu.memory else ""
        verdict += f" of {plan.gpu.name}'s {show(plan.gpu.memory)}: {f'fits{tight}' if plan.fits else 'DOES NOT FIT'}"
    start = f"main memory at the start: {show(plan.start_up)} {unit} for each process, beside Python and its packages"
    return f"{columns(rows)}\n{verdict}\n{start}\n{LIMITS}"


def amount(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"
