"""Means over seeds and differences of variants, with intervals, and what to do where there are many of them.

An interval of a difference has two parts, added in squares:

    seeds      Student's t over the differences by seed: pairs of runs with the same data order, noise and questions
    questions  1.96 standard errors over the questions, of the difference averaged over seeds

All seeds answer the same questions, so that seeds alone say how other trainings would do on these
questions. Where variants are good at different questions that is too narrow: it covers the truth
.81 to .93 of the time, with the second part .94 or more (`tunalab verify coverage`). Only the two
cells of a contrast enter it: cells that scatter differently, or share a trunk of training, are
never pooled. One seed has no interval, because nothing says how seeds scatter.

    S  seeds    I  items (questions)    K  benchmarks
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, hypot, inf, isinf, isnan, log, sqrt

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtri, stdtrit

from tunalab.analysis.curves import TOLERANCE
from tunalab.evaluation.measure import Score, wilson
from tunalab.records.labels import identity
from tunalab.records.record import Record

LEVEL = 0.95
ALPHA = 0.05  # of corrected p-values: below it a difference is called one
MOST = 1000  # seeds that an answer to "how many" goes up to


@dataclass(frozen=True)
class Estimate:
    """A mean over ``seeds`` with its 95% interval; of one seed it has none, but where it says so.

    ``error``: standard error over seeds; ``questions``: that over the ``n`` questions of one seed. ``by_item``: the latter is of
    pairs of answers, else of counts alone.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int
    error: float = 0.0
    questions: float = 0.0
    n: int = 0
    by_item: bool = True

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def bounds(self) -> tuple[float, float | None, float | None]:
        return self.value, self.low, self.high

    @property
    def p(self) -> float | None:
        """Two-sided, of 0: one less the level at which the interval begins to hold it. None of one seed."""
        if self.seeds < 2:
            return None
        if self.value == 0 or not (self.questions or self.error):
            return 1.0 if self.value == 0 else 0.0

        def beyond(log_p: float) -> float:
            return _half(self.error, self.seeds - 1, self.questions, 1 - exp(log_p)) - abs(self.value)

        least = log(1e-12)
        return 1e-12 if beyond(least) < 0 else exp(brentq(beyond, least, 0.0))


def of_seeds(
    value_S: Sequence[float] | np.ndarray, questions: float = 0.0, n: int = 0, by_item: bool = True, step: float = 0.0
) -> Estimate:
    """The mean of values by seed. ``questions``: standard error over the questions that all seeds share.

    ``step``: values are multiples of it, as shares of n questions are of 1/n. Seeds that agree do so up to rounding, which has a
    variance of step^2 / 12: without it two seeds that happen to agree would have no scatter at all.
    """
    values = np.asarray(value_S, dtype=float)
    mean, seeds = float(values.mean()), len(values)
    if seeds < 2:
        return Estimate(mean, None, None, seeds, 0.0, questions, n, by_item)
    error = hypot(float(values.std(ddof=1)), step / sqrt(12)) / sqrt(seeds)
    half = _half(error, seeds - 1, questions, LEVEL)
    return Estimate(mean, mean - half, mean + half, seeds, error, questions, n, by_item)


def half_width(value_S: np.ndarray, questions: float = 0.0, level: float = LEVEL) -> float:
    """Of the interval of the mean of values by seed, of two seeds or more."""
    return _half(float(value_S.std(ddof=1)) / sqrt(len(value_S)), len(value_S) - 1, questions, level)


def _half(error: float, freedom: int, questions: float, level: float) -> float:
    tail = (1 + level) / 2
    return hypot(float(stdtrit(freedom, tail)) * error, float(ndtri(tail)) * questions)


def question_error(value_KSI: Sequence[np.ndarray], shares: bool = True) -> float:
    """Standard error over questions of a mean over seeds and benchmarks, each with questions of its own, (S, I).

    ``shares``: values are right or wrong, or differences of such. Then it is as if one question more told the sides apart: where
    none does, others still may.
    """
    squares = 0.0
    for value_SI in value_KSI:
        mean_I = value_SI.mean(axis=0)
        items = len(mean_I)
        around = float(((mean_I - mean_I.mean()) ** 2).sum()) + (1.0 if shares else 0.0)
        squares += around / (items * max(items - 1, 1))
    return sqrt(squares) / len(value_KSI)


