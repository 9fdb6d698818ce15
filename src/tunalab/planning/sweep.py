"""`tunalab plan SWEEP` and the dry run: GPU-hours, minutes, storage and price before anything is trained."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.model.flops import image_sizes, model_costs
from tunalab.model.unified import build_model
from tunalab.planning.memory import Storage, downloads, storage
from tunalab.planning.plan import DAY, FP32, GIB, Gpu, Plan, amount, make_plan
from tunalab.planning.workload import sampled
from tunalab.settings.loading import budget, digest, to_plain
from tunalab.settings.schema import RunConfig
from tunalab.terminal import columns, duration

# Model FLOPs per second over a whole run, start and evaluations included, on one core of the machine that results/figure6 names.
CORE_FLOPS = 2.6e10


def estimate(config: RunConfig) -> dict[str, Any]:
    """Variant, mask ratio, seed, tokens, FLOPs and minutes on one core; the first stage's documents stand for all."""
    components = Components(config.components_seed)
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


LIMITS = (
    "Not counted: the data and reading it, evaluations, writing checkpoints, starts, failures and what they repeat.\n"
    "Every run is counted by itself: what runs of one seed share is trained once (`tunalab sweep NAME --dry-run` says how much).\n"
    "Memory leaves out what `tunalab plan EXPERIMENT VARIANT` names. Days are at the stated utilisation, which is not measured."
)


@dataclass(frozen=True)
class CellPlan:
    """A run of the sweep. ``gpu_hours``: of all its GPUs together; ``price``: dollars."""

    variant: str
    seed: int
    plan: Plan
    storage: Storage
    gpu_hours: float
    price: float


@dataclass(frozen=True)
class SweepPlan:
    """``cells``: by name; ``downloads``: bytes of pretrained weights by name, fetched once for all runs."""

    sweep: str
    cells: dict[str, CellPlan]
    downloads: dict[str, int]
    hourly: float

    @property
    def gpu_hours(self) -> float:
        return sum(cell.gpu_hours for cell in self.cells.values())

    @property
    def price(self) -> float:
        return sum(cell.price for cell in self.cells.values())

    @property
    def stored(self) -> int:
        """Bytes, with every run at its fullest."""
        return sum(cell.storage.total for cell in self.cells.values())


def plan_sweep(
    sweep: str,
    configs: Mapping[str, RunConfig],
    gpu: Gpu,
    gpus: int = 1,
    utilisation: float = 0.4,
    sharding: str | None = None,
    sample: bool = False,
) -> SweepPlan:
    """The plan of every cell (name -> its settings), each on ``gpus`` GPUs. Seeds share a plan: it does not depend on them.

    Raises UserError: the price of the GPU is unknown, or as :func:`tunalab.planning.plan.make_plan`.
    """
    hourly = gpu.hourly
    if hourly is None:
        raise UserError(f"the price of a {gpu.name} is unknown: --price says it, in dollars per hour")
    made: dict[str, Plan] = {}
    cells: dict[str, CellPlan] = {}
    fetched: dict[str, int] = {}
    for name, config in configs.items():
        key = digest(to_plain(replace(config, seed=0)))
        if key not in made:
            made[key] = make_plan(config, gpu, gpus, utilisation, sharding, sample)
        plan = made[key]
        for part, size in downloads(config, plan.parameters).items():
            fetched[part] = max(size, fetched.get(part, 0))
        hours = plan.gpu_hours
        cells[name] = CellPlan(config.variant, config.seed, plan, storage(config, plan.totals), hours, hours * hourly)
    return SweepPlan(sweep, cells, fetched, hourly)


