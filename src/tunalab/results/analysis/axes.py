"""What a curve can be drawn against: everything that a run consumes while it learns.

Equal tokens are how runs are trained; the other axes ask of the same runs what equal images, compute, time or parameters would say.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tunalab.errors import UserError
from tunalab.results.records import Point, Record


@dataclass(frozen=True)
class Axis:
    """``place`` of a point of a run on the axis, ``label`` under it, ``text`` of a place in figures and tables."""

    name: str
    label: str
    place: Callable[[Record, Point], float]
    text: Callable[[float], str]
    note: str = ""


def short(value: float) -> str:
    """1500 -> 1.5k: ticks and captions without zeros to count."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def power(value: float) -> str:
    """4.59e13: three digits and the power of ten."""
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def duration(seconds: float) -> str:
    """In the unit that leaves a number from 1 on."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


# Of a clock: 10 s, 30 s, 1 min, ... 300 d.
DURATIONS = [
    count * unit
    for unit, counts in ((1, (10, 30)), (60, (1, 3, 10, 30)), (3600, (1, 3, 10)), (86_400, (1, 3, 10, 30, 100, 300)))
    for count in counts
]


def _trainable(record: Record) -> int:
    if record.parameters.get("trainable", 0) <= 0:
        raise UserError(f"{record.run.name}: the record holds no count of trainable parameters, which the axis `parameters` needs")
    return record.parameters["trainable"]


AXES = {
    axis.name: axis
    for axis in (
        Axis("tokens", "tokens consumed", lambda _, point: point.tokens, short),
        Axis("images", "images consumed", lambda _, point: point.images, short),
        Axis("flops", "training FLOPs", lambda _, point: point.flops, power),
        Axis(
            "wall_clock",
            "time of training",
            lambda _, point: point.seconds,
            duration,
            "Time: of the machines in the records, whatever else they did.",
        ),
        # Tokens times parameters is what training costs but for frozen parts and attention. Runs of equal parameters stand to
        # each other as against tokens, so this axis is a comparison at matched parameters wherever there is one in the records.
        Axis(
            "parameters",
            "tokens x trainable parameters",
            lambda record, point: float(point.tokens) * _trainable(record),
            power,
            "Parameters: a front-end with twice the trainable parameters stands at twice the place for the same tokens.",
        ),
    )
}


def axis_named(name: str) -> Axis:
    """Raises UserError: there is no such axis."""
    if name not in AXES:
        raise UserError(f"unknown x axis {name!r}, choices: {', '.join(AXES)}")
    return AXES[name]
