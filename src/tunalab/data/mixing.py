"""Which document stands at which position of the training stream.

The stream is a function of (seed, weights, position): it knows nothing of front-ends, so every variant reads the same documents
in the same order. Finite sources are read in epochs, each a new permutation.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np


def stream_rng(seed: int, *key: int) -> np.random.Generator:
    """A generator that depends on (seed, key) alone: what makes every draw a function of the position in the stream."""
    return np.random.Generator(np.random.Philox(key=np.random.SeedSequence([seed, *key]).generate_state(2, np.uint64)))


@dataclass(frozen=True)
class Pick:
    """Document ``index`` of ``source``; ``position`` in the stream; ``uniform`` in [0, 1) decides on dropping the prompt."""

    position: int
    source: str
    index: int
    uniform: float


class Mixer:
    """Draws sources by weight (in documents) and counts through each source.

    ``lengths``: documents of each source, None for an endless one. ``lane`` of ``lanes`` (ranks x data processes) reads every
    lanes-th position of the one global stream. Weights may change between stages; the counts go on.

    A mix is one of documents, not of tokens: 1 : 1 reads as many documents of one source as of the other, however long they are.
    """

    block = 1024  # positions drawn at a time: one generator a position would cost more than the document

    def __init__(self, lengths: dict[str, int | None], seed: int, lane: int = 0, lanes: int = 1) -> None:
        self.lengths = lengths
        self.seed = seed
        self.lane = lane
        self.lanes = lanes
        self.position = lane
        self.counts = {name: 0 for name in lengths}
        self._block_at: int | None = None
        self._uniforms: np.ndarray = np.empty((0, 2))
        self._permutations: dict[str, tuple[int, np.ndarray]] = {}

    def next(self, weights: dict[str, float]) -> Pick:
        uniform, drop = self._draw(self.position)
        names = sorted(weights)  # not their order in a file: it is no part of a mix
        shares = np.cumsum([weights[name] for name in names])
        source = names[min(int(np.searchsorted(shares, uniform * shares[-1], side="right")), len(names) - 1)]
        pick = Pick(self.position, source, self._next_index(source), drop)
        self.position += self.lanes
        return pick

    def instead(self, pick: Pick) -> Pick:
        """The next document of the same source, for one that is left out.

        Drawn from the mix again, the place would most often go to another source: of 1 : 1 where nine in ten documents of one are
        left out, 91 : 9 would be read.
        """
        return replace(pick, index=self._next_index(pick.source))

    def _next_index(self, source: str) -> int:
        # Every lane counts its own documents, interleaved so that no two lanes read the same one.
        count = self.counts[source] * self.lanes + self.lane
        self.counts[source] += 1
        return self._index(source, count)

    def _draw(self, position: int) -> tuple[float, float]:
        at = position // self.block
        if at != self._block_at:
            self._uniforms = stream_rng(self.seed, 1, at).random((self.block, 2))
            self._block_at = at
        uniform, drop = self._uniforms[position % self.block]
        return float(uniform), float(drop)

    def _index(self, source: str, count: int) -> int:
        length = self.lengths[source]
        if length is None:
            return count
        epoch, at = divmod(count, length)
        kept = self._permutations.get(source)
        if kept is None or kept[0] != epoch:
            number = sorted(self.lengths).index(source)
            kept = (epoch, stream_rng(self.seed, 2, number, epoch).permutation(length))
            self._permutations[source] = kept
        return epoch * length + int(kept[1][at])

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state["counts"]) != set(self.counts):
            raise ValueError(f"stream state has sources {sorted(state['counts'])}, this run has {sorted(self.counts)}")
        self.position = state["position"]
        self.counts = dict(state["counts"])