def lasting_error(value_KSI: Sequence[np.ndarray]) -> float:
    """The part of ``question_error`` that more seeds do not make smaller: of questions that tell the sides apart, not of answers
    that are luck. 0 where all of it may be luck.

    By expected mean squares of a table of seeds and questions: the variance between questions less that of what is left when seeds
    and questions are taken out, over the seeds. Of one seed nothing tells them apart.
    """
    squares = 0.0
    for value_SI in value_KSI:
        seeds, items = value_SI.shape
        if seeds < 2 or items < 2:
            return question_error(value_KSI, shares=False)
        mean_I = value_SI.mean(axis=0)
        left_SI = value_SI - mean_I - (value_SI.mean(axis=1) - mean_I.mean())[:, None]
        luck = float((left_SI**2).sum()) / ((seeds - 1) * (items - 1))
        squares += (float(mean_I.var(ddof=1)) - luck / seeds) / items
    return sqrt(max(squares, 0.0)) / len(value_KSI)


def of_items(value_KSI: Sequence[np.ndarray], shares: bool = True) -> Estimate:
    """The mean over seeds, benchmarks and their questions."""
    value_S = np.mean([value_SI.mean(axis=1) for value_SI in value_KSI], axis=0)
    n = sum(value_SI.shape[1] for value_SI in value_KSI)
    return of_seeds(value_S, question_error(value_KSI, shares), n, step=1 / n if shares else 0.0)


def equivalent(value_S: np.ndarray, margin: float, questions: float = 0.0) -> bool:
    """Two one-sided tests at 5%: the 90% interval of the mean lies within the margin, which was stated before the runs."""
    return equivalence_p(value_S, margin, questions) < ALPHA


def equivalence_p(value_S: np.ndarray, margin: float, questions: float = 0.0) -> float:
    """The larger p-value of two one-sided tests, of a mean beyond the margin on either side; 1 of one seed."""
    if len(value_S) < 2:
        return 1.0
    left = margin - abs(float(value_S.mean()))

    def beyond(log_p: float) -> float:
        return half_width(value_S, questions, 1 - 2 * exp(log_p)) - left

    least, most = log(1e-12), log(0.5)  # at .5 the interval is the mean alone
    return 1.0 if beyond(most) >= 0 else 1e-12 if beyond(least) < 0 else exp(brentq(beyond, least, most))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values: of at most 5% of families one is wrongly below .05. Holm (1979). None stays and is not counted."""
    return _adjusted(p_values, lambda rank, count: count - rank, np.maximum.accumulate)


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values: of those below .05 at most 5% are wrong, on average. Benjamini and Hochberg (1995). None as in holm."""
    return _adjusted(p_values, lambda rank, count: count / (rank + 1), lambda p_M: np.minimum.accumulate(p_M[::-1])[::-1])


def _adjusted(
    p_values: Sequence[float | None], factor: Callable[[int, int], float], monotone: Callable[[np.ndarray], np.ndarray]
) -> list[float | None]:
    """``factor``: of the rank of M p-values in ascending order, and M."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None and not isnan(p))
    found: list[float | None] = [None] * len(p_values)
    if known:
        p_M = np.array([p * factor(rank, len(known)) for rank, (p, _) in enumerate(known)])
        for (_, index), value in zip(known, monotone(p_M).tolist(), strict=True):
            found[index] = min(1.0, value)
    return found


def pooled(aligned: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, a row per (variant, setting, benchmark, tokens) of a table from ``align_tokens``.

    Columns: ``accuracy`` (mean over seeds), ``seeds``, ``n`` (questions, all seeds together), ``chance``; ``low`` and ``high``,
    the interval to shade (:func:`share_interval`).

    Raises:
        ValueError: a seed occurs twice in what is to be averaged (tables of several ``curves`` put together).
    """
    rows = []
    keys = ["variant", "setting", "benchmark", "tokens"]
    for key, part in aligned.groupby(keys, sort=True):
        if part["seed"].duplicated().any():
            raise ValueError(f"a mean over {', '.join(part['run'])} would mix runs that differ in more than the seed")
        accuracy, n = part["accuracy"].to_numpy(dtype=float), part["n"].to_numpy(dtype=float)
        mean, seeds = float(accuracy.mean()), len(accuracy)
        bounds = share_interval(accuracy, float(n.mean()))
        rows.append((*key, mean, *bounds, seeds, int(n.sum()), float(part["chance"].mean())))  # type: ignore[misc]
    return pd.DataFrame(rows, columns=[*keys, "accuracy", "low", "high", "seeds", "n", "chance"])


