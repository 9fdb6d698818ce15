"""What a launcher is given, what it gives back: the same for subprocesses of this machine and for the jobs of a cluster.

A launcher starts ``work.command(cell)`` for every cell that :meth:`Work.settled` returns None for, and writes the history of each
attempt (attempts.py): ``begin`` when it starts, ``end`` when it ended. Whether an attempt may be repeated, the history decides.
"""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from tunalab.errors import EXIT_STOPPED
from tunalab.results.columns import columns
from tunalab.sweeps.attempts import RETRIES, settle
from tunalab.sweeps.cells import LOG_FILE, is_finished, last_line
from tunalab.sweeps.grid import Cell

State = Literal["finished", "skipped", "failed", "stopped", "queued", "not started"]


@dataclass(frozen=True)
class Outcome:
    """How one cell ended, or that it is ``queued`` and goes on without its driver. ``reason``: the last line of the error, or why
    there is none.
    """

    cell: Cell
    state: State
    reason: str = ""
    log: Path | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """How a sweep ended, with an outcome for every cell."""

    outcomes: list[Outcome]
    interrupted: bool = False

    @classmethod
    def of(cls, cells: Sequence[Cell], outcomes: Mapping[str, Outcome], interrupted: bool = False) -> "Result":
        """In the order of the cells. ``outcomes``: by name of the cell; the others were not started."""
        return cls([outcomes.get(cell.name, Outcome(cell, "not started")) for cell in cells], interrupted)

    @property
    def exit_code(self) -> int:
        """75 if the sweep was stopped; else 1 if a cell failed, 75 if one stopped or is queued, 0 if all are finished."""
        states = {outcome.state for outcome in self.outcomes}
        if self.interrupted:
            return EXIT_STOPPED
        return 1 if "failed" in states else EXIT_STOPPED if states & {"stopped", "queued"} else 0

    def table(self) -> str:
        """A row per cell, the failed ones last with their error and log, where the eye is after a long sweep."""
        order: list[State] = ["skipped", "finished", "queued", "not started", "stopped", "failed"]
        ranked = sorted(self.outcomes, key=lambda outcome: order.index(outcome.state))
        rows = [["run", "state", "minutes"]]
        rows += [[outcome.cell.name, outcome.state, f"{outcome.seconds / 60:.1f}" if outcome.seconds else ""] for outcome in ranked]
        lines = columns(rows).splitlines()
        width = max(map(len, lines))
        for index, outcome in enumerate(ranked, start=1):
            log = f"  (log: {outcome.log})" if outcome.state == "failed" and outcome.log else ""
            lines[index] = f"{lines[index].ljust(width)}  {outcome.reason}{log}".rstrip()
        counts = [(state, sum(outcome.state == state for outcome in ranked)) for state in order]
        return "\n".join([*lines, ", ".join(f"{count} {state}" for state, count in counts if count)])


@dataclass(frozen=True)
class Work:
    """The cells of a sweep. ``hashes``: of their resolved configurations, by name; a finished record with it, in the run directory
    or in ``records``, is a finished cell. ``command``: the argument list that trains one. ``total_tokens``: its budget.

    ``retries``: how often a cell that was killed in vain is started again.
    """

    cells: Sequence[Cell]
    command: Callable[[Cell], list[str]]
    hashes: Mapping[str, str]
    records: Path | None = None
    total_tokens: Callable[[Cell], int] | None = None
    retries: int = RETRIES

    def is_finished(self, cell: Cell) -> bool:
        return is_finished(cell, self.hashes[cell.name], self.records)

    def settled(self, cell: Cell) -> Outcome | None:
        """The outcome of a cell that is not to be started, None for one that is. The caller holds the cell's lock.

        An attempt that died without a word is recorded here. Raises OSError: the disk is full or not writable.
        """
        finished = self.is_finished(cell)
        history = settle(cell.run_dir, finished, last_line(cell.run_dir / LOG_FILE))
        if finished:
            return Outcome(cell, "skipped")
        reason = history.given_up(self.retries)
        return None if reason is None else Outcome(cell, "failed", f"{reason}; --retry starts it again", cell.run_dir / LOG_FILE)


class Launcher(Protocol):
    """Trains the cells of a sweep on something: local.py on this machine, slurm.py on a cluster."""

    def run(self, work: Work) -> Result:
        """Until every cell has an outcome, or a stop signal has been served; one cell failing stops no other.

        Cells that another driver holds are waited for, and skipped if they were finished there.
        """
        ...


def failure(code: int, line: str) -> tuple[Literal["failed", "killed"], str]:
    """How a process ended that neither finished nor saved, and why. ``code``: negative for a signal; ``line``: its last words."""
    if code > 0:
        return "failed", line or f"exit code {code}, no output"
    how = f"killed by signal {-code} ({signal.strsignal(-code)})"
    how += ", out of memory?" if code == -signal.SIGKILL else ""
    return "killed", f"{how}, last line: {line}" if line else how
