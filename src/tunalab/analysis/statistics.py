"""Means over seeds and differences of variants with intervals, by the scatter of all cells together.

The two seeds of one pair of variants hardly show it: Student's t of one degree of freedom takes
12.7 standard errors, and a bootstrap of two values, which takes fewer, finds leads where there
are none. So cells that are compared, trained on the same seeds, are taken to scatter alike, as in
any analysis of variance, and their residuals estimate it together.

    C  cells (variants, or arms of a sweep)    S  seeds    I  items (questions)    R  resamples
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from tunalab.analysis.curves import TOLERANCE
from tunalab.evaluation.measure import Score, wilson
from tunalab.records.labels import identity
from tunalab.records.record import Record


@dataclass(frozen=True)
class Scatter:
    """``deviation``: the standard deviation of one run's value that neither its cell nor its seed explains; ``freedom``: degrees
    of freedom of that estimate.
    """

    deviation: float
    freedom: int

    def half_width(self, seeds: int, squares: float = 1.0) -> float:
        """Of the 95% interval of sum_c w_c mean_c over ``seeds``; ``squares``: sum_c w_c^2, 2 for a difference of two cells."""
        return float(stdtrit(self.freedom, 0.975)) * self.error(seeds, squares)

    def draws(self, resamples: int, seeds: int, squares: float, generator: np.random.Generator) -> np.ndarray:
        """As many errors of such a sum, (R,): Student's t at equal steps of probability, in random order."""
        probability_R = (np.arange(resamples) + 0.5) / resamples
        quantile_R: np.ndarray = stdtrit(self.freedom, generator.permutation(probability_R))
        return self.error(seeds, squares) * quantile_R

    def error(self, seeds: int, squares: float) -> float:
        return self.deviation * float(np.sqrt(squares / seeds))


def scatter_of_contrasts(value_CS: np.ndarray) -> Scatter | None:
    """For differences of cells paired by seed: what a seed does to all cells alike cancels. Freedom (C - 1)(S - 1).

    None of one seed, or of one cell.
    """
    freedom = (value_CS.shape[0] - 1) * (value_CS.shape[1] - 1)
    if freedom < 1:
        return None
    cells, seeds = value_CS.mean(axis=1, keepdims=True), value_CS.mean(axis=0, keepdims=True)
    residual_CS = value_CS - cells - seeds + value_CS.mean()
    return Scatter(float(np.sqrt((residual_CS**2).sum() / freedom)), freedom)


def scatter_of_means(value_CS: list[np.ndarray]) -> Scatter | None:
    """For the means of cells by themselves, each of its own number of seeds. Freedom sum_c (S_c - 1).

    None where every cell has one seed.
    """
    freedom = sum(len(value_S) - 1 for value_S in value_CS)
    if freedom < 1:
        return None
    squares = sum(float(((value_S - value_S.mean()) ** 2).sum()) for value_S in value_CS)
    return Scatter(float(np.sqrt(squares / freedom)), freedom)


