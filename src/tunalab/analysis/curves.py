"""Learning curves of records: axes, places on them, lines of runs that differ in the seed alone, and the table of all points.

Runs are trained at equal tokens; the other axes compare the same runs at equal images, compute,
time or parameters.

    P  evaluations of a run    G  places of a common grid
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pandas as pd

from tunalab.errors import UserError
from tunalab.frontends.looks import Look
from tunalab.records.labels import Legend, Setting, differing_settings
from tunalab.records.record import Point, Record, usable
from tunalab.terminal import duration

TOLERANCE = 0.02  # of tokens: an evaluation waits for the end of a batch, and runs of different seeds end some documents apart


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


DURATIONS = [  # ticks of a clock: 10 s, 30 s, 1 min, ... 300 d
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


T = TypeVar("T", int, float)


@dataclass(frozen=True, eq=False)
class Weights:
    """How values of runs at their evaluations become values on a grid: groups of ``seeds`` that were evaluated at the same places,
    each with its matrix (G, P); None where the grid is these places.
    """

    seeds: tuple[int, ...]
    groups: tuple[tuple[tuple[int, ...], np.ndarray | None], ...]
    places: int


@dataclass(frozen=True)
class Grid:
    """Places that several sides were evaluated at, or between, and the weights of each side."""

    x_G: np.ndarray
    sides: tuple[Weights, ...]


@dataclass(frozen=True, eq=False)
class Places:
    """The evaluations of some runs, by seed: the same for every benchmark of them, so grids are made once and kept."""

    runs: dict[int, tuple[Record, tuple[Point, ...]]]
    _on: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    _grids: dict[tuple[object, ...], Grid | None] = field(default_factory=dict)
    _weights: dict[tuple[object, ...], Weights] = field(default_factory=dict)

    def on(self, axis: Axis) -> dict[int, np.ndarray]:
        """The places of each run, (P,). Raises UserError: a run does not move along the axis."""
        if axis.name not in self._on:
            self._on[axis.name] = {seed: _placed(record, points, axis) for seed, (record, points) in self.runs.items()}
        return self._on[axis.name]

    def weights(self, seeds: Sequence[int], place_of: dict[int, np.ndarray], x_G: np.ndarray) -> Weights:
        """From the ``seeds`` at places ``place_of`` to a grid. The same object for the same weights, on whatever axis."""
        alike: dict[bytes, list[int]] = {}
        for seed in seeds:
            alike.setdefault(place_of[seed].tobytes(), []).append(seed)
        groups = tuple(
            (tuple(some), None if np.array_equal(x_P := place_of[some[0]], x_G) else interpolation(x_P, x_G))
            for some in alike.values()
        )
        key = (*((some, weight_GP if weight_GP is None else weight_GP.tobytes()) for some, weight_GP in groups), len(x_G))
        return self._weights.setdefault(key, Weights(tuple(seeds), groups, len(x_G)))


def grid(sides: Sequence[Places], axis: Axis) -> Grid | None:
    """One grid for the seeds that all the sides have: every place where one of their runs was evaluated, from the last of the first
    to the first of the last. None without a common seed or place. Raises UserError: a run does not move along the axis.
    """
    first, *others = sides
    key = (axis.name, *others)
    if key not in first._grids:
        first._grids[key] = _grid(sides, axis)
    return first._grids[key]


def _grid(sides: Sequence[Places], axis: Axis) -> Grid | None:
    seeds = sorted(set.intersection(*(set(side.runs) for side in sides)))
    if not seeds:
        return None
    places = [{seed: side.on(axis)[seed] for seed in seeds} for side in sides]
    same = joined(np.concatenate([x_P for of in places for x_P in of.values()]).tolist())
    places = [{seed: np.array([same[x] for x in x_P.tolist()]) for seed, x_P in of.items()} for of in places]
    every = [x_P for of in places for x_P in of.values()]
    first, last = max(x_P[0] for x_P in every), min(x_P[-1] for x_P in every)
    x_G = np.unique(np.concatenate(every))
    x_G = x_G[(first <= x_G) & (x_G <= last)]
    if not len(x_G):
        return None
    return Grid(x_G, tuple(side.weights(seeds, of, x_G) for side, of in zip(sides, places, strict=True)))


def _placed(record: Record, points: Sequence[Point], axis: Axis) -> np.ndarray:
    x_P = np.array([axis.place(record, point) for point in points], dtype=float)
    if x_P[0] <= 0 or (x_P[1:] <= x_P[:-1]).any():
        raise UserError(f"{record.run.name}: {axis.label} do not grow from evaluation to evaluation")
    return x_P


def joined(values: Iterable[T]) -> dict[T, T]:
    """Each value -> the largest of those that count as one place with it: within ``TOLERANCE`` above the smallest of them."""
    groups: list[list[T]] = []
    for value in sorted(set(values)):
        if groups and value <= groups[-1][0] * (1 + TOLERANCE):
            groups[-1].append(value)
        else:
            groups.append([value])
    return {member: group[-1] for group in groups for member in group}


def interpolation(x_P: np.ndarray, x_G: np.ndarray) -> np.ndarray:
    """The matrix (G, P) from values at ``x_P`` to values at ``x_G``, which lie between them: straight lines over log x."""
    left_G = np.searchsorted(x_P, x_G, side="right") - 1  # of two values at one place the later counts
    right_G = np.minimum(left_G + 1, len(x_P) - 1)
    length_G = np.log(x_P[right_G] / x_P[left_G])
    share_G = np.divide(np.log(x_G / x_P[left_G]), length_G, out=np.zeros(len(x_G)), where=length_G > 0)
    weight_GP, rows = np.zeros((len(x_G), len(x_P))), np.arange(len(x_G))
    weight_GP[rows, left_G] += 1 - share_G
    weight_GP[rows, right_G] += share_G
    return weight_GP


@dataclass(frozen=True, eq=False)
class Line:
    """Runs of one variant at one setting, which differ in the seed alone, by seed. ``label``: the variant's, unlike all others."""

    variant: str
    setting: Setting
    records: tuple[Record, ...]
    label: str
    _places: dict[tuple[tuple[int, ...], ...], Places] = field(default_factory=dict)

    @property
    def look(self) -> Look:
        return self.records[0].look

    def places(self, benchmark: str) -> Places:
        """The evaluations that hold a benchmark, of the runs that do: one object for all benchmarks of the same evaluations."""
        at = tuple(
            tuple(index for index, point in enumerate(record.points) if benchmark in point.benchmarks) for record in self.records
        )
        if at not in self._places:
            pairs = zip(self.records, at, strict=True)
            self._places[at] = Places(
                {record.run.seed: (record, tuple(record.points[index] for index in of)) for record, of in pairs if of}
            )
        return self._places[at]


