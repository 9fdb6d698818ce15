"""A cell of a sweep on the disk: its attempts, whether it is finished, its lock, record and log.

A line of JSON for each event, appended in one write, never changed: a crash can tear the last
line and nothing else. Whoever writes holds the run directory's lock. An attempt that began and
has no end, while the lock is free, died without a word (kill -9, power cut): :func:`settle` says
so at the next look.

    {"event": "begun", "time": ..., "launcher": "local", "host": ..., "job": ""}
    {"event": "started", "time": ..., "job": "4711"}        only where the number of the process comes after the beginning
    {"event": "ended", "time": ..., "how": "killed", "reason": ..., "tokens": ..., "saved": ...}
    {"event": "retry", "time": ...}        what went before counts no more against the cell
"""

import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, get_args

from tunalab.errors import UserError
from tunalab.files import append_line, appended_lines, lock
from tunalab.records.log import read_status
from tunalab.records.record import RECORD_FILE, Record, read_head, read_record, write_record
from tunalab.redaction import redacted
from tunalab.settings.loading import completed, plain_hash
from tunalab.sweeps.grid import Cell
from tunalab.training.claiming import END_FILE, LOCK_FILE, is_same

ATTEMPTS_FILE = "attempts.jsonl"
How = Literal["finished", "failed", "stopped", "preempted", "killed"]
RETRIES = 3
SAME_FAILURE = 2  # so many errors of its own at one place, and a cell has failed: the next would be the same


@dataclass(frozen=True)
class Attempt:
    """One start of a cell. ``job``: process id, or a scheduler's id; times are Unix seconds, None where no line tells.

    ``tokens``: consumed at the end, by the last status file. ``saved``: the step of the newest checkpoint then, what the next
    attempt starts from.
    """

    began: float | None
    launcher: str = ""
    host: str = ""
    job: str = ""
    ended: float | None = None
    how: How | None = None
    reason: str = ""
    tokens: int = 0
    saved: int = 0


@dataclass(frozen=True)
class History:
    """All attempts, oldest first. ``counted_from``: those before it count no more. ``unreadable``: lines that are torn."""

    attempts: Sequence[Attempt] = field(default_factory=tuple)
    counted_from: int = 0
    unreadable: int = 0

    @property
    def open(self) -> Attempt | None:
        """The attempt that has begun and not ended: it runs, or it died without a word."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].how is None else None

    def count(self, how: How) -> int:
        return sum(attempt.how == how for attempt in self.attempts)

    def in_vain(self) -> list[Attempt]:
        """Attempts that were killed or failed at the place of the newest checkpoint: the one that left it, and those after it.

        Being stopped or preempted says nothing about a cell: such attempts are passed over.
        """
        found: list[Attempt] = []
        furthest = 0
        for attempt in self.attempts[self.counted_from :]:
            if attempt.saved > furthest:
                furthest, found = attempt.saved, []
            if attempt.how in ("killed", "failed"):
                found.append(attempt)
        return found

    def given_up(self, retries: int = RETRIES) -> str | None:
        """Why the cell has failed and is not to be started again, None for one that may be.

        It may be killed in vain and started again ``retries`` times; an error of its own at the same place once.
        """
        vain = self.in_vain()
        own = sum(attempt.how == "failed" for attempt in vain)
        if len(vain) <= retries and own < SAME_FAILURE:
            return None
        times = f" ({len(vain)} times without getting further)" if len(vain) > 1 else ""
        return f"{vain[-1].reason}{times}"

    def summary(self) -> dict[str, int]:
        """How often it was started, and how often each kind of end but the last came; empty where nothing is known."""
        if not self.attempts:
            return {}
        counts = {how: self.count(how) for how in get_args(How) if how != "finished"}
        return {"starts": len(self.attempts), **{how: count for how, count in counts.items() if count}}


def read_history(run_dir: Path) -> History:
    """The history of a run directory, empty where there is none."""
    attempts: list[Attempt] = []
    counted_from = unreadable = 0
    for line in filter(None, appended_lines(run_dir / ATTEMPTS_FILE, torn="keep")):
        try:
            event = json.loads(line)
            kind = event.pop("event")
            at = float(event.pop("time"))
            if kind == "begun":
                attempts.append(Attempt(at, **event))
            elif kind == "started" and attempts and attempts[-1].how is None:
                attempts[-1] = replace(attempts[-1], job=str(event["job"]))
            elif kind == "ended":
                if not attempts or attempts[-1].how is not None:  # its first line is torn
                    attempts.append(Attempt(None))
                attempts[-1] = replace(attempts[-1], ended=at, **event)
            elif kind == "retry":
                counted_from = len(attempts)
        except (ValueError, KeyError, TypeError, AttributeError):
            unreadable += 1
    return History(tuple(attempts), counted_from, unreadable)


def begin(run_dir: Path, launcher: str, job: str = "") -> None:
    """To be written before there is a process: one that outlives its driver is then known from the first moment.

    Raises OSError: the disk is full or not writable.
    """
    _append(run_dir, "begun", launcher=launcher, host=socket.gethostname(), job=job)


def started(run_dir: Path, job: str) -> None:
    """The process id of the attempt that has begun. Raises OSError: the disk is full or not writable."""
    _append(run_dir, "started", job=job)


def end(run_dir: Path, how: How, reason: str = "") -> None:
    """The end of the attempt that has begun. Raises OSError: the disk is full or not writable."""
    status = read_status(run_dir)
    tokens = 0 if status is None else status.tokens
    _append(run_dir, "ended", how=how, reason=redacted(reason)[:1000], tokens=tokens, saved=newest_step(run_dir))


def settle(run_dir: Path, finished: bool, last_words: str = "") -> History:
    """The history, for one who holds the lock: an attempt without an end is over, and gets one.

    ``finished``: whether its finished record is there; ``last_words``: the end of its log. Raises OSError: the disk is full or not
    writable.
    """
    history = read_history(run_dir)
    if history.open is None:
        return history
    if finished:
        end(run_dir, "finished")
    else:
        words = f", last line: {last_words}" if last_words else ""
        end(run_dir, "killed", f"ended unseen: killed, or the machine went down{words}")
    return read_history(run_dir)


def forgive(run_dir: Path) -> None:
    """From here on the cell counts as one that has not failed yet. Raises OSError: the disk is full or not writable."""
    _append(run_dir, "retry")


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint, 0 without one. Only names are looked at: what is damaged is found when it is loaded."""
    steps = [path.name.removeprefix("step-") for path in (run_dir / "checkpoints").glob("step-*")]
    return max((int(step) for step in steps if step.isascii() and step.isdecimal()), default=0)


