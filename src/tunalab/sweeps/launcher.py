"""What launchers share: the file of sweeps/launch/, GPUs, stop signals, work and its outcomes.

Nothing here changes what a cell computes, except ``nodes`` and ``tasks_per_node`` of SLURM:
several processes read documents in another order than one, and a record says how many there were.

A launcher starts ``work.command(cell)`` for every cell that :meth:`Work.settled` returns None
for, and writes the history of each attempt (cells.py): ``begin`` when it starts, ``end`` when
it ended. Whether an attempt may be repeated, the history decides.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from tunalab.errors import EXIT_STOPPED, UserError, stop_signals_heeded
from tunalab.plugins import FORMS, Group, find
from tunalab.records.record import build
from tunalab.settings.layers import read_yaml
from tunalab.sweeps.cells import LOG_FILE, RETRIES, How, begin, end, is_finished, last_line, read_history, settle, take_lock
from tunalab.sweeps.grid import Cell
from tunalab.terminal import columns


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that fills with the stop signals received; handlers only take note, the loop acts.

    Outside the main thread Python allows no handlers: signals then keep their usual meaning.
    """
    received: list[int] = []
    before = {}
    try:
        for number in stop_signals_heeded():
            before[number] = signal.signal(number, lambda which, _: received.append(which))
    except ValueError:
        pass
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """What GPU_VARIABLE has to say for a process to see one GPU and no other, for each GPU that is visible here."""
    import torch  # here, not above: slow, and a mistake in the call should be told at once

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(GPU_VARIABLE, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


@dataclass(frozen=True)
class LocalLaunch:
    """Processes of this machine. ``parallel``: cells at a time, by default as many as cores and GPUs allow."""

    parallel: int | None = None


@dataclass(frozen=True)
class SlurmLaunch:
    """A job array, a job a cell. ``nodes`` to ``minutes`` are of one cell; words that are None are left to the cluster.

    ``array_parallelism``: jobs at a time. ``signal_seconds``: how long before its time limit a job is told to save. ``requeues``:
    how often a job may go on after a preemption, its time limit or a lost node; ``retries``: how often after an error of the cell.
    ``watch``: the driver stays until all cells have ended, looking every ``poll_seconds``; else it ends after submitting.
    ``setup``: lines of shell before each start. ``sbatch``: further options by their long names, true for one without a value.
    """

    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    memory_gb: int | None = None
    minutes: int = 240
    partition: str | None = None
    account: str | None = None
    constraint: str | None = None
    qos: str | None = None
    array_parallelism: int = 64
    signal_seconds: int = 120
    requeues: int = 50
    retries: int = 1
    watch: bool = True
    poll_seconds: float = 10.0
    setup: list[str] = field(default_factory=list)
    sbatch: dict[str, Any] = field(default_factory=dict)


Launch = Any  # LocalLaunch, SlurmLaunch, or a Launcher from outside, whose fields are the keys of its file
LAUNCHERS = {"local": "tunalab.sweeps.launcher:LocalLaunch", "slurm": "tunalab.sweeps.launcher:SlurmLaunch"}
SHIPPED = (LocalLaunch, SlurmLaunch)
GROUP = Group(
    "tunalab.launchers",
    "a launcher: a dataclass with a method run",
    lambda found: isinstance(found, type) and is_dataclass(found) and (found in SHIPPED or callable(getattr(found, "run", None))),
)
SMALLEST = {"memory_gb": 1, "requeues": 0, "retries": 0, "gpus_per_node": 0, "signal_seconds": 0, "poll_seconds": 0.1}  # others: 1
# What the launcher needs as it sets it, or what has a key of its own.
TAKEN = {
    *("array", "job-name", "comment", "output", "error", "open-mode", "requeue", "no-requeue", "signal", "ntasks", "wrap"),
    *("nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "time", "partition", "account", "constraint", "qos"),
    *("dependency", "kill-on-invalid-dep"),
}


def read_launch(path: Path) -> Launch:
    """Read and check a launch file.

    Raises:
        UserError: it is missing, has an unknown key, or a value that cannot be; names file, key and choices.
    """
    plain = read_yaml(path)
    if "launcher" not in plain:
        raise UserError(f"{path}: key 'launcher' is missing, choices: {', '.join(LAUNCHERS)}, {FORMS}")
    found = find(f"{path}: launcher", str(plain.pop("launcher")), GROUP, LAUNCHERS)
    try:
        launch = build(found, json.dumps(plain, default=str))
    except ValueError as error:  # a mismatch, or the class refuses its values
        raise UserError(f"{path}: {error}") from error
    if not isinstance(launch, SHIPPED):
        return launch
    for key, value in vars(launch).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value < SMALLEST.get(key, 1):
            raise UserError(f"{path}: {key}={value} is out of range (from {SMALLEST.get(key, 1)})")
    if isinstance(launch, SlurmLaunch):
        _check_slurm(path, launch)
    return launch


def _check_slurm(path: Path, launch: SlurmLaunch) -> None:
    if launch.signal_seconds >= 60 * launch.minutes:
        raise UserError(f"{path}: signal_seconds={launch.signal_seconds} leaves nothing of minutes={launch.minutes}")
    for option, value in launch.sbatch.items():
        if option.replace("_", "-").lstrip("-") in TAKEN:
            raise UserError(f"{path}: sbatch option {option!r} is set by the launcher, or has a key of its own")
        if value is False or not isinstance(value, str | int | float):
            raise UserError(f"{path}: sbatch option {option!r} must be a text, a number or true, got {value!r}")


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
        """75 if the sweep was stopped; else 1 if a cell failed, 75 if one is still to be trained, 0 if all are finished."""
        states = {outcome.state for outcome in self.outcomes}
        if self.interrupted:
            return EXIT_STOPPED
        return 1 if "failed" in states else EXIT_STOPPED if states & {"stopped", "queued", "not started"} else 0

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

    ``retries``: how often a cell that was killed in vain is started again. ``begins_at``: tokens that a cell has from its trunk.

    A cell whose ``after`` names another one waits for it (:meth:`held_back`).
    """

    cells: Sequence[Cell]
    command: Callable[[Cell], list[str]]
    hashes: Mapping[str, str]
    records: Path | None = None
    total_tokens: Callable[[Cell], int] | None = None
    retries: int = RETRIES
    begins_at: Callable[[Cell], int] = lambda cell: 0

    def is_finished(self, cell: Cell) -> bool:
        return is_finished(cell, self.hashes[cell.name], self.records)

    def held_back(self, cell: Cell, outcomes: Mapping[str, Outcome]) -> Literal["", "waits"] | Outcome:
        """Of a cell with a trunk: "" when that has ended, "waits" before, an outcome when it will not end."""
        trunk = next((one for one in self.cells if one.name == cell.after), None)
        if trunk is None or self.is_finished(trunk):
            return ""
        outcome = outcomes.get(trunk.name)
        if outcome is None or outcome.state == "queued":
            return "waits"
        if outcome.state == "failed":
            return Outcome(cell, "failed", f"its trunk {trunk.name} failed: {outcome.reason}", outcome.log)
        return Outcome(cell, "not started", f"its trunk {trunk.name} is {outcome.state}")

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
    """Trains the cells of a sweep on something: local.py on this machine, slurm.py on a cluster, or one from outside."""

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


def attempt(work: Work, cell: Cell, launcher: str, prefix: Sequence[str] = (), signals: Sequence[int] = ()) -> Outcome:
    """Train a cell in a process of this machine, ``[*prefix, *work.command(cell)]``, until that ends: for launchers from outside.

    The cell's lock is held and inherited, its history written, its output goes to its log. Once ``signals``
    (:func:`stop_signals`) has one, the process gets SIGTERM and the time it needs to save.
    Raises OSError: the disk is full, or there is no such command.
    """
    began, lock = time.monotonic(), take_lock(cell.run_dir)
    if lock is None:
        return Outcome(cell, "not started", f"another process holds {cell.run_dir}")
    with lock:
        settled = work.settled(cell)
        if settled is not None:
            return settled
        begin(cell.run_dir, launcher)
        log = cell.run_dir / LOG_FILE
        with log.open("ab") as output:
            start = output.tell()
            command = [*prefix, *work.command(cell)]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, pass_fds=(lock.fileno(),)
            )
        stopping = False
        while (code := process.poll()) is None:
            if signals and not stopping:
                stopping = True
                process.terminate()
            time.sleep(0.05)
        how: How = "finished"
        reason = ""
        if not work.is_finished(cell):
            if code == EXIT_STOPPED or (stopping and code == -signal.SIGTERM):
                how, reason = "stopped", "goes on when started again"
            else:
                how, reason = (
                    failure(code, last_line(log, start)) if code else ("failed", "no finished record of this configuration")
                )
        if read_history(cell.run_dir).open is not None:  # the cell itself may have written its end
            end(cell.run_dir, how, reason)
    state: State = "failed" if how in ("failed", "killed") else cast(State, how)
    return Outcome(cell, state, reason, log, time.monotonic() - began)


def at_a_time(launch: Launch, threads: int, parallel: int | None = None) -> int:
    """How many cells are trained at the same time. ``parallel``: as the command line says; ``threads``: of a cell."""
    if isinstance(launch, LocalLaunch):
        from tunalab.sweeps.local import default_parallel

        return parallel or launch.parallel or default_parallel(threads, visible_gpus())
    if isinstance(launch, SlurmLaunch):
        return parallel or launch.array_parallelism
    return parallel or int(getattr(launch, "parallel", None) or 1)


def launcher(launch: Launch, threads: int, parallel: int | None = None) -> Launcher:
    """Ready to run. ``threads`` and ``parallel`` as for :func:`at_a_time`.

    Raises UserError: ``parallel`` is given to a launcher from outside that has no such field.
    """
    if not isinstance(launch, SHIPPED):
        if parallel is None:
            return cast(Launcher, launch)
        if not hasattr(launch, "parallel"):
            raise UserError(f"--parallel {parallel}: the launcher {type(launch).__name__} has no field parallel")
        return cast(Launcher, replace(launch, parallel=parallel))
    number = at_a_time(launch, threads, parallel)
    if isinstance(launch, LocalLaunch):
        from tunalab.sweeps.local import LocalLauncher

        return LocalLauncher(number, threads, visible_gpus())
    from tunalab.sweeps.slurm import SlurmLauncher

    return SlurmLauncher(replace(launch, array_parallelism=number), threads)
