"""A corpus from a reader of samples and what makes a document of one."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tunalab.data.documents import Document, Reject
from tunalab.data.shards.files import ShardFile, shown
from tunalab.data.shards.index import BlockOrder
from tunalab.errors import UserError
from tunalab.redaction import redacted
from tunalab.settings.loading import digest
from tunalab.settings.schema import ShardsConfig

Sample = Mapping[str, Any]


class Reader(Protocol):
    """Samples of ``files``, numbered through. ``starts``: where each block starts, and last the number of samples."""

    files: Sequence[ShardFile]
    starts: np.ndarray

    def read(self, row: int) -> Sample:
        """Raises Reject: the sample is broken."""
        ...

    def where(self, row: int) -> str:
        """File and place of a sample, for people."""
        ...


@dataclass(frozen=True)
class Visit:
    """Sample ``row``, met for the ``epoch``-th time: where a sample offers a choice, each epoch takes the next."""

    row: int
    epoch: int

    def choose(self, count: int) -> int:
        """One of ``count`` choices: all of them in turn, in an order drawn once a sample."""
        return int(np.random.default_rng((self.row, count)).permutation(count)[self.epoch % count])


class ShardedCorpus:
    """Documents of shards: random access with ``window`` 0, else in an order that keeps to a few blocks at a time.

    With a window the corpus counts as endless, because it orders its epochs itself: document i of epoch e is the sample at place
    ``i`` of that epoch's order. Ranks and data processes still share the indices, so no two read the same document of an epoch.

    Raises:
        UserError: the files hold no samples.
    """

    def __init__(
        self, name: str, reader: Reader, make: Callable[[Sample, Visit], Document], config: ShardsConfig, seed: int
    ) -> None:
        self.name = name
        self.rows = int(reader.starts[-1])
        if self.rows == 0:
            raise UserError(f"{name}: there is nothing in its files: {', '.join(map(shown, config.urls))}")
        # Not their stamps: files that were copied back are the same files. Nor signatures, which are renewed.
        self.fingerprint = digest([self.rows, *((redacted(file.url), file.size) for file in reader.files)])
        self._reader = reader
        self._make = make
        key = zlib.crc32(name.encode())  # two sources of one length must not walk in step
        self._order = BlockOrder(reader.starts, config.window, config.streams, seed, key) if config.window else None

    @property
    def length(self) -> int | None:
        """Samples in all files, broken ones included; None if the corpus orders them itself."""
        return None if self._order else self.rows

    def seen_files(self, every: bool) -> Sequence[ShardFile]:
        return self._reader.files

    def document(self, index: int) -> Document:
        """The document of an index; indices from ``rows`` on belong to later epochs.

        Raises:
            Reject: the sample is broken; the reason begins with its place.
        """
        epoch, at = divmod(int(index), self.rows)
        row = self._order.row(epoch, at) if self._order else at
        try:
            return self._make(self._reader.read(row), Visit(row, epoch))
        except Reject as reject:
            raise type(reject)(f"{self._reader.where(row)}: {reject}") from reject