def _append(run_dir: Path, event: str, **about: Any) -> None:
    append_line(run_dir / ATTEMPTS_FILE, {"event": event, "time": round(time.time(), 3), **about}, flush=True)


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
        if record and record.run.finished and _is_of(record, config_hash):
            return record
    return None


def _is_of(record: Record, config_hash: str) -> bool:
    """Also as today's settings hash it: one that was added since, at its default, changes nothing."""
    return config_hash in (record.run.config_hash, plain_hash(completed(record.config)))


def is_finished(cell: Cell, config_hash: str, records: Path | None = None) -> bool:
    """Whether there is a :func:`finished_record`, most often without reading the whole of it; of a trunk, whether it has ended."""
    if cell.until:
        return (cell.run_dir / END_FILE).is_file()
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


def collect(cells: Sequence[Cell], config_hash: ConfigHash, records: Path | None = None) -> list[Record]:
    """The records of all finished cells, in the order of the cells."""
    found = [finished_record(cell, config_hash(cell), records) for cell in cells]
    return [record for record in found if record is not None]


def check_publishing(cells: Sequence[Cell], config_hash: ConfigHash, records: Path) -> None:
    """Raises UserError: a record of another sweep, of a run with other settings, stands where one of these would be written."""
    for cell in cells:
        path = records / f"{cell.name}.json"
        there = read_record(path) if path.exists() else None
        if there is not None and there.run.sweep not in ("", None, cell.sweep) and not _is_of(there, config_hash(cell)):
            raise UserError(
                f"{path} is of the sweep {there.run.sweep}, of a run with other settings: give {cell.sweep} another folder "
                "(records:), or move that file away"
            )


def warn_of_other_components(
    cells: Sequence[Cell], config_hash: ConfigHash, records: Path | None, described: Mapping[str, Mapping[str, Any]]
) -> None:
    """Say which finished runs took other encoders, VAEs or tokenizers than the rest, still to be trained, will; no setting tells.

    ``described``: of each cell by name what its record would say of the components that are here (``Components.describe``).
    """
    found: dict[str, list[str]] = {}
    for cell in cells:
        record = finished_record(cell, config_hash(cell), records)
        for kind, taken in record.components.items() if record else ():
            here = described[cell.name].get(kind, {}).get("folder")
            if here and taken.get("folder") not in (None, here):
                found.setdefault(f"{taken['folder']}, here {here}", []).append(cell.name)
    for what, names in found.items():
        print(
            f"warning: finished runs that took other components than the rest of the sweep will: {len(names)} ({what}). Tables may "
            f"count them as alike; move their records away to train them again: {', '.join(names[:4])}"
            + (", ..." if len(names) > 4 else ""),
            file=sys.stderr,
        )


def publish(cells: Sequence[Cell], config_hash: ConfigHash, records: Path) -> list[Path]:
    """Copy the records of finished cells, and their last samples, into the folder to be committed, named after the cells.

    Returns the files written. Raises UserError as ``check_publishing`` does; nothing is written then.
    """
    check_publishing(cells, config_hash, records)
    written = []
    for cell in cells:
        record = finished_record(cell, config_hash(cell))
        if record is not None:
            write_record(records / f"{cell.name}.json", record)
            written.append(records / f"{cell.name}.json")
            if (cell.run_dir / "samples").is_dir():
                from tunalab.records.samples import publish_beside

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
        if not lock(stream, wait=False):
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


def holds(run_dir: Path, held: IO[str]) -> bool:
    """Whether the lock is that of the folder that has this name now: a run directory may be removed and made anew meanwhile."""
    return is_same(run_dir / LOCK_FILE, held.fileno())


def is_locked(run_dir: Path) -> bool:
    """Whether a process holds the run directory. Looking takes a share of a free lock for a moment."""
    try:
        with (run_dir / LOCK_FILE).open(encoding="utf-8") as stream:
            return not lock(stream, wait=False, shared=True)
    except FileNotFoundError:
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
