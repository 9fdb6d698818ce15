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

from tunalab.analysis.crossing import crossing
from tunalab.analysis.curves import Line, axis_named
from tunalab.analysis.endpoints import Difference
from tunalab.analysis.learning import Curve, learning_curves
from tunalab.analysis.power_law import power_law
from tunalab.analysis.statistics import benjamini_hochberg, equivalent, holm, of_items, of_seeds, question_error, share_interval
from tunalab.evaluation.measure import Score
from tunalab.records.labels import Setting
from tunalab.records.record import Point, Record, RunInfo, Totals
from tunalab.verification import Table

WORLDS = 4000
SEEDS = (2, 3, 5, 9)
QUESTIONS, DOCUMENTS = 200, 128
ENCODERS = 3  # of which run seed s has number s mod 3
SHARES = (0.0, 0.25, 0.5, 0.75)  # of the variance between runs, that of their encoders
OVER = (5, 9)  # seeds of runs that share encoders
FAMILY = 24  # differences of a family, somewhat more than the paper's claims have here
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


def benchmarks_with_luck_in_common(world: World, seeds: int, count: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Differences of right answers on ``count`` benchmarks, each (S, I): a seed that is good at one is good at all."""
    normal = generator.standard_normal
    shift_AS1 = world.seeds * normal((2, seeds, 1)) * np.array([1.0, world.second])[:, None, None]
    gaps = []
    for _ in range(count):
        common_SI = world.items * normal(QUESTIONS) + world.shared * normal((seeds, 1))
        side_A11 = np.array([1.0, -1.0])[:, None, None] * world.gap / 2
        own_ASI = world.arms * normal((2, 1, QUESTIONS)) + world.rest * normal((2, seeds, QUESTIONS))
        right_ASI = generator.random((2, seeds, QUESTIONS)) < expit(world.ability + side_A11 + common_SI + shift_AS1 + own_ASI)
        gaps.append(right_ASI[0].astype(float) - right_ASI[1])
    return gaps


def covered_mean_of_benchmarks(world: World, seeds: int, generator: np.random.Generator) -> bool:
    """Of four benchmarks with a seed's luck in common."""
    found, truth = of_items(benchmarks_with_luck_in_common(world, seeds, 4, generator)), np.subtract(*world.truth())
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


def covered_loss(world: World, seeds: int, generator: np.random.Generator) -> bool:
    """The difference of a number by seed, such as the area under a curve of losses: normal scatter, unequal in the arms."""
    scatter = np.array([[1.0], [world.second]]) * world.seeds + 0.01
    value_AS = scatter * generator.standard_normal((2, seeds)) + world.shared * generator.standard_normal(seeds)
    value_AS[0] += world.gap
    found = of_seeds(value_AS[0] - value_AS[1])
    return found.low is not None and found.high is not None and found.low <= world.gap <= found.high


def covered_documents(world: World, seeds: int, generator: np.random.Generator) -> bool:
    """The same where all runs have losses on the same documents, and the arms are good at different ones."""
    normal = generator.standard_normal
    scatter = np.array([1.0, world.second])[:, None] * world.seeds + 0.01
    value_AS = scatter * normal((2, seeds)) + world.shared * normal(seeds)
    off_ASD = world.arms * normal((2, 1, DOCUMENTS)) + world.rest * normal((2, seeds, DOCUMENTS))
    gap_SD = np.subtract(*(value_AS[:, :, None] + off_ASD)) + world.gap
    found = of_seeds(gap_SD.mean(axis=1), question_error([gap_SD], shares=False))
    return found.low is not None and found.high is not None and found.low <= world.gap <= found.high


COVERED: dict[str, Callable[[World, int, np.random.Generator], bool]] = {
    "difference of accuracies": covered_difference,
    "accuracy, band of a curve": covered_mean,
    "difference over four benchmarks": covered_mean_of_benchmarks,
    "difference of losses or areas": covered_loss,
    "difference of losses, by document": covered_documents,
}


def coverage(kind: str, world: World, seeds: int, worlds: int) -> float:
    """The share of worlds in which the interval holds the truth."""
    generator = np.random.default_rng([len(kind), sum(map(ord, world.name)), seeds])
    return float(np.mean([COVERED[kind](world, seeds, generator) for _ in range(worlds)]))


def covered_encoders(share: float, seeds: int, worlds: int) -> tuple[float, float]:
    """How often the truth over all encoders that might be trained so is held by the interval over seeds, and by that over encoders,
    where ``share`` of the variance between runs is their encoders'.
    """
    generator = np.random.default_rng([11, round(100 * share), seeds])
    parts = [str(seed % ENCODERS) for seed in range(seeds)]
    held = []
    for _ in range(worlds):
        encoder_S = generator.standard_normal(ENCODERS)[np.arange(seeds) % ENCODERS]
        value_S = np.sqrt(share) * encoder_S + np.sqrt(1 - share) * generator.standard_normal(seeds)
        found = Difference("", value_S, parts=parts)
        both = (found.estimate, found.over_parts() or found.estimate)
        held.append([one.low is not None and one.high is not None and one.low <= 0 <= one.high for one in both])
    over_seeds, over_encoders = np.mean(held, axis=0)
    return float(over_seeds), float(over_encoders)


def family_errors(world: World, seeds: int, worlds: int, common: bool = False) -> tuple[float, float]:
    """Shares of families without any difference in which one is found: after Holm's, and after Benjamini and Hochberg's
    correction. ``common``: seeds have luck, or none, in all benchmarks."""
    generator, nothing = np.random.default_rng([7, seeds]), replace(world, gap=0.0)
    wrong = []
    for _ in range(worlds):
        if common:
            gaps = benchmarks_with_luck_in_common(nothing, seeds, FAMILY, generator)
        else:
            gaps = [np.subtract(*nothing.answers(generator, seeds).astype(float)) for _ in range(FAMILY)]
        found = [of_items([gap_SI]).p for gap_SI in gaps]
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


# Curves: eight evaluations at log-spaced tokens, seeds that are lucky or not throughout.

PLACES = np.round(np.geomspace(1e5, 8e6, 8))
CURVE_CHANCE = 0.1
CROSSED = (0.35, 0.65), (0.2, 0.8)  # accuracy at the first and the last place, straight over log tokens: they cross in the middle
EQUAL = (0.2, 0.7), (0.2, 0.7)
LUCK = 0.03  # of a seed, in accuracy


def curve(name: str, ability_P: np.ndarray, seeds: int, generator: np.random.Generator, luck: float = LUCK) -> Curve:
    """Of runs that answer ``QUESTIONS`` questions of equal difficulty at every place."""
    records = []
    for seed in range(seeds):
        share_P = np.clip(ability_P + luck * generator.standard_normal(), 0, 1)
        points = [
            Point(int(at), 1, 1, at, at, {"count": Score.from_outcomes(generator.random(QUESTIONS) < share, CURVE_CHANCE)})
            for at, share in zip(PLACES, share_P, strict=True)
        ]
        totals = Totals(int(PLACES[-1]), 1, 1, 1.0, 1.0, 1)
        records.append(Record(RunInfo(name, "", name, seed, 0.0, None, "", True), {}, {}, {}, {}, totals, points))
    (found,) = learning_curves([Line(name, Setting(), tuple(records), name)], "count")
    return found


def straight(first: float, last: float) -> np.ndarray:
    return first + (last - first) * np.log(PLACES / PLACES[0]) / np.log(PLACES[-1] / PLACES[0])


def crossing_sets(seeds: int, worlds: int) -> tuple[float, float, float]:
    """Shares of worlds: whose set holds the crossing; whose crossing is clear; whose equal curves are called a clear crossing."""
    generator, tokens = np.random.default_rng([9, seeds]), axis_named("tokens")
    truth = float(np.exp(np.log(PLACES[[0, -1]]).mean()))
    holds: list[bool] = []
    clear: list[bool] = []
    wrong: list[bool] = []
    for _ in range(worlds):
        a, b, c, d = (curve("a", straight(*ends), seeds, generator) for ends in (*CROSSED, *EQUAL))
        pair, alike = crossing(a, b, tokens), crossing(c, d, tokens)
        if pair is None or alike is None:
            raise ValueError("two curves with the same seeds and places have a common stretch")
        holds.append(pair.low <= truth <= pair.high)
        clear.append(pair.clear)
        wrong.append(alike.clear)
    return float(np.mean(holds)), float(np.mean(clear)), float(np.mean(wrong))


def laws_printed(seeds: int, worlds: int) -> tuple[float, float]:
    """Shares of worlds with a power law printed: of curves that are one, and of logistic curves."""
    generator, tokens = np.random.default_rng([10, seeds]), axis_named("tokens")
    of_laws: list[bool] = []
    of_logistic: list[bool] = []
    for _ in range(worlds):
        top, start, exponent = generator.uniform(0.6, 0.95), generator.uniform(8e4, 2e5), generator.uniform(0.6, 1.2)
        law_P = np.where(start < PLACES, top - (top - CURVE_CHANCE) * (PLACES / start) ** -exponent, CURVE_CHANCE)
        top, steep, middle = generator.uniform(0.5, 1.0), generator.uniform(1.0, 4.0), generator.uniform(2e5, 1.5e6)
        logistic_P = CURVE_CHANCE + (top - CURVE_CHANCE) * expit(steep * np.log(PLACES / middle))
        for ability_P, found in ((law_P, of_laws), (logistic_P, of_logistic)):
            fitted = power_law(curve("a", ability_P, seeds, generator, luck=0.01), tokens)
            found.append(fitted is not None and not fitted.unknown)
    return float(np.mean(of_laws)), float(np.mean(of_logistic))


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
    shared = [(seeds, share, *covered_encoders(share, seeds, worlds)) for seeds in OVER for share in SHARES]
    encoders = Table(
        "Seeds that share encoders",
        f"Share of {worlds} worlds in which an interval of a difference holds the truth over all encoders that might be trained "
        f"so, where seed s has encoder s mod {ENCODERS}. What is said of these {ENCODERS} encoders alone is the "
        "interval over seeds; of others, that over encoders.",
        ["seeds", "share of the variance that is the encoders'", "over seeds", "over encoders"],
        [[str(seeds), f"{share:.2f}", f"{of_seeds:.3f}", f"{of_encoders:.3f}"] for seeds, share, of_seeds, of_encoders in shared],
    )
    # Without its gap, "a gap" is "plain".
    distinct = [world for world in SHAPES if not (world.gap and replace(world, gap=0.0, name="plain") == SHAPES[0])]
    errors = [
        (f"{world.name}, luck in common" if common else world.name, seeds, *family_errors(world, seeds, worlds, common))
        for common in (False, True)
        for world in distinct
        for seeds in SEEDS
    ]
    decisions = Table(
        "Wrong decisions",
        f"Share of {worlds} families of {FAMILY} differences, none of which is there, in which one is found at 5% (give or take "
        f"{error:.3f}). Luck in common: a seed that is good at one benchmark is good at all.",
        ["world", "seeds", "after Holm's correction", "after Benjamini and Hochberg's"],
        [[world, str(seeds), f"{first:.3f}", f"{second:.3f}"] for world, seeds, first, second in errors],
    )
    close = Table(
        "Equivalence",
        f"Share of {worlds} worlds whose arms differ by just the margin ({MARGIN}) and are called equivalent (at most .05).",
        ["seeds", "called equivalent"],
        [[str(seeds), f"{equivalence_errors(seeds, worlds):.3f}"] for seeds in SEEDS],
    )
    few = max(worlds // 10, 1)
    crossed = [(seeds, *crossing_sets(seeds, few)) for seeds in SEEDS]
    passes = Table(
        "Crossings",
        f"Share of {few} pairs of curves that cross in the middle, and of {few} that are equal.",
        ["seeds", "set holds the crossing", "crossing is clear", "equal curves called a clear crossing"],
        [[str(seeds), *(f"{share:.3f}" for share in shares)] for seeds, *shares in crossed],
    )
    fewer = max(worlds // 40, 1)
    laws = Table(
        "Power laws",
        f"Share of {fewer} curves of each kind for which a power law is printed.",
        ["seeds", "of power laws", "of logistic curves"],
        [[str(seeds), *(f"{share:.3f}" for share in laws_printed(seeds, fewer))] for seeds in SEEDS],
    )
    return [covers, encoders, decisions, close, passes, laws]
