"""Learning curves with a known truth: records of runs that answer with given chances."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from tests.synthetic import synthetic_record
from tunalab.analysis.curves import Line
from tunalab.analysis.learning import Curve, learning_curves
from tunalab.evaluation.measure import Score
from tunalab.records.labels import Setting
from tunalab.records.record import Point, Record

TOKENS = np.round(np.geomspace(1e5, 8e6, 8))
Ability = Callable[[np.ndarray], np.ndarray]  # tokens -> chance to be right


def run_of(variant: str, seed: int, right_by_tokens: dict[float, np.ndarray], chance: float = 0.1) -> Record:
    """A record of one benchmark, ``count``, with the given outcomes at each point."""
    points = [
        Point(int(at), int(at // 1000), int(at // 50), at * 6e6, at / 1e4, {"count": Score.from_outcomes(right, chance)})
        for at, right in right_by_tokens.items()
    ]
    return replace(_blank(variant, seed), points=points)


@cache
def _blank(variant: str, seed: int) -> Record:
    return synthetic_record(variant, seed)  # resolves a configuration, which takes longer than a whole simulated curve


def answered(
    generator: np.random.Generator, ability: Ability, seeds: int, luck: float = 0.0, n: int = 300, variant: str = "a"
) -> list[Record]:
    """Runs whose questions are right with the ability at their tokens, each run shifted by its luck."""
    base = ability(TOKENS)
    made = []
    for seed in range(seeds):
        shifted = np.clip(base + luck * generator.standard_normal(), 0, 1)
        made.append(run_of(variant, seed, {at: generator.random(n) < share for at, share in zip(TOKENS, shifted, strict=True)}))
    return made


def curves_of(*sides: Sequence[Record]) -> list[Curve]:
    """A curve a side, without the look at settings: it takes longer than everything that is simulated."""
    return learning_curves([Line(side[0].run.variant, Setting(), tuple(side), side[0].run.variant) for side in sides], "count")
