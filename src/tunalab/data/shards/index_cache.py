"""Where the samples of a file start, found once: kept in a folder of the user, else in memory.

An index is int64 numbers in little-endian bytes, nothing else: for files read by ranges the start of every sample and the end of
the last one (the layout of the ``.tar.idx`` files that ``energon prepare`` writes), for Parquet the rows of every row group. It is
found by URL, size and stamp of its file, so a file that changed gets a new one.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunalab.data.shards.files import ShardFile
from tunalab.files import write_atomically
from tunalab.redaction import redacted

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