def share_interval(share_S: np.ndarray, n: float) -> tuple[float, float]:
    """95% interval of the mean of shares of ``n`` questions that all seeds share: Wilson's of one seed's questions and that over
    the seeds, added in squares. Of one seed it is Wilson's, which holds for that run alone.

    Over seeds it is the wider of two, on each side: Student's t of the shares, and of their log-odds. Where some seeds take off
    and others do not, a few that all stand low say too little of those that do not: the first alone covers .92.
    """
    mean, seeds = float(share_S.mean()), len(share_S)
    below, above = (abs(bound - mean) for bound in wilson(min(mean * n, n), n))
    down = up = 0.0
    if seeds > 1:
        down = up = half_width(share_S)
        odds_S = logit((share_S * n + 0.5) / (n + 1))  # half an answer more of each: shares of 0 and 1 have log-odds too
        inside, centre, half = (mean * n + 0.5) / (n + 1), float(odds_S.mean()), half_width(odds_S)
        down, up = max(down, inside - float(expit(centre - half))), max(up, float(expit(centre + half)) - inside)
    return max(0.0, mean - hypot(below, down)), min(1.0, mean + hypot(above, up))


def score_at(record: Record, benchmark: str, tokens: int) -> Score | None:
    """The score at ``tokens`` (the nearest evaluation within ``TOLERANCE``), None where the run has none."""
    near = [point for point in record.points if abs(point.tokens - tokens) <= TOLERANCE * tokens and benchmark in point.benchmarks]
    return min(near, key=lambda point: abs(point.tokens - tokens)).benchmarks[benchmark] if near else None


def paired_difference(a: Sequence[Record], b: Sequence[Record], benchmark: str, tokens: int) -> Estimate | None:
    """Accuracy of ``a`` minus that of ``b`` at equal tokens, over the seeds that both have; None without one.

    Raises:
        ValueError: the records of one side differ in more than the seed.
    """
    for side in (a, b):
        if len({identity(record) for record in side}) > 1 or len({record.run.seed for record in side}) < len(side):
            raise ValueError(f"{', '.join(record.run.name for record in side)}: these runs differ in more than the seed")
    by_seed = [{record.run.seed: score_at(record, benchmark, tokens) for record in side} for side in (a, b)]
    both = ((by_seed[0][number], by_seed[1][number]) for number in sorted(by_seed[0].keys() & by_seed[1].keys()))
    pairs = [(first, second) for first, second in both if first is not None and second is not None]
    return of_pairs(pairs) if pairs else None


def of_pairs(pairs: Sequence[tuple[Score, Score]]) -> Estimate:
    """The first minus the second of each seed, question by question where outcomes are on record."""
    gap_S, n = [first.accuracy - second.accuracy for first, second in pairs], pairs[0][0].n
    gap_SI = item_gaps(pairs)
    if gap_SI is not None:
        return of_seeds(gap_S, question_error([gap_SI]), n, step=1 / n)
    error = sqrt(sum(_share_variance(side) for side in zip(*pairs, strict=True)))
    return of_seeds(gap_S, error, n, by_item=False, step=1 / n)


