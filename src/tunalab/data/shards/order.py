"""An order that visits every row once an epoch and keeps rows that lie together near each other in time.

The mixer's own permutation of all rows is the better shuffle, but it reads from anywhere: a row of Parquet costs decoding its row
group, and a permutation of a hundred million rows costs a gigabyte a data process. Here blocks (row groups, tar shards) are
permuted, and the rows of ``window`` blocks at a time among themselves.
"""

import numpy as np

from tunalab.data.mixing import stream_rng

_BLOCKS, _ROWS = 0, 1  # what a permutation is of
_KEPT = 4  # permutations of windows remembered


class BlockOrder:
    """``row(epoch, at)``, for each epoch a permutation of the rows. A pure function; what it remembers only saves time.

    ``starts``: where each block starts, and last the number of rows. ``streams``: the order is cut into this many runs of rows
    of (almost) equal length, visited in turn. Data processes visit in turn too, so with as many streams as there are data processes
    over all ranks each follows one run, and reads and decodes blocks of its own.
    """

    def __init__(self, starts: np.ndarray, window: int, streams: int, seed: int, key: int) -> None:
        self.starts = starts
        self.rows = int(starts[-1])
        self.window = window
        self.streams = streams
        self._seed = (seed, key)
        self._epoch: int | None = None
        self._blocks = np.empty(0, np.int64)
        self._ends = np.empty(0, np.int64)  # rows up to the end of each permuted block
        self._windows: dict[tuple[int, int], np.ndarray] = {}

    def row(self, epoch: int, at: int) -> int:
        """The row that an epoch visits at position ``at`` (0 <= at < rows)."""
        self._enter(epoch)
        length, longer = divmod(self.rows, self.streams)
        step, stream = divmod(at, self.streams)
        position = stream * length + min(stream, longer) + step

        block = int(np.searchsorted(self._ends, position, side="right"))
        number = block // self.window
        first, last = number * self.window, min((number + 1) * self.window, len(self._blocks)) - 1
        begin = int(self._ends[first - 1]) if first else 0
        within = self._permutation(epoch, number, int(self._ends[last]) - begin)
        shuffled = begin + int(within[position - begin])

        block = int(np.searchsorted(self._ends, shuffled, side="right"))
        offset = shuffled - (int(self._ends[block - 1]) if block else 0)
        return int(self.starts[self._blocks[block]]) + offset

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        sizes = np.diff(self.starts)
        filled = np.flatnonzero(sizes)  # an empty block would be found at the start of the next one
        self._blocks = filled[stream_rng(self._seed[0], 3, self._seed[1], epoch, _BLOCKS).permutation(len(filled))]
        self._ends = np.cumsum(sizes[self._blocks])
        self._epoch = epoch

    def _permutation(self, epoch: int, number: int, rows: int) -> np.ndarray:
        known = self._windows.get((epoch, number))
        if known is None:
            known = stream_rng(self._seed[0], 3, self._seed[1], epoch, _ROWS, number).permutation(rows)
            while len(self._windows) >= _KEPT:
                del self._windows[next(iter(self._windows))]
            self._windows[(epoch, number)] = known
        return known
