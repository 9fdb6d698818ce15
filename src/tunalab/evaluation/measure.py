"""Scores along a run and measures after it: one number each, with what it takes to believe it. Chance is measured.

Read without a model, its data or numpy: whoever looks which runs are finished waits for no import.
"""

import csv
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from math import isfinite, sqrt
from typing import TYPE_CHECKING, TypedDict, Unpack

if TYPE_CHECKING:
    import numpy as np  # inside the methods, not above: who only looks which runs are finished waits for no import


def wilson(correct: float, n: float, z: float = 1.96) -> tuple[float, float]:
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


MARGIN_STEPS = 16  # per nat
MOST_MARGIN = 127 / MARGIN_STEPS


@dataclass(frozen=True)
class Score:
    """One benchmark at one point. ``low`` and ``high`` are the 95% Wilson interval, ``chance`` the level of guessing.

    ``outcomes`` (optional) holds right or wrong per question in the benchmark's own order, packed into hexadecimal digits:
    only with it can two variants be compared question by question, which is far sharper than two separate intervals.

    ``margins`` (optional) holds per question, in the same order, the log-likelihood of the right answer less that of the best wrong
    one, in nats: bounded by ``MOST_MARGIN`` (odds of 2,800 to 1), in steps of 1/16, a signed byte each in hexadecimal digits.
    ``margin`` is their mean before rounding. It still tells models apart where all answers are right, or all at chance.
    """

    correct: int
    n: int
    chance: float
    accuracy: float
    low: float
    high: float
    outcomes: str | None = None
    margin: float | None = None
    margins: str | None = None

    @classmethod
    def of(cls, correct: int, n: int, chance: float) -> "Score":
        """A score from counts alone."""
        low, high = wilson(correct, n)
        return cls(correct, n, chance, correct / n, low, high)

    @classmethod
    def from_outcomes(cls, outcomes: Sequence[bool], chance: float, margins: Sequence[float] | None = None) -> "Score":
        """A score from right or wrong (and the margin) per question, in an order that is the same for every variant."""
        import numpy as np

        bits = np.asarray(outcomes, dtype=bool)
        low, high = wilson(int(bits.sum()), len(bits))
        packed = np.packbits(bits).tobytes().hex()
        score = cls(int(bits.sum()), len(bits), chance, float(bits.mean()), low, high, packed)
        if margins is None:
            return score
        bounded = np.clip(np.asarray(margins, dtype=np.float64), -MOST_MARGIN, MOST_MARGIN)
        steps = np.rint(bounded * MARGIN_STEPS).astype(np.int8)
        return replace(score, margin=float(bounded.mean()), margins=steps.tobytes().hex())

    def items(self) -> "np.ndarray | None":
        """Right or wrong per question, shape (n,) bool; None where the record holds counts only."""
        if self.outcomes is None:
            return None
        import numpy as np

        packed = np.frombuffer(bytes.fromhex(self.outcomes), dtype=np.uint8)
        return np.unpackbits(packed, count=self.n).astype(bool)

    def margin_items(self) -> "np.ndarray | None":
        """Margins per question in nats, shape (n,), to 1/32; None where the record holds none."""
        if self.margins is None:
            return None
        import numpy as np

        return np.frombuffer(bytes.fromhex(self.margins), dtype=np.int8) / MARGIN_STEPS


