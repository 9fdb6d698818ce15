"""A plan as text, and as plain numbers for programs."""

from dataclasses import asdict
from typing import Any

from tunalab.planning.memory import WITH, WITHOUT
from tunalab.planning.plan import Plan
from tunalab.results.columns import columns

LIMITS = "Not counted: CUDA context, communication buffers, fragmentation, workspace of a frozen VAE (leave a tenth)."


def to_plain(plan: Plan) -> dict[str, Any]:
    """Everything in the plan, sums included."""
    return {
        **asdict(plan),
        "tokens": plan.tokens,
        "flops": plan.flops,
        "days": plan.days,
        "bytes_needed": plan.bytes_needed,
        "fits": plan.fits,
    }


def to_text(plan: Plan) -> str:
    sections = [_parameters(plan), _flops(plan), _stages(plan), _memory(plan)]
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
    rows = [[f"{prefix}FLOPs a token, forward and backward", *names]]
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
            [name, f"{stage.tokens:.3g}", f"{stage.steps:,}", _count(stage.trained), f"{stage.flops:.3g}", _duration(stage.days)]
        )
    rows.append(["total", f"{plan.tokens:.3g}", "", "", f"{plan.flops:.3g}", _duration(plan.days)])
    gpus = f"{plan.sharding.ranks} x {plan.gpu.name}"
    step = f"a step: {plan.step_places:,} places, about {plan.step_tokens:,.0f} tokens; {plan.micro_batches} micro-batch(es) a GPU"
    rate = f"{gpus} at {plan.utilisation:.0%} of {plan.gpu.flops / 1e12:,.4g} TFLOP/s"
    return f"{columns(rows)}\n{step}\n{rate}; recomputed FLOPs do not count, so checkpointing lowers what is reached"


def _memory(plan: Plan) -> str:
    memory, sharding = plan.memory, plan.sharding
    unit, scale = ("GiB", 2**30) if memory.total(False) >= 2**30 else ("MiB", 2**20)

    def show(size: int) -> str:
        return f"{size / scale:,.1f}"

    over = f" over {sharding.shards}" if sharding.shards > 1 else ""
    rows = [[f"{unit} a GPU ({sharding.strategy}{over})", WITHOUT, WITH]]
    rows += [[kind, show(size), show(size)] for kind, size in memory.states.items()]
    rows.append([f"activations (a row of {_fullest(plan)})", show(memory.activations[WITHOUT]), show(memory.activations[WITH])])
    rows.append(["total", show(memory.total(False)), show(memory.total(True))])
    verdict = f"this run, {WITH if plan.checkpointing else WITHOUT}: {show(plan.bytes_needed)} {unit}"
    if plan.gpu.memory is not None:
        verdict += f" of {plan.gpu.name}'s {show(plan.gpu.memory)}: {'fits' if plan.fits else 'DOES NOT FIT'}"
    return f"{columns(rows)}\n{verdict}\n{LIMITS}"


def _fullest(plan: Plan) -> str:
    """The kinds of document whose rows need most, without and with checkpointing."""
    return " / ".join(dict.fromkeys(kind.replace("_", " ") for kind in (plan.memory.row[WITHOUT], plan.memory.row[WITH])))


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _duration(days: float) -> str:
    for unit, length in (("days", 1.0), ("hours", 1 / 24), ("minutes", 1 / 24 / 60)):
        if days >= length:
            return f"{days / length:,.1f} {unit}"
    return f"{days * 86400:.2g} seconds"
