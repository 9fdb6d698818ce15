"""Samples that are a range of bytes of their file: tar members that belong together, or a line."""

from collections.abc import Callable, Sequence

import numpy as np

from tunalab.data.documents import Reject
from tunalab.data.shards.corpus import Sample
from tunalab.data.shards.files import ShardFile, read_range
from tunalab.data.shards.index_cache import StoredIndex
from tunalab.errors import UserError

_LOADED = 64  # indices of files held in memory


class RangeReader:
    """Reads one range a sample; every range is a request of its own at a remote place.

    ``indices``: for each file the starts of its samples and the end of the last one. ``parse`` makes a sample of its bytes.
    ``noun``: what a sample is called. ``largest``: bytes of a sample beyond which it is rejected unread. ``block``: the most
    samples a block has; blocks end with their file.
    """

    def __init__(
        self,
        files: Sequence[ShardFile],
        indices: Sequence[StoredIndex],
        parse: Callable[[bytes], Sample],
        noun: str,
        largest: int,
        block: int | None = None,
    ) -> None:
        self.files = files
        self._indices = indices
        self._parse = parse
        self._noun = noun
        self._largest = largest
        counts = [max(0, index.length - 1) for index in indices]
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        inner = [
            np.arange(first, first + count, block or max(1, count)) for first, count in zip(self._first[:-1], counts, strict=True)
        ]
        self.starts = np.concatenate([*inner, self._first[-1:]])
        self._loaded: dict[int, np.ndarray] = {}

    def read(self, row: int) -> Sample:
        number, place = self._place(row)
        index = self._index(number)
        start, end = int(index[place]), int(index[place + 1])
        if end - start > self._largest:
            raise Reject(f"{self._noun} of more than {self._largest // 2**20} MiB")
        return self._parse(read_range(self.files[number].url, start, end))

    def where(self, row: int) -> str:
        number, place = self._place(row)
        return f"{self.files[number].shown} {self._noun} {place + 1}"

    def _place(self, row: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._first, row, side="right")) - 1
        return number, row - int(self._first[number])

    def _index(self, number: int) -> np.ndarray:
        known = self._loaded.get(number)
        if known is None:
            known = self._indices[number].load()
            if np.any(np.diff(known) <= 0) or known[0] < 0 or known[-1] > self.files[number].size:
                raise UserError(f"{self._indices[number].path}: this index is damaged, delete it ({self.files[number].shown})")
            while len(self._loaded) >= _LOADED:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[number] = known
        return known
