"""How often the intervals of tables and figures hold the truth, and how often a table decides wrongly, in simulated worlds.

A world has two arms of equal or different ability, seeds that scatter, questions of different difficulty, and arms that are good at
different questions. Its truth is over all seeds and all questions that there might be. What is checked is the code that tables
use (analysis/statistics.py, learning.py, crossing.py), not a formula of its own.

    W  worlds    S  seeds    I  questions    P  places of a curve
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.special import expit, ndtri

from tunalab.analysis.statistics import benjamini_hochberg, equivalent, holm, of_items, of_seeds, question_error, share_interval
from tunalab.verification import Table

WORLDS = 4000
SEEDS = (2, 3, 5, 9)
QUESTIONS = 200
FAMILY = 24  # differences of a family, as many as the paper's claims have here
MARGIN = 0.05  # of the tests of equivalence
_NODES = 400  # of an integral over the normal distribution


@dataclass(frozen=True)
class World:
    """Log-odds of a right answer: ``ability`` -+ half of ``gap``, plus normal deviates: of a seed and arm (``seeds``), of a seed
    for both arms (``shared``, what a common trunk of training leaves), of a question (``items``), of a question and arm
    (``arms``), and of everything together (``rest``). ``second``: how many times as much the seeds of the second arm scatter.
    """

    name: str
    ability: float = 0.0
    gap: float = 0.0
    seeds: float = 0.4
    shared: float = 0.0
    items: float = 1.0
    arms: float = 0.5
    rest: float = 1.0
    second: float = 1.0

    def truth(self) -> tuple[float, float]:
        """Accuracies of both arms."""
        return self._mean(1), self._mean(-1)

    def _mean(self, side: int) -> float:
        own = self.seeds * (self.second if side < 0 else 1.0)
        scatter = float(np.sqrt(own**2 + self.shared**2 + self.items**2 + self.arms**2 + self.rest**2))
        return float(expit(self.ability + side * self.gap / 2 + scatter * _nodes()).mean())

    def answers(self, generator: np.random.Generator, seeds: int, questions: int = QUESTIONS) -> np.ndarray:
        """(2, S, I) bool."""
        normal = generator.standard_normal
        common = self.items * normal(questions) + self.shared * normal((seeds, 1))
        arms = []
        for side, scatter in ((1, self.seeds), (-1, self.seeds * self.second)):
            own = self.arms * normal(questions) + scatter * normal((seeds, 1)) + self.rest * normal((seeds, questions))
            arms.append(expit(self.ability + side * self.gap / 2 + common + own))
        return np.asarray(generator.random((2, seeds, questions)) < np.array(arms))


@cache
def _nodes() -> np.ndarray:
    return np.asarray(ndtri((np.arange(_NODES) + 0.5) / _NODES))


SHAPES = (
    World("plain"),
    World("a gap", gap=0.6),
    World("seeds do not scatter", seeds=0.0),
    World("one arm scatters four times as much", seeds=0.3, second=4.0),
    World("a shared trunk", seeds=0.15, shared=0.8),
    World("arms are good at different questions", seeds=0.2, arms=1.5),
    World("near the ceiling", ability=4.0, gap=0.5, seeds=0.8),
    World("at the ceiling", ability=7.0, gap=1.0, seeds=0.8),
    World("near the floor", ability=-4.0, gap=0.5, seeds=0.8),
    World("some seeds take off, some do not", ability=-1.0, gap=1.0, seeds=2.5),
)


def covered_difference(world: World, seeds: int, generator: np.random.Generator) -> bool:
    one, other = world.answers(generator, seeds).astype(float)
    found, truth = of_items([one - other]), np.subtract(*world.truth())
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


def covered_mean(world: World, seeds: int, generator: np.random.Generator) -> bool:
    low, high = share_interval(world.answers(generator, seeds)[0].mean(axis=1), QUESTIONS)
    return low <= world.truth()[0] <= high


def covered_mean_of_benchmarks(world: World, seeds: int, generator: np.random.Generator) -> bool:
    """Of four benchmarks with a seed's luck in common."""
    luck = replace(world, seeds=0.0, second=1.0)
    shift = world.seeds * generator.standard_normal((2, seeds, 1)) * np.array([1.0, world.second])[:, None, None]
    gaps, truth = [], np.subtract(*world.truth())
    for _ in range(4):
        normal = generator.standard_normal
        common = luck.items * normal(QUESTIONS) + luck.shared * normal((seeds, 1))
        side = np.array([1.0, -1.0])[:, None, None] * luck.gap / 2
        own = luck.arms * normal((2, 1, QUESTIONS)) + luck.rest * normal((2, seeds, QUESTIONS))
        right = generator.random((2, seeds, QUESTIONS)) < expit(luck.ability + side + common + shift + own)
        gaps.append(right[0].astype(float) - right[1])
    found = of_items(gaps)
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