def _share_variance(scores: Sequence[Score]) -> float:
    """Of a share of questions that all seeds share, from counts: never less than as if half an answer were otherwise."""
    n = scores[0].n
    share = (float(np.mean([score.accuracy for score in scores])) * n + 0.5) / (n + 1)
    return share * (1 - share) / n


def item_gaps(pairs: Sequence[tuple[Score, Score]]) -> np.ndarray | None:
    """a - b per seed and question, shape (S, I); None unless every run answered the same number of questions on record."""
    if len({score.n for pair in pairs for score in pair}) != 1:
        return None
    items = [[one for one in (first.items(), second.items()) if one is not None] for first, second in pairs]
    return np.array([np.subtract(*pair, dtype=float) for pair in items]) if all(len(pair) == 2 for pair in items) else None


def of_two_runs(pair: tuple[Score, Score]) -> Estimate:
    """The difference of two runs, with the interval over questions alone: it holds for these runs, not for other seeds."""
    found = of_pairs([pair])
    half = float(ndtri((1 + LEVEL) / 2)) * found.questions
    return replace(found, low=found.value - half, high=found.value + half)


def above_chance(aligned: pd.DataFrame) -> dict[tuple[str, str], dict[str, bool]]:
    """(variant, setting) -> benchmark -> whether the pooled 95% lower bound at its last point is above chance."""
    last = pooled(aligned).sort_values("tokens").groupby(["variant", "setting", "benchmark"]).tail(1)
    found: dict[tuple[str, str], dict[str, bool]] = {}
    for row in last.to_dict("records"):
        found.setdefault((str(row["variant"]), str(row["setting"])), {})[str(row["benchmark"])] = bool(row["low"] > row["chance"])
    return found


@dataclass(frozen=True)
class Needed:
    """Seeds that a difference needs, with ``times`` as many questions (or documents) as it was measured with.

    inf seeds: over ``MOST``.
    """

    seeds: float
    times: int

    @property
    def shown(self) -> str:
        if isinf(self.seeds):
            return f"over {MOST:,}"
        return f"{int(self.seeds):,}" + (f" with {self.times} x the questions" if self.times > 1 else "")


def needed(value_S: np.ndarray, questions: float = 0.0, power: float = 0.8, alpha: float = ALPHA) -> Needed:
    """``questions``: the error over them that lasts (``lasting_error``). The fewest questions, in powers of two of those that were
    asked, with which at most twice as many seeds are needed as if questions were without end: a question costs little beside a run,
    but past that point more of them save nothing.
    """
    least = seeds_needed(value_S, 0.0, power, alpha)
    for times in (2**doublings for doublings in range(11)):
        seeds = seeds_needed(value_S, questions / sqrt(times), power, alpha)
        if seeds <= 2 * least and not isinf(seeds):
            return Needed(seeds, times)
    return Needed(inf, 1)


def seeds_needed(value_S: np.ndarray, questions: float = 0.0, power: float = 0.8, alpha: float = ALPHA) -> float:
    """Seeds at which a difference as large as the mean is found in ``power`` of the experiments, at level ``alpha``; inf: beyond
    ``MOST``, or more than questions alone allow.

    By the noncentral t distribution, with the scatter between these seeds. The questions' part does not fall with seeds.
    """
    from scipy.stats import nct

    deviation, effect = float(value_S.std(ddof=1)), abs(float(value_S.mean()))
    if effect == 0 or not (deviation or questions):
        return 2 if effect else inf
    seeds_N = np.arange(2, MOST + 1)
    over_seeds_N = deviation / np.sqrt(seeds_N)
    threshold_N = np.hypot(stdtrit(seeds_N - 1, 1 - alpha / 2) * over_seeds_N, ndtri(1 - alpha / 2) * questions)
    error_N = np.hypot(over_seeds_N, questions)
    # Seeds that agree up to rounding: beyond some 1e8 the distribution is nan.
    enough_N = nct.sf(threshold_N / error_N, seeds_N - 1, np.minimum(effect / error_N, 1e8)) >= power
    return int(seeds_N[enough_N.argmax()]) if enough_N.any() else inf
