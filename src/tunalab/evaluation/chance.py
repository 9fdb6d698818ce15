"""Chance of the benchmarks: the best of three ways of answering that never look at an image and know the training questions.

`tunalab verify chance` measures them, says how, and writes the file that is read here.
"""

import csv
from functools import cache
from importlib.resources import files

FILE = "chance.csv"  # beside this module; columns as verification.chance.Measured
USUAL = 400  # groups; larger benchmarks of level 1 hold so many of the scenes there are that training shows other shares


def guesses(split: str, groups: int) -> tuple[str, ...]:
    """Which guesses chance is the best of. In a large benchmark of ``test`` also that of who knows its own words."""
    return ("uniform", "template", "words", *(("own_words",) if split == "test" and groups > USUAL else ()))


def chance_of(benchmark: str, groups: int, split: str = "test") -> float | None:
    """The share of ``groups`` that guessing gets right; None for a benchmark or split that was not measured.

    Chance depends on the number of groups where there are few scenes, of which a large benchmark holds other shares. It was
    measured at some numbers: it is that of the next larger one, or of the largest.
    """
    sizes = _measured().get((benchmark, split))
    if sizes is None:
        return None
    return next((chance for size, chance in sizes if groups <= size), sizes[-1][1])


@cache
def _measured() -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Groups and chance of each benchmark and split, by groups."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    with (files("tunalab.evaluation") / FILE).open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            groups = int(row["groups"])
            best = max(float(row[guess]) for guess in guesses(row["split"], groups))
            found.setdefault((row["benchmark"], row["split"]), []).append((groups, best))
    return {key: sorted(sizes) for key, sizes in found.items()}
