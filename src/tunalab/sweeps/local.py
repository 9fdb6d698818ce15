"""The local launcher: a bounded queue of subprocesses, one per cell, that may be stopped and started again at any moment."""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Literal, TextIO

from tunalab.errors import EXIT_STOPPED
from tunalab.sweeps.cells import LOG_FILE, ConfigHash, finished_record, last_line, take_lock
from tunalab.sweeps.devices import GPU_VARIABLE
from tunalab.sweeps.grid import Cell
from tunalab.sweeps.plan import align
from tunalab.sweeps.progress import Progress

State = Literal["finished", "skipped", "failed", "stopped", "not started"]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """How one cell ended. ``reason``: the last line of the error, or why there is none."""

    cell: Cell
    state: State
    reason: str = ""
    log: Path | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """How a sweep ended."""

    outcomes: list[Outcome]
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """75 if the sweep was stopped; else 1 if a cell failed, 75 if one stopped, 0 if all are finished."""
        states = {outcome.state for outcome in self.outcomes}
        if self.interrupted:
            return EXIT_STOPPED
        return 1 if "failed" in states else EXIT_STOPPED if "stopped" in states else 0

    def table(self) -> str:
        """A row per cell, the failed ones last with their error and log, where the eye is after a long sweep."""
        order: list[State] = ["skipped", "finished", "not started", "stopped", "failed"]
        ranked = sorted(self.outcomes, key=lambda outcome: order.index(outcome.state))
        rows = [["run", "state", "minutes"]]
        rows += [[outcome.cell.name, outcome.state, f"{outcome.seconds / 60:.1f}" if outcome.seconds else ""] for outcome in ranked]
        lines = align(rows).splitlines()
        width = max(map(len, lines))
        for index, outcome in enumerate(ranked, start=1):
            log = f"  (log: {outcome.log})" if outcome.state == "failed" else ""
            lines[index] = f"{lines[index].ljust(width)}  {outcome.reason}{log}".rstrip()
        counts = [(state, sum(outcome.state == state for outcome in ranked)) for state in order]
        return "\n".join([*lines, ", ".join(f"{count} {state}" for state, count in counts if count)])


@dataclass
class _Running:
    cell: Cell
    process: "subprocess.Popen[bytes]"
    lock: IO[str]
    log_start: int
    began: float
    gpu: str | None


