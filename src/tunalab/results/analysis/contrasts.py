"""Contrasts of a sweep's cells: main effects of its factors and their interactions, as weights that sum to zero.

An effect is a contrast of cells, sum_c w_c mean_c. Main effect of a level: the mean, over all pairs of cells that differ in that
factor alone, of the cell at the level minus the cell at the reference. Interaction of two: how much the effect of one changes when
the other leaves its reference (difference of differences).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from tunalab.results.analysis.factors import Cell, Factor, Level, level_label, ordered_levels

Weights = Mapping[Cell, float]


@dataclass(frozen=True)
class Contrast:
    """``with_``: empty for a main effect, else the other factor's level and reference. ``pairs``: comparisons averaged."""

    factor: str
    level: Level
    reference: Level
    with_: str
    weights: Weights
    pairs: int

    @property
    def label(self) -> str:
        text = f"{self.factor}: {level_label(self.level)} - {level_label(self.reference)}"
        return f"{text}, {self.with_}" if self.with_ else text


def contrasts(factors: Sequence[Factor], cells: Sequence[Cell]) -> Iterator[Contrast]:
    """Main effects of every factor, then interactions of every two, of their levels against the first."""
    levels = [ordered_levels([cell.levels[index] for cell in cells]) for index in range(len(factors))]
    for index, factor in enumerate(factors):
        for level, reference in _compared(levels[index]):
            at, against = ([cell for cell in cells if cell.levels[index] == one] for one in (level, reference))
            pairs = [(a, b) for a, b in product(at, against) if _equal_but(a, b, {index})]
            if pairs:
                signs = [(cell, sign / len(pairs)) for pair in pairs for cell, sign in zip(pair, (1, -1), strict=True)]
                yield Contrast(factor.name, level, reference, "", _summed(signs), len(pairs))
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
                    yield Contrast(first.name, level_i, reference_i, other, weights, len(squares))


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
