"""Learning curves and their resamples: what bands, crossings, areas and power laws are all made of.

What a resample is: the questions of a benchmark are drawn with replacement, the same draw for
every run at every point; seeds are drawn with replacement, the same draw for the variants that
are compared. Between two evaluations a curve is the straight line over the logarithm of the axis.

The area under a curve over the length of its axis is a mean accuracy of the whole run, without the choice of a point.
Over log x every doubling counts the same, and what was learnt early counts most; over x itself
the late part of a run decides. Both are of the same curve, straight lines over log x between
evaluations, integrated exactly.

    R  resamples    I  questions    S  seeds    P  evaluations of a run    K  evaluations of all runs    G  places of a common grid
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tunalab.analysis.curves import Axis, Line, Places, Weights, grid
from tunalab.evaluation.measure import Score, wilson

RESAMPLES = 1000
BOUNDS = (0.025, 0.975)
ENOUGH = 4  # seeds: with fewer a bootstrap over them is too narrow to say that a difference is one


@dataclass(frozen=True, eq=False)
class Curve:
    """A line on one benchmark: of each run, by seed, its accuracy at its ``places``, and the right answers of each resample.

    ``n`` questions; ``by_item``: from outcomes per question, not from counts alone.
    """

    line: Line
    benchmark: str
    places: Places
    accuracy_P: dict[int, np.ndarray]
    right_PR: dict[int, np.ndarray]
    n: int
    chance: float
    by_item: bool
    _sums: dict[tuple[object, ...], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    _means: dict[tuple[object, ...], "Sample"] = field(default_factory=dict)

    def mean(self, weights: Weights, draws: "Draws") -> "Sample":
        """The mean over seeds on a grid. Kept: on most axes the weights are the same, and of hundreds of seeds it takes longest."""
        key = (weights, draws.resamples, draws.seed)
        if key not in self._means:
            self._means[key] = self._mean(weights, draws)
        return self._means[key]

    def _mean(self, weights: Weights, draws: "Draws") -> "Sample":
        (some, matrix), *others = weights.groups
        if matrix is None and not others:
            sum_P, resampled_RP = self._weighted_sum(weights.seeds, some, draws)
            return Sample(sum_P, np.ascontiguousarray(resampled_RP))
        mean_G, resampled_RG = np.zeros(weights.places), np.zeros((draws.resamples, weights.places))
        part_RG = np.empty_like(resampled_RG)
        for some, weight_GP in weights.groups:
            sum_P, resampled_RP = self._weighted_sum(weights.seeds, some, draws)
            mean_G += sum_P if weight_GP is None else weight_GP @ sum_P
            resampled_RG += resampled_RP if weight_GP is None else np.matmul(resampled_RP, weight_GP.T, out=part_RG)
        return Sample(mean_G, resampled_RG)

    def _weighted_sum(self, seeds: Sequence[int], some: Sequence[int], draws: "Draws") -> tuple[np.ndarray, np.ndarray]:
        """What ``some`` of the ``seeds``, with evaluations in common, add to the mean over all of them, (P,) and (R, P)."""
        key = (draws.resamples, draws.seed, tuple(seeds), tuple(some))
        if key not in self._sums:
            weight_SR, n = draws.seeds(len(seeds)), np.float64(self.n if self.by_item else 1)
            resampled_PR = np.zeros(self.right_PR[some[0]].shape)
            for seed in some:
                resampled_PR += weight_SR[seeds.index(seed)] * (self.right_PR[seed] / n)
            self._sums[key] = np.sum([self.accuracy_P[seed] for seed in some], axis=0) / len(seeds), resampled_PR.T
        return self._sums[key]


@dataclass(frozen=True, eq=False)
class Sample:
    """A mean over seeds on a grid, and that of each resample."""

    mean_G: np.ndarray
    resampled_RG: np.ndarray

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The 95% interval, place by place."""
        return interval(self.resampled_RG)


