"""What figure 6 shows, worked out once for the picture and the page: of each benchmark the bands and crossings of its curves.

A benchmark at a time, and no resamples are kept: of a thousand runs they are a hundred megabytes a benchmark.

    P  evaluations of a run
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunalab.errors import UserError
from tunalab.results.analysis.axes import Axis
from tunalab.results.analysis.crossing import Crossing, crossings
from tunalab.results.analysis.grid import Places
from tunalab.results.analysis.lines import Line, benchmarks
from tunalab.results.analysis.resampling import Band, Curve, Draws, band, learning_curves
from tunalab.results.labels import ordered_benchmarks


@dataclass(frozen=True)
class Drawn:
    """A line in a panel: where and how well its runs did, by seed, and its band on each axis that has one."""

    line: Line
    n: int
    chance: float
    places: Places
    accuracy_P: dict[int, np.ndarray]
    bands: dict[str, Band | None]


@dataclass(frozen=True)
class Panel:
    """A benchmark; bands and crossings by axis."""

    benchmark: str
    drawn: list[Drawn]
    crossings: dict[str, list[Crossing]]

    @property
    def chance(self) -> float:
        return max(one.chance for one in self.drawn)


@dataclass(frozen=True)
class Panels:
    lines: list[Line]
    axes: list[Axis]
    panels: list[Panel]


def learned(shown: Sequence[Line], axes: Sequence[Axis]) -> Panels:
    """Everything figure 6 shows of some lines on the ``axes``.

    Raises:
        UserError: nothing was evaluated, or a run does not move along an axis.
    """
    names, draws = ordered_benchmarks(benchmarks(record for line in shown for record in line.records)), Draws()
    if not names:
        raise UserError("no evaluated benchmark in these records")
    return Panels(list(shown), list(axes), [_panel(learning_curves(shown, name, draws), name, axes, draws) for name in names])


def _panel(learning: Sequence[Curve], benchmark: str, axes: Sequence[Axis], draws: Draws) -> Panel:
    drawn = [
        Drawn(
            curve.line,
            curve.n,
            curve.chance,
            curve.places,
            curve.accuracy_P,
            {axis.name: band(curve, axis, draws) for axis in axes},
        )
        for curve in learning
    ]
    return Panel(benchmark, drawn, {axis.name: crossings(learning, axis, draws) for axis in axes})
