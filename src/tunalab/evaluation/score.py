"""The Wilson score interval: what an accuracy from n questions says about the accuracy behind it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np  # inside the methods, not above: who only looks which runs are finished waits for no import


def wilson(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Lower and upper bound of a proportion, ``correct`` successes in ``n`` trials, at ``z`` standard errors (1.96: 95%).

    Unlike mean +- z standard errors it stays inside [0, 1] and has a width at 0 and at n successes, where the other has none.

    Raises:
        ValueError: without trials there is no interval, and more successes than trials is a counting fault.
    """
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"wilson needs 0 <= correct <= n and n > 0, got correct={correct}, n={n}")
    share = correct / n
    shrink = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == n else centre + half)


# A score: how many were right, of how many, against what chance, with an interval.


@dataclass(frozen=True)
class Score:
    """One benchmark at one point. ``low`` and ``high`` are the 95% Wilson interval, ``chance`` the level of guessing.

    ``outcomes`` (optional) holds right or wrong per question in the benchmark's own order, packed into hexadecimal digits:
    only with it can two variants be compared question by question, which is far sharper than two separate intervals.
    """

    correct: int
    n: int
    chance: float
    accuracy: float
    low: float
    high: float
    outcomes: str | None = None

    @classmethod
    def of(cls, correct: int, n: int, chance: float) -> "Score":
        """A score from counts alone."""
        low, high = wilson(correct, n)
        return cls(correct, n, chance, correct / n, low, high)

    @classmethod
    def from_outcomes(cls, outcomes: Sequence[bool], chance: float) -> "Score":
        """A score from right or wrong per question, in an order that is the same for every variant."""
        import numpy as np

        bits = np.asarray(outcomes, dtype=bool)
        low, high = wilson(int(bits.sum()), len(bits))
        return cls(int(bits.sum()), len(bits), chance, float(bits.mean()), low, high, np.packbits(bits).tobytes().hex())

    def items(self) -> "np.ndarray | None":
        """Right or wrong per question, shape (n,) bool; None where the record holds counts only."""
        if self.outcomes is None:
            return None
        import numpy as np

        packed = np.frombuffer(bytes.fromhex(self.outcomes), dtype=np.uint8)
        return np.unpackbits(packed, count=self.n).astype(bool)


# Chance of the benchmarks: the best of four ways of answering that never look at an image.
#
# `tunalab verify chance` measures them, says how, and writes the file that is read here.

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