@dataclass(frozen=True)
class Mean:
    """A sample with its grid."""

    x_G: np.ndarray
    sample: Sample
    seeds: int

    @property
    def mean_G(self) -> np.ndarray:
        return self.sample.mean_G

    @property
    def resampled_RG(self) -> np.ndarray:
        return self.sample.resampled_RG


@dataclass(frozen=True)
class Band:
    """A mean curve with the bounds of its 95% interval, place by place."""

    x_G: np.ndarray
    mean_G: np.ndarray
    low_G: np.ndarray
    high_G: np.ndarray


@dataclass
class Draws:
    """Which questions and seeds each resample holds. Drawn once for a number of questions and for a number of seeds."""

    resamples: int = RESAMPLES
    seed: int = 0
    _questions: dict[int, np.ndarray] = field(default_factory=dict)
    _seeds: dict[int, np.ndarray] = field(default_factory=dict)

    def questions(self, n: int) -> np.ndarray:
        """How often each question is in each resample, shape (R, I). Whole numbers in float32: their sums are exact."""
        if n not in self._questions:
            generator = np.random.default_rng([self.seed, 0, n])
            self._questions[n] = generator.multinomial(n, np.full(n, 1 / n), size=self.resamples).astype(np.float32)
        return self._questions[n]

    def seeds(self, count: int) -> np.ndarray:
        """The weight of each seed in the mean of each resample, shape (S, R).

        Deviations from equal weights are widened by sqrt(S / (S - 1)): a bootstrap of S values shows (S - 1) / S of their variance.
        """
        if count not in self._seeds:
            drawn_RS = np.random.default_rng([self.seed, 1, count]).integers(count, size=(self.resamples, count))
            place_RS = drawn_RS + count * np.arange(self.resamples)[:, None]
            share_RS = np.bincount(place_RS.ravel(), minlength=drawn_RS.size).reshape(drawn_RS.shape) / count
            widening = np.sqrt(count / (count - 1)) if count > 1 else 0.0
            self._seeds[count] = np.ascontiguousarray((1 / count + widening * (share_RS - 1 / count)).T)
        return self._seeds[count]

    def counts(self, score: Score, place: Sequence[int]) -> np.ndarray:
        """Accuracy of each resample where only the count of right answers is known: Beta(right + 1/2, wrong + 1/2), shape (R,)."""
        generator = np.random.default_rng([self.seed, 2, *place])
        return generator.beta(score.correct + 0.5, score.n - score.correct + 0.5, size=self.resamples)


def learning_curves(shown: Sequence[Line], benchmark: str, draws: Draws) -> list[Curve]:
    """The curves of one benchmark, of the lines that have it."""
    having = [(line, places) for line in shown if (places := line.places(benchmark)).runs]
    scores = [
        {seed: [point.benchmarks[benchmark] for point in points] for seed, (_, points) in places.runs.items()}
        for _, places in having
    ]
    every = [score for runs in scores for own in runs.values() for score in own]
    by_item = len({score.n for score in every}) == 1 and all(score.outcomes is not None for score in every)
    curves, start = [], 0
    for (line, places), runs in zip(having, scores, strict=True):
        own = [score for run in runs.values() for score in run]
        right_KR = _answers(own, draws) if by_item else np.stack([draws.counts(one, [start + k]) for k, one in enumerate(own)])
        start += len(own)
        ends = np.cumsum([len(run) for run in runs.values()])[:-1]
        accuracy_K = np.array([score.correct / score.n for score in own])
        accuracy_P = dict(zip(runs, np.split(accuracy_K, ends), strict=True))
        right_PR = dict(zip(runs, np.split(right_KR, ends), strict=True))
        first = next(iter(runs.values()))
        chance = float(np.mean([score.chance for score in first]))
        curves.append(Curve(line, benchmark, places, accuracy_P, right_PR, first[-1].n, chance, by_item))
    return curves