def default_parallel(threads: int = 1, gpus: Sequence[str] = ()) -> int:
    """As many cells at a time as the cores that this process may use allow, and where there are GPUs at most one on each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // threads, len(gpus) or cores))


def run_cells(
    cells: Sequence[Cell],
    command: Callable[[Cell], list[str]],
    config_hash: ConfigHash,
    *,
    records: Path | None = None,
    parallel: int | None = None,
    threads: int = 1,
    gpus: Sequence[str] = (),
    total_tokens: Callable[[Cell], int] | None = None,
    stream: TextIO | None = None,
    line_seconds: float = 30.0,
) -> Result:
    """Train every cell that is not finished, ``parallel`` at a time with ``threads`` threads each; one failing stops no other.

    ``command(cell)`` is the argument list of its process; its output goes to ``run_dir/log.txt``. ``config_hash(cell)`` is the
    hash of its resolved configuration: a record with it, finished, in the run directory or in ``records``, is a finished
    cell. All hashes are taken first, so a wrong setting ends the sweep before anything is trained. A cell that another driver
    holds is tried again until it is free, and then skipped if it was finished there. A cell sees one of ``gpus``, the one with
    the fewest cells on it.

    SIGINT or SIGTERM: cells get SIGTERM and the time they need to save, no new one starts. A second one kills them.

    Raises:
        UserError: from ``config_hash``.
    """
    queue = _Queue(cells, command, {cell.name: config_hash(cell) for cell in cells}, records, threads, gpus)
    progress = Progress(cells, total_tokens, stream, line_seconds)
    with _stop_signals() as signals:
        try:
            queue.work(parallel or default_parallel(threads, gpus), progress, signals)
        finally:
            queue.abandon()
            progress.close()
    rest = [Outcome(cell, "not started") for cell in cells if cell.name not in queue.outcomes]
    by_name = queue.outcomes | {outcome.cell.name: outcome for outcome in rest}
    return Result([by_name[cell.name] for cell in cells], interrupted=bool(signals))


class _Queue:
    def __init__(
        self,
        cells: Sequence[Cell],
        command: Callable[[Cell], list[str]],
        hashes: dict[str, str],
        records: Path | None,
        threads: int,
        gpus: Sequence[str],
    ) -> None:
        self.waiting = deque(cells)
        self.busy: deque[Cell] = deque()  # held by another driver
        self.running: list[_Running] = []
        self.outcomes: dict[str, Outcome] = {}
        self.command, self.hashes, self.records = command, hashes, records
        self.threads, self.gpus = threads, gpus
        self._announced: set[str] = set()
        self._asked, self._killed = False, False

    def work(self, parallel: int, progress: Progress, signals: list[int]) -> None:
        """Run until nothing is left, or until a stop signal has been served."""
        last_look = 0.0
        while self.running or ((self.waiting or self.busy) and not signals):
            self._reap(progress)
            self._serve(signals, progress)
            while self.waiting and len(self.running) < parallel and not signals:
                self._start(self.waiting.popleft(), progress)
            if time.monotonic() - last_look >= 1.0:  # status files and foreign locks change slowly
                last_look = time.monotonic()
                if not signals and len(self.running) < parallel:
                    self.waiting, self.busy = self.busy, deque()
                ended = {name: outcome.state in ("finished", "skipped") for name, outcome in self.outcomes.items()}
                progress.update([run.cell for run in self.running], ended)
            if self.running or self.busy:
                time.sleep(0.05)

    def abandon(self) -> None:
        """After an error of the driver itself: ask what still runs to save and end."""
        for run in self.running:
            run.process.terminate()

    def _start(self, cell: Cell, progress: Progress) -> None:
        if self._is_finished(cell):
            self.outcomes[cell.name] = Outcome(cell, "skipped")
            return
        lock = take_lock(cell.run_dir)
        if lock is None:
            if cell.name not in self._announced:
                self._announced.add(cell.name)
                progress.say(f"{cell.name}: another process holds {cell.run_dir}, waiting for it")
            self.busy.append(cell)
            return
        if self._is_finished(cell):  # by another driver, between the look and the lock
            lock.close()
            self.outcomes[cell.name] = Outcome(cell, "skipped")
            return
        log = cell.run_dir / LOG_FILE
        argv = self.command(cell)
        variables = dict.fromkeys(THREAD_VARIABLES, str(self.threads)) | {"PYTHONUNBUFFERED": "1"}
        used = [run.gpu for run in self.running]
        gpu = min(self.gpus, key=used.count, default=None)
        variables |= {} if gpu is None else {GPU_VARIABLE: gpu}
        with log.open("ab") as output:
            output.write(f"=== {datetime.now().isoformat(timespec='seconds')} {' '.join(argv)}\n".encode())
            output.flush()
            log_start = output.tell()
            try:
                # Its own session: Ctrl-C in the terminal reaches the driver alone, which passes it on once.
                # The lock goes with it: a cell that outlives its driver stays locked.
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | variables,
                    start_new_session=True,
                    pass_fds=(lock.fileno(),),
                )
            except OSError as error:
                lock.close()
                self.outcomes[cell.name] = Outcome(cell, "failed", f"{argv[0]} does not start: {error.strerror}", log)
                return
        self.running.append(_Running(cell, process, lock, log_start, time.monotonic(), gpu))

    def _is_finished(self, cell: Cell) -> bool:
        return finished_record(cell, self.hashes[cell.name], self.records) is not None

    def _reap(self, progress: Progress) -> None:
        for run in [run for run in self.running if run.process.poll() is not None]:
            self.running.remove(run)
            outcome = self._outcome(run)
            run.lock.close()
            self.outcomes[run.cell.name] = outcome
            if outcome.state == "failed":  # now, not only at the end: it may be the same mistake in every cell
                progress.say(f"{run.cell.name} failed: {outcome.reason}  (log: {outcome.log})")

    def _outcome(self, run: _Running) -> Outcome:
        code, log = run.process.returncode, run.cell.run_dir / LOG_FILE
        seconds = time.monotonic() - run.began
        line = last_line(log, run.log_start)
        if code == 0:
            if self._is_finished(run.cell):
                return Outcome(run.cell, "finished", "", log, seconds)
            return Outcome(run.cell, "failed", "exit code 0 without a finished record of this configuration", log, seconds)
        if code == EXIT_STOPPED:
            return Outcome(run.cell, "stopped", "saved, goes on when started again", log, seconds)
        if self._killed and code < 0:
            return Outcome(run.cell, "stopped", "killed before it had saved, goes on from its last checkpoint", log, seconds)
        if self._asked and code == -signal.SIGTERM:  # it had not begun to train, or it would have saved
            return Outcome(run.cell, "stopped", "stopped while starting", log, seconds)
        how = f"killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            how += ", out of memory?"
        reason = f"{how}, last line: {line}" if code < 0 and line else line or f"{how}, no output"
        return Outcome(run.cell, "failed", reason, log, seconds)

    def _serve(self, signals: list[int], progress: Progress) -> None:
        """Pass stop signals on, each stage once."""
        if signals and not self._asked:
            self._asked = True
            progress.say(f"stopping: {len(self.running)} run(s) save first; once more kills them")
            for run in self.running:
                run.process.terminate()
        if len(signals) > 1 and not self._killed:
            self._killed = True
            for run in self.running:
                os.killpg(run.process.pid, signal.SIGKILL)  # with its loader processes


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills with the stop signals received; handlers only take note, the loop acts.

    Outside the main thread Python allows no handlers: signals then keep their usual meaning.
    """
    received: list[int] = []
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda which, _: received.append(which))
    except ValueError:
        pass
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
