"""Chance of the benchmarks: the best of four ways of answering that never look at an image.

`tunalab verify chance` measures them, says how, and writes the file that is read here.
"""

import csv
from functools import cache
from importlib.resources import files

FILE = "chance.csv"  # beside this module; columns as verification.chance.Measured
USUAL = 400  # groups; larger benchmarks of level 1 hold so many of the scenes there are that training shows other shares
# Chance is the best of them. ``own_words`` knows the split itself, also which combinations are held out in `composition`: no model
# that was trained on `train` does, but above it an accuracy cannot come from the questions alone.
GUESSES = ("uniform", "template", "words", "own_words")


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
            best = max(float(row[guess]) for guess in GUESSES)
            found.setdefault((row["benchmark"], row["split"]), []).append((groups, best))
    return {key: sorted(sizes) for key, sizes in found.items()}
