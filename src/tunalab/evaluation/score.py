"""A score: how many were right, of how many, against what chance, with an interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunalab.evaluation.intervals import wilson

if TYPE_CHECKING:
    import numpy as np  # inside the methods, not above: who only looks which runs are finished waits for no import


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