def _answers(scores: Sequence[Score], draws: Draws) -> np.ndarray:
    """Right answers of each of K scores, of as many questions, in each resample, (K, R). Whole numbers, see `Draws.questions`."""
    n = scores[0].n
    packed = np.frombuffer(bytes.fromhex("".join(score.outcomes or "" for score in scores)), dtype=np.uint8)
    right_KI = np.unpackbits(packed.reshape(len(scores), -1), axis=1, count=n).astype(np.float32)
    return right_KI @ draws.questions(n).T


def mean_curves(curves: Sequence[Curve], axis: Axis, draws: Draws) -> list[Mean]:
    """Means over the seeds that all the curves have, on their common grid; empty where there is none.

    Raises:
        UserError: a run does not move along the axis.
    """
    found = grid([curve.places for curve in curves], axis)
    if found is None:
        return []
    return [
        Mean(found.x_G, curve.mean(weights, draws), len(weights.seeds)) for curve, weights in zip(curves, found.sides, strict=True)
    ]


def band(curve: Curve, axis: Axis, draws: Draws) -> Band | None:
    """Mean and 95% interval of one line; None where its seeds share no stretch of the axis.

    Never within Wilson's interval of one seed's questions: seeds share them, and answers that are all right do not scatter.

    What it covers, simulated at one point: of one seed it is right for that run, and holds the mean over all seeds 85 times in 100
    where they scatter as much as 200 questions do, half the time where they scatter three times as much. Of two seeds it holds it
    99 times where they scatter as much as questions, 77 where they scatter six times as much; of three 99 and 84, of eight 90.
    """
    found = mean_curves([curve], axis, draws)
    if not found:
        return None
    (mean,) = found
    low_G, high_G = mean.sample.bounds
    floor = np.array([wilson(round(value * curve.n), curve.n) for value in np.clip(mean.mean_G, 0, 1)])
    low_G, high_G = np.minimum(low_G, floor[:, 0]), np.maximum(high_G, floor[:, 1])
    return Band(mean.x_G, mean.mean_G, np.clip(low_G, 0, 1), np.clip(high_G, 0, 1))


def interval(value_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95% percentile interval over the first dimension, the resamples."""
    low, high = np.quantile(value_R, BOUNDS, axis=0)
    return low, high


def covers(seeds: Iterable[int]) -> str:
    """What an interval of curves covers, for the numbers of seeds behind them."""
    few = min(seeds, default=0)
    if few <= 1:
        return "questions only: one seed says nothing of another"
    missed = {2: "one in four", 3: "one in six"}.get(few)
    note = f"; of {few} seeds {missed} leaves out the truth where seeds scatter six times as much as questions" if missed else ""
    return f"questions and seeds{note}"


@dataclass(frozen=True)
class Area:
    """Mean accuracy of ``curve`` from ``first`` to ``last``, or with ``less`` the difference of the two, with its 95% interval."""

    curve: Curve
    less: Curve | None
    scale: str
    value: float
    low: float
    high: float
    first: float
    last: float
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        """Never of few seeds, whose bootstrap is too narrow."""
        return self.seeds >= ENOUGH and (self.low > 0 or self.high < 0)


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


def area(curve: Curve, axis: Axis, draws: Draws, less: Curve | None = None) -> list[Area]:
    """On each scale; empty where the seeds (or the two curves) share less than two places."""
    means = mean_curves([curve] if less is None else [curve, less], axis, draws)
    if not means or len(means[0].x_G) < 2:
        return []
    x_G, mean_G, resampled_RG = means[0].x_G, means[0].mean_G, means[0].resampled_RG
    if less is not None:
        mean_G, resampled_RG = mean_G - means[1].mean_G, resampled_RG - means[1].resampled_RG
    found = []
    for scale, weights in SCALES.items():
        weight_G = weights(x_G)
        low, high = interval(resampled_RG @ weight_G)
        ends = float(x_G[0]), float(x_G[-1])
        found.append(Area(curve, less, scale, float(mean_G @ weight_G), float(low), float(high), *ends, means[0].seeds))
    return found
