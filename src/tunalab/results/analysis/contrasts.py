"""Contrasts of a sweep's cells: main effects of its factors and their interactions, as weights that sum to zero.

An effect is a contrast of cells, sum_c w_c mean_c. Main effect of a level: the mean, over all pairs of cells that differ in that
factor alone, of the cell at the level minus the cell at the reference. Interaction of two: how much the effect of one changes when
the other leaves its reference (difference of differences). Matched: two cells that differ in several factors and train as many
parameters, as one of them was made to.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product
from typing import Literal

from tunalab.results.analysis.factors import Cell, Factor, Level, level_label, ordered_levels

Weights = Mapping[Cell, float]


Kind = Literal["main", "matched", "interaction"]
MATCHED = 0.005  # of the trained parameters: closer are two cells only where one was made for it


@dataclass(frozen=True)
class Contrast:
    """``level`` against ``reference`` of ``factor`` (of several, joined by commas, where cells are matched); ``with_``: of an
    interaction, the other factor's level and reference. ``pairs``: comparisons averaged.
    """

    kind: Kind
    factor: str
    level: str
    reference: str
    with_: str
    weights: Weights
    pairs: int


def contrasts(factors: Sequence[Factor], cells: Sequence[Cell]) -> Iterator[Contrast]:
    """Main effects of every factor, matched cells, then interactions of every two factors, of their levels against the first."""
    levels = [ordered_levels([cell.levels[index] for cell in cells]) for index in range(len(factors))]
    for index, factor in enumerate(factors):
        for level, reference in _compared(levels[index]):
            at, against = ([cell for cell in cells if cell.levels[index] == one] for one in (level, reference))
            pairs = [(a, b) for a, b in product(at, against) if _equal_but(a, b, {index})]
            if pairs:
                signs = [(cell, sign / len(pairs)) for pair in pairs for cell, sign in zip(pair, (1, -1), strict=True)]
                told = level_label(level), level_label(reference)
                yield Contrast("main", factor.name, *told, "", _summed(signs), len(pairs))
    yield from _matched(factors, cells)
    for (i, first), (j, second) in combinations(enumerate(factors), 2):
        (reference_i, *others_i), (reference_j, *others_j) = levels[i], levels[j]
        for level_i, level_j in product(others_i, others_j):
            corners = [
                ((level_i, level_j), 1),
                ((reference_i, level_j), -1),
                ((level_i, reference_j), -1),
                ((reference_i, reference_j), 1),
            ]
            found = [_at(cells, {i: a, j: b}) for (a, b), _ in corners]
            alike = (square for square in product(*found) if all(_equal_but(one, square[0], {i, j}) for one in square[1:]))
            squares = [square for square in alike if len(set(square)) > 2]  # of two cells it is a main effect, or nothing
            if squares:
                signs = [(cell, sign / len(squares)) for square in squares for cell, (_, sign) in zip(square, corners, strict=True)]
                other = f"{second.name}: {level_label(level_j)} instead of {level_label(reference_j)}"
                weights = _summed(signs)
                if weights:
                    told = level_label(level_i), level_label(reference_i)
                    yield Contrast("interaction", first.name, *told, other, weights, len(squares))


def _matched(factors: Sequence[Factor], cells: Sequence[Cell]) -> Iterator[Contrast]:
    for a, b in permutations(cells, 2):
        trained, fewer = (cell.records[0].parameters["trainable"] for cell in (a, b))
        differing = [index for index, (one, other) in enumerate(zip(a.levels, b.levels, strict=True)) if one != other]
        if len(differing) < 2 or not 0 < trained / fewer - 1 < MATCHED:
            continue
        # The cell with an encoder, or whatever the first factor adds, is told against the one without.
        levels = ordered_levels([cell.levels[differing[0]] for cell in (a, b)])
        first, second = (b, a) if levels and a.levels[differing[0]] == levels[0] else (a, b)
        named = ", ".join(factors[index].name for index in differing)
        level, reference = (", ".join(level_label(cell.levels[index]) for index in differing) for cell in (first, second))
        yield Contrast("matched", named, level, reference, "", {first: 1.0, second: -1.0}, 1)


def _compared(levels: Sequence[Level]) -> list[tuple[Level, Level]]:
    """(level, reference): words with each other, numbers with the smallest, as they are a scale."""
    if all(isinstance(level, str) for level in levels):
        return [(level, reference) for reference, level in combinations(levels, 2)]
    return [(level, levels[0]) for level in levels[1:]]


def _at(cells: Sequence[Cell], wanted: Mapping[int, Level]) -> list[Cell]:
    """Cells at these levels; one to which a factor does not apply stands for each of its levels."""
    return [cell for cell in cells if all(cell.levels[index] in (level, None) for index, level in wanted.items())]


def _equal_but(a: Cell, b: Cell, but: set[int]) -> bool:
    pairs = enumerate(zip(a.levels, b.levels, strict=True))
    return all(one == other or one is None or other is None for index, (one, other) in pairs if index not in but)


def _summed(signs: Sequence[tuple[Cell, float]]) -> dict[Cell, float]:
    weights: Counter[Cell] = Counter()
    for cell, weight in signs:
        weights[cell] += weight  # type: ignore[assignment]
    return {cell: weight for cell, weight in weights.items() if abs(weight) > 1e-12}