def covered_loss(world: World, seeds: int, generator: np.random.Generator) -> bool:
    """The difference of a number by seed, such as the area under a curve of losses: normal scatter, unequal in the arms."""
    scatter = np.array([[1.0], [world.second]]) * world.seeds + 0.01
    value_AS = scatter * generator.standard_normal((2, seeds)) + world.shared * generator.standard_normal(seeds)
    value_AS[0] += world.gap
    found = of_seeds(value_AS[0] - value_AS[1])
    return found.low is not None and found.high is not None and found.low <= world.gap <= found.high


COVERED: dict[str, Callable[[World, int, np.random.Generator], bool]] = {
    "difference of accuracies": covered_difference,
    "accuracy, band of a curve": covered_mean,
    "difference over four benchmarks": covered_mean_of_benchmarks,
    "difference of losses or areas": covered_loss,
}


def coverage(kind: str, world: World, seeds: int, worlds: int) -> float:
    """The share of worlds in which the interval holds the truth."""
    generator = np.random.default_rng([len(kind), sum(map(ord, world.name)), seeds])
    return float(np.mean([COVERED[kind](world, seeds, generator) for _ in range(worlds)]))


def p_values(world: World, seeds: int, count: int, generator: np.random.Generator) -> list[float | None]:
    """Of ``count`` benchmarks."""
    gaps = (np.subtract(*world.answers(generator, seeds).astype(float)) for _ in range(count))
    return [of_items([gap_SI]).p for gap_SI in gaps]


def family_errors(world: World, seeds: int, worlds: int) -> tuple[float, float]:
    """Shares of families without any difference in which one is found: after Holm's, and after Benjamini and Hochberg's
    correction (which are alike where nothing is there to be found)."""
    generator = np.random.default_rng([7, seeds])
    wrong = []
    for _ in range(worlds):
        found = p_values(replace(world, gap=0.0), seeds, FAMILY, generator)
        wrong.append([any(p is not None and p < 0.05 for p in correct(found)) for correct in (holm, benjamini_hochberg)])
    holms, benjaminis = np.mean(wrong, axis=0)
    return float(holms), float(benjaminis)


def equivalence_errors(seeds: int, worlds: int) -> float:
    """The share of worlds that are called equivalent although the arms differ by exactly the margin."""
    generator = np.random.default_rng([8, seeds])
    wrong = []
    for _ in range(worlds):
        gap_SI = MARGIN + 0.03 * generator.standard_normal((seeds, 1)) + 0.3 * generator.standard_normal((seeds, QUESTIONS))
        wrong.append(equivalent(gap_SI.mean(axis=1), MARGIN, question_error([gap_SI], shares=False)))
    return float(np.mean(wrong))


def _rows(worlds: int) -> Iterator[list[str]]:
    for kind in COVERED:
        for world in SHAPES:
            yield [kind, world.name, *(f"{coverage(kind, world, seeds, worlds):.3f}" for seeds in SEEDS)]


def tables(worlds: int = WORLDS) -> list[Table]:
    columns = ["interval", "world", *(f"{seeds} seeds" for seeds in SEEDS)]
    error = 1.96 * float(np.sqrt(0.95 * 0.05 / worlds))
    covers = Table(
        "Coverage of the intervals",
        f"Share of {worlds} simulated worlds in which the 95% interval holds the truth over all seeds and questions "
        f"(give or take {error:.3f}). {QUESTIONS} questions, shared by all seeds.",
        columns,
        list(_rows(worlds)),
    )
    few = max(worlds // 10, 1)
    errors = [(world, seeds, *family_errors(world, seeds, few)) for world in (SHAPES[0], SHAPES[5]) for seeds in SEEDS]
    decisions = Table(
        "Wrong decisions",
        f"Share of {few} families of {FAMILY} differences, none of which is there, in which one is found at 5%.",
        ["world", "seeds", "after Holm's correction", "after Benjamini and Hochberg's"],
        [[world.name, str(seeds), f"{first:.3f}", f"{second:.3f}"] for world, seeds, first, second in errors],
    )
    close = Table(
        "Equivalence",
        f"Share of {worlds} worlds whose arms differ by just the margin ({MARGIN}) and are called equivalent (at most .05).",
        ["seeds", "called equivalent"],
        [[str(seeds), f"{equivalence_errors(seeds, worlds):.3f}"] for seeds in SEEDS],
    )
    return [covers, decisions, close]