@dataclass(frozen=True)
class Difference:
    """Accuracy of a minus accuracy of b with a 95% bootstrap interval. ``by_item``: paired question by question."""

    mean: float
    low: float
    high: float
    seeds: int
    n: int
    by_item: bool

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def pooled(aligned: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, a row per (variant, setting, benchmark, tokens) of a table from ``align_tokens``.

    Columns: ``accuracy`` (mean over seeds), ``seeds``, ``n`` (questions, all seeds together), ``chance``; ``low`` and ``high``,
    the interval to shade: the half-widths of Wilson's interval of the pooled counts and Student's half-width of the mean over
    seeds, added in squares, with the scatter of all variants and settings at that point. With one seed nothing says how seeds
    scatter, and it is Wilson's alone. Seeds answer the same questions, so pooled counts are less independent than Wilson
    assumes; the seed term counts some of the questions' noise twice. The two err in opposite directions.

    Raises:
        ValueError: a seed occurs twice in what is to be averaged (tables of several ``curves`` put together).
    """
    rows = []
    keys = ["variant", "setting", "benchmark", "tokens"]
    scatters = {
        place: scatter_of_means([cell["accuracy"].to_numpy(dtype=float) for _, cell in part.groupby(["variant", "setting"])])
        for place, part in aligned.groupby(["benchmark", "tokens"])
    }
    for key, part in aligned.groupby(keys, sort=True):
        if part["seed"].duplicated().any():
            raise ValueError(f"a mean over {', '.join(part['run'])} would mix runs that differ in more than the seed")
        accuracy = part["accuracy"].to_numpy(dtype=float)
        correct, n, mean = int(part["correct"].sum()), int(part["n"].sum()), float(accuracy.mean())
        bounds = wilson(correct, n)
        scatter = scatters[key[2:]]  # type: ignore[index]
        error = scatter.half_width(len(accuracy)) if scatter is not None and len(accuracy) > 1 else 0.0
        below, above = (float(np.hypot(correct / n - bound, error)) for bound in bounds)
        rows.append((*key, mean, max(0.0, mean - below), min(1.0, mean + above), len(accuracy), n, float(part["chance"].mean())))  # type: ignore[misc]
    return pd.DataFrame(rows, columns=[*keys, "accuracy", "low", "high", "seeds", "n", "chance"])


def score_at(record: Record, benchmark: str, tokens: int) -> Score | None:
    """The score at ``tokens`` (the nearest evaluation within ``TOLERANCE``), None where the run has none."""
    near = [point for point in record.points if abs(point.tokens - tokens) <= TOLERANCE * tokens and benchmark in point.benchmarks]
    return min(near, key=lambda point: abs(point.tokens - tokens)).benchmarks[benchmark] if near else None


def paired_difference(
    a: Sequence[Record],
    b: Sequence[Record],
    benchmark: str,
    tokens: int,
    among: Sequence[Sequence[Record]] = (),
    resamples: int = 2000,
) -> Difference | None:
    """Accuracy of ``a`` minus that of ``b`` at equal tokens with a 95% interval; None without a common seed.

    Runs of the two variants are paired by seed (same data order, noise, masks). Questions are drawn with replacement, the same
    draw for both variants and all seeds; to each draw is added Student's t of the scatter between seeds, estimated from all cells
    ``among`` which the two stand, by default these two alone. With one seed only questions are resampled, and the interval says
    nothing about other seeds. Simulated, three variants of equal ability, two seeds, 200 questions: zero is excluded 0, 1, 5 and
    8 times in 100 where seeds scatter not at all, as much as, three and ten times as much as questions do.

    Where records hold no outcomes per question, each run's accuracy is drawn from its own Beta(correct + 1/2, wrong + 1/2)
    instead: correct, but wider, as the pairing by question is lost.

    Raises:
        ValueError: the records of one side differ in more than the seed.
    """
    for side in (a, b):
        if len({identity(record) for record in side}) > 1 or len({record.run.seed for record in side}) < len(side):
            raise ValueError(f"{', '.join(record.run.name for record in side)}: these runs differ in more than the seed")
    by_seed = [{record.run.seed: score_at(record, benchmark, tokens) for record in side} for side in (a, b)]
    both = ((by_seed[0][number], by_seed[1][number]) for number in sorted(by_seed[0].keys() & by_seed[1].keys()))
    pairs = [(first, second) for first, second in both if first is not None and second is not None]
    if not pairs:
        return None
    gap_SI = _item_gaps(pairs)
    if gap_SI is not None:
        (gap_RS,), generator = _resampled([gap_SI], resamples)
    else:
        generator = np.random.default_rng(0)
        beta = (tuple(generator.beta(one.correct + 0.5, one.n - one.correct + 0.5, resamples) for one in pair) for pair in pairs)
        gap_RS = np.stack([first_R - second_R for first_R, second_R in beta], axis=1)
    gaps = [first.accuracy - second.accuracy for first, second in pairs]
    scatter = _scatter_among(among, benchmark, tokens) or scatter_of_means([np.array(gaps) / np.sqrt(2)])
    low, high = _interval(gap_RS, scatter, 2.0, generator)
    return Difference(float(np.mean(gaps)), low, high, len(pairs), pairs[0][0].n, gap_SI is not None)


def joint_interval(
    values_SI: Sequence[np.ndarray], scatter: Scatter | None, squares: float, resamples: int = 2000
) -> tuple[float, float]:
    """95% interval of the mean of values by seed and item, over one or several benchmarks, each with items of its own.

    The values: sum_c w_c y_c over the cells of a contrast, ``squares`` = sum_c w_c^2; ``scatter`` of one cell's mean between
    seeds, None where there is no estimate of it. Resampled as in :func:`paired_difference`.
    """
    value_KRS, generator = _resampled(values_SI, resamples)
    return _interval(np.mean(value_KRS, axis=0), scatter, squares, generator)


def above_chance(aligned: pd.DataFrame) -> dict[tuple[str, str], dict[str, bool]]:
    """(variant, setting) -> benchmark -> whether the pooled 95% lower bound at its last point is above chance."""
    last = pooled(aligned).sort_values("tokens").groupby(["variant", "setting", "benchmark"]).tail(1)
    found: dict[tuple[str, str], dict[str, bool]] = {}
    for row in last.to_dict("records"):
        found.setdefault((str(row["variant"]), str(row["setting"])), {})[str(row["benchmark"])] = bool(row["low"] > row["chance"])
    return found


def _item_gaps(pairs: list[tuple[Score, Score]]) -> np.ndarray | None:
    """a - b per seed and question, shape (S, I); None unless every run answered the same number of questions on record."""
    if len({score.n for pair in pairs for score in pair}) != 1:
        return None
    items = [[one for one in (first.items(), second.items()) if one is not None] for first, second in pairs]
    return np.array([np.subtract(*pair, dtype=float) for pair in items]) if all(len(pair) == 2 for pair in items) else None


def _resampled(values_SI: Sequence[np.ndarray], resamples: int) -> tuple[list[np.ndarray], np.random.Generator]:
    """Means of each resample over items drawn with replacement, (R, S) of each, and the generator for further draws."""
    shares, state = _shares(tuple(value_SI.shape[1] for value_SI in values_SI), resamples)
    generator = np.random.default_rng(0)
    generator.bit_generator.state = state
    return [share_RI @ value_SI.T for share_RI, value_SI in zip(shares, values_SI, strict=True)], generator


@lru_cache(maxsize=16)
def _shares(counts: tuple[int, ...], resamples: int) -> tuple[list[np.ndarray], Any]:
    """How often each item is drawn, as shares (R, I), instead of the draws themselves: one matrix product for all resamples."""
    generator = np.random.default_rng(0)
    shares = [generator.multinomial(n, np.full(n, 1 / n), size=resamples) / n for n in counts]
    return shares, generator.bit_generator.state


def _interval(value_RS: np.ndarray, scatter: Scatter | None, squares: float, generator: np.random.Generator) -> tuple[float, float]:
    value_R = value_RS.mean(axis=1)
    if scatter is not None:
        value_R = value_R + scatter.draws(len(value_RS), value_RS.shape[1], squares, generator)
    low, high = np.quantile(value_R, [0.025, 0.975])
    return float(low), float(high)


def _scatter_among(among: Sequence[Sequence[Record]], benchmark: str, tokens: int) -> Scatter | None:
    """Of the accuracies of cells, over the seeds that all of them have."""
    cells = []
    for side in among:
        found = {record.run.seed: score_at(record, benchmark, tokens) for record in side}
        cells.append({number: score.accuracy for number, score in found.items() if score is not None})
    cells = [cell for cell in cells if cell]
    common = sorted(set.intersection(*map(set, cells))) if cells else []
    return scatter_of_contrasts(np.array([[cell[number] for number in common] for cell in cells])) if common else None
