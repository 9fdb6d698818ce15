"""What the disk says about a cell: finished or not, taken by a driver or free, its record, its log."""

import fcntl
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from tunalab.config import completed, plain_hash
from tunalab.errors import UserError
from tunalab.results.heads import read_head
from tunalab.results.records import RECORD_FILE, Record, read_record, write_record
from tunalab.sweeps.grid import Cell
from tunalab.training.claiming import LOCK_FILE, is_same

LOG_FILE = "log.txt"
GLANCES = 5  # a lock that is_locked() is looking at is free again at once
ConfigHash = Callable[[Cell], str]


def finished_record(cell: Cell, config_hash: str, records: Path | None = None) -> Record | None:
    """The record that makes this cell finished: in its run directory, or published in the folder ``records``.

    It must say ``finished`` and carry the hash of the configuration as it is now, else an edited sweep would show old results.
    A damaged record in the run directory is named and counts for nothing: the cell goes on from its last checkpoint and writes
    a new one.

    Raises:
        UserError: a published record is damaged.
    """
    for path in _record_files(cell, records):
        record = _read(path, of_run=path.parent == cell.run_dir)
        if record is not None and record.run.finished and config_hash in (record.run.config_hash, _hash_today(record)):
            return record
    return None


def is_finished(cell: Cell, config_hash: str, records: Path | None = None) -> bool:
    """Whether there is a :func:`finished_record`, most often without reading the whole of it."""
    for path in _record_files(cell, records):
        head = read_head(path)
        if head is None or (head.finished and head.config_hash != config_hash):
            return finished_record(cell, config_hash, records) is not None
        if head.finished:
            return True
    return False


def _record_files(cell: Cell, records: Path | None) -> list[Path]:
    paths = [cell.run_dir / RECORD_FILE, *([] if records is None else [records / f"{cell.name}.json"])]
    return [path for path in paths if path.exists()]


def _read(path: Path, of_run: bool) -> Record | None:
    try:
        return read_record(path)
    except UserError as error:
        if not of_run:
            raise
        print(f"warning: {error}; the run is done again", file=sys.stderr)
        return None


def _hash_today(record: Record) -> str:
    """The hash a record's configuration has under today's settings: one that was added since, at its default, changes nothing."""
    return plain_hash(completed(record.config))


def collect(cells: Sequence[Cell], config_hash: ConfigHash, records: Path | None = None) -> list[Record]:
    """The records of all finished cells, in the order of the cells."""
    found = [finished_record(cell, config_hash(cell), records) for cell in cells]
    return [record for record in found if record is not None]


def publish(cells: Sequence[Cell], config_hash: ConfigHash, records: Path) -> list[Path]:
    """Copy the records of finished cells, and their last samples, into the folder to be committed, named after the cells.

    Returns the files written.
    """
    written = []
    for cell in cells:
        record = finished_record(cell, config_hash(cell))
        if record is not None:
            write_record(records / f"{cell.name}.json", record)
            written.append(records / f"{cell.name}.json")
            if (cell.run_dir / "samples").is_dir():
                from tunalab.results.samples import publish_beside  # here: it takes seconds

                written += publish_beside({cell.name: cell.run_dir}, records)
    return written


def take_lock(run_dir: Path) -> IO[str] | None:
    """The run directory's lock, held until the stream (and every process that inherits it) closes; None if it is taken.

    The lock is the kernel's, not the file's existence: it ends with its holders, also when they are killed. The child inherits
    it, so a cell that outlives its driver still cannot be trained a second time beside itself.
    """
    for _ in range(GLANCES):
        run_dir.mkdir(parents=True, exist_ok=True)
        stream = open(run_dir / LOCK_FILE, "a+", encoding="utf-8")  # noqa: SIM115 (it is the lock, and outlives this function)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            time.sleep(0.01)
            continue
        if not holds(run_dir, stream):  # removed between the two: it locks nothing
            stream.close()
            continue
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        return stream
    return None


def holds(run_dir: Path, lock: IO[str]) -> bool:
    """Whether the lock is that of the folder that has this name now: a run directory may be removed and made anew meanwhile."""
    return is_same(run_dir / LOCK_FILE, lock.fileno())


def is_locked(run_dir: Path) -> bool:
    """Whether a process holds the run directory. Looking takes a share of a free lock for a moment."""
    try:
        with (run_dir / LOCK_FILE).open(encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def last_line(log: Path, start: int = 0) -> str:
    """The last line with something in it that a log holds from byte ``start`` on; empty if there is none.

    Carriage returns count as line ends (progress bars), colours are taken off.
    """
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(start, size - 65536))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    return lines[-1] if lines else ""