def arms(records: Sequence[Record]) -> list[Line]:
    """Variants in their order, settings by size, runs by seed."""
    groups: dict[tuple[str, Setting], list[Record]] = {}
    for record, setting in zip(records, differing_settings(records), strict=True):
        groups.setdefault((record.run.variant, setting), []).append(record)
    legend = Legend(records)
    order = legend.ordered(variant for variant, _ in groups)
    keys = sorted(groups, key=lambda key: (order.index(key[0]), key[1].place))
    return [Line(*key, tuple(sorted(groups[key], key=lambda record: record.run.seed)), legend.label(key[0])) for key in keys]


def lines(records: Sequence[Record]) -> list[Line]:
    """The arms of the usable records. Raises UserError: two of them are the same run."""
    shown = arms(usable(records))
    _check_different(shown)
    return shown


def _check_different(shown: Sequence[Line]) -> None:
    """A mean over the same run twice would count it twice."""
    for line in shown:
        for one, other in pairwise(line.records):
            if one.run.seed == other.run.seed:
                raise UserError(
                    f"records {one.run.name} and {other.run.name} are the same run: variant {line.variant}, seed {one.run.seed}, "
                    "no setting differs"
                )


def names_of(shown: Sequence[Line]) -> dict[Line, str]:
    """``Tuna-2``, or ``Tuna-2, mask ratio 0.5`` where settings differ."""
    return {line: named(line.label, line.setting.label) for line in shown}


def named(label: str, setting: str) -> str:
    return f"{label}, {setting}" if setting else label


def moves(shown: Sequence[Line], axis: Axis) -> bool:
    """Whether every run has a place on the axis, and a later one at every evaluation."""
    try:
        places = [[axis.place(record, point) for point in record.points] for line in shown for record in line.records]
    except UserError:  # a record lacks what the axis needs
        return False
    return all(a < b for x in places for a, b in pairwise([0.0, *x]))


def benchmarks(records: Iterable[Record]) -> set[str]:
    return {name for record in records for point in record.points for name in point.benchmarks}


# ``setting``: the label of what sets a run apart from the others of the table.
COLUMNS = ["variant", "seed", "setting", "tokens", "benchmark", "accuracy", "n", "chance", "correct", "mask_ratio", "run"]
RUN = ["variant", "seed", "setting"]


def curves(records: Sequence[Record]) -> pd.DataFrame:
    """One row per run, point and benchmark, with the columns of ``COLUMNS``. Raises UserError: two records are the same run."""
    shown = arms(records)
    _check_different(shown)
    rows = [
        (line.variant, record.run.seed, line.setting.label, point.tokens, benchmark)
        + (score.accuracy, score.n, score.chance, score.correct, record.run.mask_ratio, record.run.name)
        for line in shown
        for record in line.records
        for point in record.points
        for benchmark, score in point.benchmarks.items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def align_tokens(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table with token counts that differ by less than ``TOLERANCE`` set to their largest.

    An evaluation happens at the end of the batch that reaches its threshold, and batches hold different numbers of tokens,
    so that seeds reach "the same" point some tokens apart. Of two points of one run that fall together the later stays.
    """
    where = joined(frame["tokens"].tolist())
    order = frame.sort_values("tokens", kind="stable")
    aligned = order.assign(tokens=order["tokens"].map(where))
    aligned = aligned.drop_duplicates([*RUN, "benchmark", "tokens"], keep="last")
    return aligned.reset_index(drop=True)


def last_common_tokens(aligned: pd.DataFrame) -> int:
    """The largest aligned token count that every run of the table reached: where they can be compared fairly.

    Raises:
        UserError: there is none, or no benchmark was evaluated.
    """
    if aligned.empty:
        raise UserError("no evaluated benchmark in these records")
    runs = aligned.groupby("tokens")[RUN].apply(lambda part: len(part.drop_duplicates()))
    total = len(aligned[RUN].drop_duplicates())
    common = [int(tokens) for tokens, count in runs.items() if count == total]  # type: ignore[call-overload]
    if not common:
        raise UserError("the records share no point at equal tokens: were they trained with different budgets or evaluations?")
    return max(common)
