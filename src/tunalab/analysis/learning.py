"""Learning curves by seed, their bands, and the areas under them.

Between two evaluations a curve is the straight line over the logarithm of the axis. What is said of
curves is said of each seed first (a value at a place, an area, the difference of two curves), and
its interval is that of values by seed (statistics.py).

The area under a curve over the length of its axis is a mean accuracy of the whole run, without the choice of a point.
Over log x every doubling counts the same, and what was learnt early counts most; over x itself
the late part of a run decides. Both are of the same curve, straight lines over log x between
evaluations, integrated exactly.

    I  questions    S  seeds    P  evaluations of a run    G  places of a common grid
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tunalab.analysis.curves import Axis, Line, Places, Weights, grid
from tunalab.analysis.statistics import Estimate, of_seeds, question_error, share_interval
from tunalab.evaluation.measure import Score


@dataclass(frozen=True, eq=False)
class Curve:
    """A line on one benchmark: of each run, by seed, its scores at its ``places``. ``n`` questions."""

    line: Line
    benchmark: str
    places: Places
    scores: dict[int, tuple[Score, ...]]
    n: int
    chance: float

    @cached_property
    def accuracy_P(self) -> dict[int, np.ndarray]:
        return {seed: np.array([score.correct / score.n for score in run]) for seed, run in self.scores.items()}

    @cached_property
    def answers_PI(self) -> dict[int, np.ndarray] | None:
        """Right or wrong; None where a run has no outcomes on record, or other numbers of questions."""
        every = [score for run in self.scores.values() for score in run]
        if len({score.n for score in every}) > 1 or any(score.outcomes is None for score in every):
            return None
        return {seed: np.array([score.items() for score in run], dtype=np.float32) for seed, run in self.scores.items()}


@dataclass(frozen=True, eq=False)
class OnGrid:
    """A curve at the places of a grid: by seed, and by question in the mean over seeds (None without outcomes on record)."""

    x_G: np.ndarray
    value_SG: np.ndarray
    answer_GI: np.ndarray | None

    def less(self, other: "OnGrid") -> "OnGrid":
        both = self.answer_GI is not None and other.answer_GI is not None and self.answer_GI.shape == other.answer_GI.shape
        gap_GI = self.answer_GI - other.answer_GI if both else None  # type: ignore[operator]
        return OnGrid(self.x_G, self.value_SG - other.value_SG, gap_GI)

    def weighted(self, weight_G: np.ndarray, n: int) -> Estimate:
        """The estimate of a sum over places, such as an area or the value at one."""
        error = 0.0
        if self.answer_GI is not None:
            error = question_error([(weight_G @ self.answer_GI)[None]])
        return of_seeds(self.value_SG @ weight_G, error, n, self.answer_GI is not None, step=1 / n)


@dataclass(frozen=True)
class Band:
    """A mean curve with the bounds of its 95% interval, place by place."""

    x_G: np.ndarray
    mean_G: np.ndarray
    low_G: np.ndarray
    high_G: np.ndarray


def learning_curves(shown: Sequence[Line], benchmark: str) -> list[Curve]:
    """The curves of one benchmark, of the lines that have it."""
    curves = []
    for line in shown:
        places = line.places(benchmark)
        if not places.runs:
            continue
        scores = {seed: tuple(point.benchmarks[benchmark] for point in points) for seed, (_, points) in places.runs.items()}
        first = next(iter(scores.values()))
        chance = float(np.mean([score.chance for score in first]))
        curves.append(Curve(line, benchmark, places, scores, first[-1].n, chance))
    return curves


def on_grid(curves: Sequence[Curve], axis: Axis) -> list[OnGrid]:
    """The seeds that all the curves have, on their common grid; empty where there is none.

    Raises:
        UserError: a run does not move along the axis.
    """
    found = grid([curve.places for curve in curves], axis)
    if found is None:
        return []
    return [_at(curve, weights, found.x_G) for curve, weights in zip(curves, found.sides, strict=True)]


def _at(curve: Curve, weights: Weights, x_G: np.ndarray) -> OnGrid:
    matrices = {seed: matrix for some, matrix in weights.groups for seed in some}

    def placed(value: np.ndarray, seed: int) -> np.ndarray:
        matrix = matrices[seed]
        return value if matrix is None else matrix @ value

    value_SG = np.array([placed(curve.accuracy_P[seed], seed) for seed in weights.seeds])
    answers = curve.answers_PI
    if answers is None:
        return OnGrid(x_G, value_SG, None)
    answer_GI = sum(placed(answers[seed], seed) for seed in weights.seeds) / len(weights.seeds)
    return OnGrid(x_G, value_SG, np.asarray(answer_GI))


def band(curve: Curve, axis: Axis) -> Band | None:
    """Mean and 95% interval of one line (``share_interval``, place by place); None where its seeds share no stretch of the axis."""
    found = on_grid([curve], axis)
    if not found:
        return None
    (one,) = found
    low_G, high_G = np.array([share_interval(value_S, curve.n) for value_S in one.value_SG.T]).T
    return Band(one.x_G, one.value_SG.mean(axis=0), low_G, high_G)


def covers(seeds: Iterable[int]) -> str:
    """What an interval of curves covers, for the numbers of seeds behind them."""
    return "questions and seeds" if min(seeds, default=0) > 1 else "questions only: one seed says nothing of another"


@dataclass(frozen=True)
class Area:
    """Mean accuracy of ``curve`` from ``first`` to ``last``, or with ``less`` the difference of the two."""

    curve: Curve
    less: Curve | None
    scale: str
    estimate: Estimate
    first: float
    last: float


def log_weights(x_G: np.ndarray) -> np.ndarray:
    """Weights of the values at ``x_G`` in the mean over log x: the trapezoidal rule, exact for straight lines."""
    length_G = np.diff(np.log(x_G))
    weight_G = np.zeros(len(x_G))
    weight_G[:-1] += length_G / 2
    weight_G[1:] += length_G / 2
    return weight_G / length_G.sum()


def linear_weights(x_G: np.ndarray) -> np.ndarray:
    """Weights of the values at ``x_G`` in the mean over x, of straight lines over log x.

    On one piece of length d = x1 - x0, with L = log(x1 / x0), the integral of log(x / x0) / L is x1 - d / L: the weight of the
    right end. The left end has the rest of d.
    """
    step_G = np.diff(x_G)
    right_G = x_G[1:] - step_G / np.diff(np.log(x_G))
    weight_G = np.zeros(len(x_G))
    weight_G[1:] += right_G
    weight_G[:-1] += step_G - right_G
    return weight_G / step_G.sum()


SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"log": log_weights, "linear": linear_weights}


def area(curve: Curve, axis: Axis, less: Curve | None = None) -> list[Area]:
    """On each scale; empty where the seeds (or the two curves) share less than two places."""
    found = on_grid([curve] if less is None else [curve, less], axis)
    if not found or len(found[0].x_G) < 2:
        return []
    one = found[0] if less is None else found[0].less(found[1])
    ends = float(one.x_G[0]), float(one.x_G[-1])
    return [Area(curve, less, scale, one.weighted(weights(one.x_G), curve.n), *ends) for scale, weights in SCALES.items()]
