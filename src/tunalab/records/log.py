"""The files by which a run is watched: ``status.json``, and its training curve, ``metrics.jsonl``.

What MLflow shows of training comes from here, so that a server which was away can be given all of
it later. Rows are made at shares of the budget, never by the clock: a run that is killed and goes
on writes the rows that an undisturbed one writes.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tunalab.errors import UserError
from tunalab.files import append_line, appended_lines, json_line, write_atomically

STATUS_FILE = "status.json"


@dataclass(frozen=True)
class Status:
    """Tokens consumed of the total, speed, seconds left (None while unknown), what the run is doing, and when it said so (Unix
    seconds, set on writing): a run that is silent for long may be dead.
    """

    tokens: int
    total_tokens: int
    tokens_per_second: float
    seconds_left: float | None
    phase: str
    time: float = 0.0


def write_status(run_dir: Path, status: Status) -> None:
    """Replace the status file of a run atomically."""
    write_atomically(run_dir / STATUS_FILE, json.dumps(asdict(replace(status, time=round(time.time(), 3)))) + "\n")


def read_status(run_dir: Path) -> Status | None:
    """The status of a run, None where there is none to be had: it only decorates a progress bar, and must never stop one."""
    try:
        status = Status(**json.loads((run_dir / STATUS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    numbers = (status.tokens, status.total_tokens, status.tokens_per_second, status.time, status.seconds_left or 0)
    return status if isinstance(status.phase, str) and all(isinstance(number, int | float) for number in numbers) else None


TRAINING_LOG = "metrics.jsonl"  # of a run directory
ROWS = 1000  # of a whole run


@dataclass(frozen=True)
class Row:
    """Means over the steps since the row before: ``metrics`` by name, at ``tokens`` consumed. ``time``: Unix seconds."""

    tokens: int
    time: float
    metrics: dict[str, float]


def is_due(before: int, tokens: int, budget: int) -> bool:
    """Whether a step that went from ``before`` to ``tokens`` completes a row."""
    return tokens * ROWS // budget > before * ROWS // budget


def append_row(run_dir: Path, row: Row) -> None:
    append_line(run_dir / TRAINING_LOG, _plain(row))


def read_rows(run_dir: Path) -> list[Row]:
    """The rows of a run, none where there is no file. A torn last line is none: its run was killed while it wrote it.

    Raises:
        UserError: another line is broken.
    """
    path, rows = run_dir / TRAINING_LOG, []
    for number, line in enumerate(appended_lines(path), start=1):
        try:
            plain = json.loads(line)
            rows.append(Row(plain.pop("tokens"), plain.pop("time"), plain))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{path}: line {number} is no row of a training curve: remove it to go on") from error
    return rows


def rewind(run_dir: Path, tokens: int) -> list[Row]:
    """Drop the rows past the checkpoint that a run goes on from, which it will write again; returns those that stay."""
    rows = [row for row in read_rows(run_dir) if row.tokens <= tokens]
    if (run_dir / TRAINING_LOG).exists():
        write_atomically(run_dir / TRAINING_LOG, "".join(json_line(_plain(row)) for row in rows))
    return rows


def _plain(row: Row) -> dict[str, Any]:
    return {"tokens": row.tokens, "time": round(row.time, 3), **row.metrics}
