"""Learning curves and their resamples: what bands, crossings, areas and power laws are all made of.

What a resample is: the questions of a benchmark are drawn with replacement, the same draw for every run at every point; seeds are
drawn with replacement, the same draw for the variants that are compared. Between two evaluations a curve is the straight
line over the logarithm of the axis.

    R  resamples    I  questions    S  seeds    P  evaluations of a run    G  places of a common grid
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from tunalab.errors import UserError
from tunalab.evaluation.intervals import wilson
from tunalab.evaluation.score import Score
from tunalab.results.analysis.axes import Axis
from tunalab.results.analysis.curves import joined, usable
from tunalab.results.labels import ordered_variants
from tunalab.results.records import Point, Record
from tunalab.results.settings import Setting, told_apart

RESAMPLES = 1000
BOUNDS = (0.025, 0.975)


@dataclass(frozen=True, eq=False)
class Line:
    """Runs of one variant at one setting, which differ in the seed alone, by seed."""

    variant: str
    setting: Setting
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Asked:
    """One run on one benchmark: the evaluations that asked it, its accuracy there, and that of each resample of questions."""

    record: Record
    points: tuple[Point, ...]
    accuracy_P: np.ndarray
    resampled_RP: np.ndarray
    _places: dict[str, np.ndarray] = field(default_factory=dict, compare=False)

    def places(self, axis: Axis) -> np.ndarray:
        """Raises UserError: the run does not move along the axis."""
        if axis.name not in self._places:
            self._places[axis.name] = self._found(axis)
        return self._places[axis.name]

    def _found(self, axis: Axis) -> np.ndarray:
        x_P = np.array([axis.place(self.record, point) for point in self.points], dtype=float)
        if x_P[0] <= 0 or (np.diff(x_P) <= 0).any():
            raise UserError(f"{self.record.run.name}: {axis.label} do not grow from evaluation to evaluation")
        return x_P


@dataclass(frozen=True)
class Curve:
    """A line on one benchmark: a run a seed. ``by_item``: from outcomes per question, not from counts alone."""

    line: Line
    benchmark: str
    runs: dict[int, Asked]
    n: int
    chance: float
    by_item: bool
    _sums: dict[tuple[object, ...], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, compare=False)

    def weighted_sum(self, seeds: Sequence[int], some: Sequence[int], draws: "Draws") -> tuple[np.ndarray, np.ndarray]:
        """What ``some`` of the ``seeds``, with evaluations in common, add to the mean over all of them, (P,) and (R, P).

        Kept: it is the same on most axes, and of hundreds of seeds it takes longest.
        """
        key = (draws.resamples, draws.seed, tuple(seeds), tuple(some))
        if key not in self._sums:
            weight_RS, runs = draws.seeds(len(seeds)), [self.runs[seed] for seed in some]
            resampled_RP = np.zeros_like(runs[0].resampled_RP)
            for seed, run in zip(some, runs, strict=True):
                resampled_RP += weight_RS[:, seeds.index(seed), None] * run.resampled_RP
            self._sums[key] = np.sum([run.accuracy_P for run in runs], axis=0) / len(seeds), resampled_RP
        return self._sums[key]


@dataclass(frozen=True)
class Mean:
    """A mean over seeds on a grid of places, and that of each resample."""

    x_G: np.ndarray
    mean_G: np.ndarray
    resampled_RG: np.ndarray
    seeds: int


@dataclass(frozen=True)
class Band:
    """A mean curve with the bounds of its 95% interval, place by place."""

    x_G: np.ndarray
    mean_G: np.ndarray
    low_G: np.ndarray
    high_G: np.ndarray
    seeds: int
    n: int


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
        """The weight of each seed in the mean of each resample, shape (R, S).

        Deviations from equal weights are widened by sqrt(S / (S - 1)): a bootstrap of S values shows (S - 1) / S of their variance.
        """
        if count not in self._seeds:
            drawn_RS = np.random.default_rng([self.seed, 1, count]).integers(count, size=(self.resamples, count))
            place_RS = drawn_RS + count * np.arange(self.resamples)[:, None]
            share_RS = np.bincount(place_RS.ravel(), minlength=drawn_RS.size).reshape(drawn_RS.shape) / count
            widening = np.sqrt(count / (count - 1)) if count > 1 else 0.0
            self._seeds[count] = 1 / count + widening * (share_RS - 1 / count)
        return self._seeds[count]

    def counts(self, score: Score, place: Sequence[int]) -> np.ndarray:
        """Accuracy of each resample where only the count of right answers is known: Beta(right + 1/2, wrong + 1/2), shape (R,)."""
        generator = np.random.default_rng([self.seed, 2, *place])
        return generator.beta(score.correct + 0.5, score.n - score.correct + 0.5, size=self.resamples)


def lines(records: Sequence[Record]) -> list[Line]:
    """The lines of a figure: variants in their order, settings by size.

    Raises:
        UserError: two records are the same run.
    """
    shown = usable(records)
    groups: dict[tuple[str, Setting], dict[int, Record]] = {}
    for record, setting in zip(shown, told_apart(shown), strict=True):
        runs = groups.setdefault((record.run.variant, setting), {})
        if record.run.seed in runs:
            raise UserError(
                f"records {runs[record.run.seed].run.name} and {record.run.name} are the same run: variant {record.run.variant}, "
                f"seed {record.run.seed}, no setting differs"
            )
        runs[record.run.seed] = record
    order = ordered_variants(variant for variant, _ in groups)
    keys = sorted(groups, key=lambda key: (order.index(key[0]), key[1].place))
    return [Line(*key, tuple(record for _, record in sorted(groups[key].items()))) for key in keys]


def moves(shown: Sequence[Line], axis: Axis) -> bool:
    """Whether every run has a place on the axis, and a later one at every evaluation."""
    try:
        places = [[axis.place(record, point) for point in record.points] for line in shown for record in line.records]
    except UserError:  # a record lacks what the axis needs
        return False
    return all(a < b for x in places for a, b in pairwise([0.0, *x]))


def benchmarks(records: Iterable[Record]) -> set[str]:
    return {name for record in records for point in record.points for name in point.benchmarks}


def learning_curves(shown: Sequence[Line], benchmark: str, draws: Draws) -> list[Curve]:
    """The curves of one benchmark, of the lines that were asked it."""
    asked = [
        (line, record, [(point, point.benchmarks[benchmark]) for point in record.points if benchmark in point.benchmarks])
        for line in shown
        for record in line.records
    ]
    asked = [one for one in asked if one[2]]
    scores = [score for _, _, pairs in asked for _, score in pairs]
    resampled_KR, by_item = _resampled(scores, draws)
    curves: dict[int, Curve] = {}
    start = 0
    for line, record, pairs in asked:
        own = scores[start : start + len(pairs)]
        run = Asked(
            record,
            tuple(point for point, _ in pairs),
            np.array([score.correct / score.n for score in own]),
            resampled_KR[start : start + len(pairs)].T,
        )
        chance = float(np.mean([score.chance for score in own]))
        curve = curves.setdefault(id(line), Curve(line, benchmark, {}, own[-1].n, chance, by_item))
        curve.runs[record.run.seed] = run
        start += len(pairs)
    return list(curves.values())


def _resampled(scores: Sequence[Score], draws: Draws) -> tuple[np.ndarray, bool]:
    """Accuracy of each of K scores in each resample (K, R), and whether it is from outcomes: only if all have them, for as many."""
    if len({score.n for score in scores}) == 1:
        items = [score.items() for score in scores]
        known = [item for item in items if item is not None]
        if len(known) == len(items):
            n = scores[0].n
            return (np.array(known, dtype=np.float32) @ draws.questions(n).T) / np.float64(n), True
    return np.stack([draws.counts(score, [place]) for place, score in enumerate(scores)]), False


def common_seeds(*curves: Curve) -> list[int]:
    return sorted(set.intersection(*(set(curve.runs) for curve in curves)))


def mean_curves(curves: Sequence[Curve], axis: Axis, draws: Draws) -> list[Mean]:
    """Means over the seeds that all the curves have, on one grid: every place where one of their runs was evaluated, from the
    last of the first to the first of the last. Without a common seed or place there is no mean: the result is empty.
    """
    seeds = common_seeds(*curves)
    if not seeds:
        return []
    places = {(curve.line, seed): curve.runs[seed].places(axis) for curve in curves for seed in seeds}
    same = joined(np.concatenate(list(places.values())).tolist())
    places = {key: np.array([same[x] for x in x_P]) for key, x_P in places.items()}
    first, last = max(x_P[0] for x_P in places.values()), min(x_P[-1] for x_P in places.values())
    x_G = np.array(sorted({x for x_P in places.values() for x in x_P.tolist() if first <= x <= last}))
    if not len(x_G):
        return []
    means = []
    for curve in curves:
        alike: dict[tuple[float, ...], list[int]] = {}  # seeds that were evaluated at the same places
        for seed in seeds:
            alike.setdefault(tuple(places[curve.line, seed].tolist()), []).append(seed)
        mean_G, resampled_RG = np.zeros(len(x_G)), np.zeros((draws.resamples, len(x_G)))
        for x, some in alike.items():
            sum_P, resampled_RP = curve.weighted_sum(seeds, some, draws)
            weight_GP = interpolation(np.array(x), x_G)
            mean_G += weight_GP @ sum_P
            resampled_RG += resampled_RP @ weight_GP.T
        means.append(Mean(x_G, mean_G, resampled_RG, len(seeds)))
    return means


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
    low_G, high_G = interval(mean.resampled_RG)
    floor = np.array([wilson(round(value * curve.n), curve.n) for value in np.clip(mean.mean_G, 0, 1)])
    low_G, high_G = np.minimum(low_G, floor[:, 0]), np.maximum(high_G, floor[:, 1])
    return Band(mean.x_G, mean.mean_G, np.clip(low_G, 0, 1), np.clip(high_G, 0, 1), mean.seeds, curve.n)


def interval(value_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95% percentile interval over the first dimension, the resamples."""
    low, high = np.quantile(value_R, BOUNDS, axis=0)
    return low, high


def covers(seeds: Iterable[int]) -> str:
    """What an interval of curves covers, said for the numbers of seeds behind them."""
    few = min(seeds, default=0)
    if few <= 1:
        return "questions only: one seed says nothing of another"
    if few < 4:
        return f"questions and seeds; {few} seeds show little of how seeds scatter"
    return "questions and seeds"
