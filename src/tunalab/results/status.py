"""The status file of a run: how far it is, for whoever watches it from outside."""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tunalab.files import write_atomically
from tunalab.results.checking import Mismatch, build

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
        plain: Any = json.loads((run_dir / STATUS_FILE).read_text(encoding="utf-8"))
        return build(Status, plain)
    except (OSError, ValueError, Mismatch):
        return None