@dataclass(frozen=True)
class LossItems:
    """A held-out loss by document: floats of ``bits`` in hexadecimal digits, D documents in an order that is the same for every
    variant.

    ``nats``: summed over the predicted tokens of a document; ``tokens``: how many these are. The first records have 16 bits, which
    hold nats to 1 in 2,000 and up to 2,048 tokens exactly.
    """

    nats: str
    tokens: str
    bits: int = 16

    @classmethod
    def of(cls, nats_D: "np.ndarray", tokens_D: "np.ndarray") -> "LossItems":
        nats, tokens = (values.astype("<f4").tobytes().hex() for values in (nats_D, tokens_D))
        return cls(nats, tokens, 32)

    def values(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Nats and tokens of D documents. Raises ValueError: they are not as many finite numbers of both."""
        letter = {16: "e", 32: "f"}.get(self.bits)
        if letter is None:
            raise ValueError(f"floats of 16 or 32 bits, got {self.bits}")
        packed = [bytes.fromhex(digits) for digits in (self.nats, self.tokens)]
        if not packed[0] or len(packed[0]) != len(packed[1]) or 8 * len(packed[0]) % self.bits:
            raise ValueError(f"as many nats as tokens, of {self.bits} bits each, got {len(packed[0])} and {len(packed[1])} bytes")
        nats, tokens = (struct.unpack(f"<{8 * len(one) // self.bits}{letter}", one) for one in packed)
        if not all(map(isfinite, (*nats, *tokens))):
            raise ValueError("finite numbers")
        return nats, tokens

    def arrays(self) -> "tuple[np.ndarray, np.ndarray]":
        """As ``values``: ``nats_D`` and ``tokens_D``, (D,)."""
        import numpy as np

        nats, tokens = self.values()
        return np.array(nats), np.array(tokens)

    def off(self, loss: float) -> "np.ndarray":
        """How much each document adds to the ``loss`` of all above or below it, (D,), nats a token: a loss is a ratio of sums over
        documents, and this is its linear part (the influence function) in each of them.
        """
        nats_D, tokens_D = self.arrays()
        return (nats_D - loss * tokens_D) / tokens_D.mean()


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


KINDS = ("understanding", "generation", "diversity", "fidelity", "reconstruction", "editing", "attention", "judge")
SSIM_INSIDE = "SSIM over the windows inside the image"  # in the note of every SSIM, so that earlier ones are told from it
SSIM_WITH_BORDER = "SSIM with border, before 2026-11-29"
_BOOTSTRAP_SEED = 0  # an interval is part of a result: the same items give the same one
_EQUAL = 1e-9  # relative; resamples of items that differ in the last digits have equal means, and BCa no interval
_BOOTSTRAP_VALUES = 4_000_000  # held at a time: BCa leaves out every item once, of 10,000 items 100 million values in all


@dataclass(frozen=True)
class Measure:
    """``benchmark`` as it is called in tables (``relations@2``), ``split``: which items (``test``, ``composition``, ...).

    ``value`` over ``n`` items in the unit of its ``metric`` (shares between 0 and 1, never percent), ``low`` and ``high`` its 95%
    interval where there is one. ``chance`` and ``ceiling``: what guessing and perfect knowledge reach. ``failures``: items that
    could not be measured; they are in neither ``n`` nor ``value``. ``items``: the value of every item, in an order that is the
    same for every model, so that two models can be compared item by item. ``note``: what a reader must know, such as the network
    behind a distance.
    """

    kind: str
    benchmark: str
    metric: str
    value: float
    n: int
    split: str = ""
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    ceiling: float | None = None
    failures: int = 0
    note: str = ""
    items: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.benchmark} {self.metric}: {self.kind!r} is no kind of measure ({', '.join(KINDS)})")

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it measures: equal for the same measure of two models. SSIM that counted the border is another measure."""
        of_border = self.metric == "SSIM" and SSIM_INSIDE not in self.note
        return self.kind, self.benchmark, self.split, SSIM_WITH_BORDER if of_border else self.metric


class About(TypedDict, total=False):
    """What items do not tell of their measure; fields as in :class:`Measure`."""

    split: str
    chance: float | None
    ceiling: float | None
    failures: int
    note: str


def share(kind: str, benchmark: str, outcomes: Sequence[bool], *, metric: str = "accuracy", **about: Unpack[About]) -> Measure:
    """How many of the items are right, with Wilson's interval. Raises ValueError when there are none."""
    n, right = len(outcomes), sum(outcomes)
    low, high = wilson(right, n)
    items: list[float] = [int(one) for one in outcomes]
    return Measure(kind, benchmark, metric, right / n, n, low=low, high=high, items=items, **about)


def mean(kind: str, benchmark: str, values: Sequence[float], *, metric: str, **about: Unpack[About]) -> Measure:
    """The mean over items with its bootstrap interval (BCa of scipy; none where all items are as good as equal, or there is one).

    Raises ValueError when there is no item, or one that is not finite: such an item is a failure and must be counted as one.
    """
    import numpy as np  # here, not above: slow, and whoever looks which runs are finished needs none of it

    array = np.asarray(values, dtype=np.float64)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(
            f"{benchmark} {metric}: a mean needs finite values, got {len(array)} of which {np.isfinite(array).sum()} are"
        )
    low = high = None
    if len(array) > 1 and np.ptp(array) > _EQUAL * np.abs(array).max():
        from scipy.stats import bootstrap  # here, not above: slow, and whoever reads records needs none of it

        batch = max(1, _BOOTSTRAP_VALUES // len(array))
        found = bootstrap((array,), np.mean, n_resamples=2000, batch=batch, rng=np.random.default_rng(_BOOTSTRAP_SEED))
        low, high = (float(bound) for bound in found.confidence_interval)
    kept = [round(float(value), 6) for value in array]
    return Measure(kind, benchmark, metric, float(array.mean()), len(array), low=low, high=high, items=kept, **about)