def to_plain_sweep(planned: SweepPlan) -> dict[str, Any]:
    """For programs: a row per cell without the plan's details (`tunalab plan EXPERIMENT VARIANT --json` has them), and the sums."""
    cells = {}
    for name, cell in planned.cells.items():
        plan = cell.plan
        held = {"experiment": plan.experiment, "gpu": plan.gpu.name, "gpus": plan.sharding.ranks, "sharding": asdict(plan.sharding)}
        held |= {"utilisation": plan.utilisation, "micro_batches": plan.micro_batches, "bytes_needed": plan.bytes_needed}
        held |= {"fits": plan.fits, "tokens": plan.tokens, "flops": plan.flops, "days": plan.days}
        kept = {"gpu_hours": cell.gpu_hours, "price": cell.price, "storage": asdict(cell.storage)}
        cells[name] = {"variant": cell.variant, "seed": cell.seed, **held, **kept}
    sums = {"gpu_hours": planned.gpu_hours, "price": planned.price, "stored": planned.stored}
    return {"sweep": planned.sweep, "cells": cells, "downloads": planned.downloads, "hourly": planned.hourly, **sums}


def to_text_sweep(planned: SweepPlan) -> str:
    plans = [cell.plan for cell in planned.cells.values()]
    first = plans[0]
    rate = FP32 if first.rate_unknown else ""
    each = f"{first.sharding.ranks} x {first.gpu.name} at {first.utilisation:.0%} of {first.gpu.flops / 1e12:,.4g} TFLOP/s{rate}"
    head = f"{planned.sweep}: {len(plans)} runs of {first.experiment}, each on {each}, ${planned.hourly:,.4g} per GPU-hour"
    longest = max(plan.days for plan in plans)
    time = (
        f"one after another {duration(DAY * sum(plan.days for plan in plans))}; all at once {duration(DAY * longest)} on "
        f"{len(plans) * first.sharding.ranks:,} GPUs"
    )
    return "\n\n".join([head, f"{_cells(planned)}\n{time}", _storage(planned), LIMITS])


def _cells(planned: SweepPlan) -> str:
    rows = [["run", "sharding", "micro-batches", "GiB per GPU", "fits", "tokens", "FLOPs", "days", "GPU-hours", "price"]]
    for name, cell in planned.cells.items():
        plan = cell.plan
        over = f" over {plan.sharding.shards}" if plan.sharding.shards > 1 else ""
        fits = {True: "yes", False: "NO", None: "unknown"}[plan.fits]
        room = f" of {plan.gpu.memory / GIB:.1f}" if plan.gpu.memory else ""
        rows.append(
            [name, f"{plan.sharding.strategy}{over}", str(plan.micro_batches), f"{plan.bytes_needed / GIB:.1f}{room}", fits]
            + [f"{plan.tokens:.3g}", f"{plan.flops:.3g}", f"{plan.days:,.2f}", amount(cell.gpu_hours), f"${amount(cell.price)}"]
        )
    tokens, flops, days = (sum(getattr(c.plan, name) for c in planned.cells.values()) for name in ("tokens", "flops", "days"))
    sums = [f"{tokens:.3g}", f"{flops:.3g}", f"{days:,.2f}", amount(planned.gpu_hours), f"${amount(planned.price)}"]
    return columns([*rows, [f"{len(planned.cells)} runs", "", "", "", "", *sums]])


def _storage(planned: SweepPlan) -> str:
    kept = [cell.storage for cell in planned.cells.values()]
    sizes = {
        "checkpoints": [one.checkpoints for one in kept],
        "points": [one.points for one in kept],
        "records": [one.record for one in kept],
        "samples, at most": [one.samples for one in kept],
        "all": [one.total for one in kept],
    }
    rows = [["on the disk", "per run, at most", "all runs"]]
    rows += [[kind, _bytes(max(of_runs)), _bytes(sum(of_runs))] for kind, of_runs in sizes.items()]
    largest = max(kept, key=lambda one: one.checkpoint)
    number, each = round(largest.checkpoints / largest.checkpoint), _bytes(largest.checkpoint)
    kinds = "keep_checkpoints, checkpoint_keep"
    note = f"{number} checkpoints per run: {number - 1} are kept ({kinds}), one is written; at most {each} each"
    text = f"{columns(rows)}\n{note}"
    if planned.downloads:
        rows = [["fetched once for all runs", ""], *([name, _bytes(size)] for name, size in planned.downloads.items())]
        text += "\n\n" + columns([*rows, ["all", _bytes(sum(planned.downloads.values()))]])
    return text


def _bytes(size: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.3g} {unit}"
    return f"{size:.0f} B"
