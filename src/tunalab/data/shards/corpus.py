"""A corpus of shards: where the samples of its files start, an order that keeps neighbours together, and its documents.

An index is int64 numbers in little-endian bytes, nothing else: for files read by ranges the start
of every sample and the end of the last one (the layout of the ``.tar.idx`` files that ``energon
prepare`` writes), for Parquet the rows of every row group. It is found by URL, size and stamp of
its file, so a file that changed gets a new one.

The mixer's own permutation of all rows is the better shuffle, but it reads from anywhere: a row
of Parquet costs decoding its row group, and a permutation of a hundred million rows costs a
gigabyte per data process. Here blocks (row groups, tar shards) are permuted, and the rows of
``window`` blocks at a time among themselves.
"""

import hashlib
import os
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tunalab.data.documents import Document, Reject
from tunalab.data.mixing import stream_rng
from tunalab.data.shards.files import ShardFile, shown
from tunalab.errors import UserError, first_line
from tunalab.files import write_atomically
from tunalab.redaction import redacted
from tunalab.settings.loading import digest
from tunalab.settings.schema import ShardsConfig
from tunalab.terminal import progress_bar

_NUMBER = np.dtype("<i8")


@dataclass(frozen=True, eq=False)
class StoredIndex:
    """``length`` numbers, in a file or in memory."""

    length: int
    path: Path | None
    numbers: np.ndarray | None = None

    def load(self) -> np.ndarray:
        if self.numbers is not None:
            return self.numbers
        assert self.path is not None
        return np.fromfile(self.path, _NUMBER).astype(np.int64)


def cache_folder() -> Path | None:
    """TUNALAB_CACHE, else ``tunalab`` in the user's cache folder; None for a user without a home."""
    if folder := os.environ.get("TUNALAB_CACHE"):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "tunalab"
    home = os.path.expanduser("~")
    return None if home == "~" else Path(home) / ".cache" / "tunalab"


def stored_index(file: ShardFile, kind: str, build: Callable[[], np.ndarray]) -> StoredIndex:
    """The index of ``file``: kept from an earlier time, or what ``build`` returns. ``kind``: everything else it depends on.

    A file whose place tells no stamp is indexed anew in every run: an old index could not be told from a right one.
    """
    path = _path(file, kind)
    if path is not None and path.is_file():
        return StoredIndex(path.stat().st_size // _NUMBER.itemsize, path)
    numbers = np.ascontiguousarray(build(), _NUMBER)
    if path is not None and _write(path, numbers):
        return StoredIndex(len(numbers), path)
    return StoredIndex(len(numbers), None, numbers)


def _path(file: ShardFile, kind: str) -> Path | None:
    folder = cache_folder()
    if folder is None or not file.stamp:
        return None
    key = "\n".join((redacted(file.url), str(file.size), file.stamp, kind))
    return folder / "shards" / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.idx"


def _write(path: Path, numbers: np.ndarray) -> bool:
    """Whole or not at all, also when several processes index the same file; False where nothing can be written."""
    try:
        write_atomically(path, numbers.tobytes())
    except OSError:
        return False
    return True


_THREADS = 16  # they mostly wait, for the disk or for a server
_NAMED = 3


class Damaged(Exception):
    """A file that cannot be a shard of its source; the text says why, without the file's name."""


def index_files(name: str, files: Sequence[ShardFile], kind: str, build: Callable[[ShardFile], np.ndarray]) -> list[StoredIndex]:
    """An index for each of ``files``: kept ones, and what ``build`` makes of the others.

    Each process goes through the files in an order of its own, whatever seeds are set: so those that begin together find most
    files indexed by one another, and N of them take little more than an N-th of the time.

    Raises:
        UserError: ``build`` raised Damaged or Reject for some: how many, and the first of them.
    """

    def index(file: ShardFile) -> StoredIndex | str:
        try:
            return stored_index(file, kind, lambda: build(file))
        except Damaged as damaged:
            return f"{file.shown}: {damaged}"
        except Reject as reject:  # the file vanished since it was found
            return str(reject)
        except UserError as error:  # of its server
            return str(error)
        except OSError as error:
            return f"{file.shown} cannot be read: {first_line(error)}"

    order = random.SystemRandom().sample(range(len(files)), len(files))
    with ThreadPoolExecutor(_THREADS) as pool:
        # Shown only if it takes a while.
        results = pool.map(index, (files[number] for number in order))
        shown = progress_bar(results, desc=f"index {name}", total=len(files), delay=3)
        found = dict(zip(order, shown, strict=True))
    done = [found[number] for number in range(len(files))]
    broken = [item for item in done if isinstance(item, str)]
    if broken:
        more = f" (and {len(broken) - _NAMED} more of {len(files)} files)" if len(broken) > _NAMED else ""
        raise UserError(f"{name}: {'; '.join(broken[:_NAMED])}{more}")
    return [item for item in done if isinstance(item, StoredIndex)]


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
        kept = self._windows.get((epoch, number))
        if kept is None:
            kept = stream_rng(self._seed[0], 3, self._seed[1], epoch, _ROWS, number).permutation(rows)
            while len(self._windows) >= _KEPT:
                del self._windows[next(iter(self._windows))]
            self._windows[(epoch, number)] = kept
        return kept


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

    def files_read(self, every: bool) -> Sequence[ShardFile]:
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
