"""The local launcher: a bounded queue of subprocesses, one per cell, that may be stopped and started again at any moment."""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Literal, TextIO

from tunalab.errors import EXIT_STOPPED
from tunalab.sweeps.cells import ATTEMPTS_FILE, LOG_FILE, begin, end, holds, last_line, read_history, started, take_lock
from tunalab.sweeps.grid import Cell
from tunalab.sweeps.launcher import GPU_VARIABLE, Outcome, Result, State, Work, failure, stop_signals
from tunalab.sweeps.state import Progress

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
# glibc keeps what is freed: a step asks for the same blocks again. On CPU a tiny run trains in .96 of the time so (median of five
# pairs side by side), with the same numbers. The user's own values come first.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


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


@dataclass(frozen=True)
class LocalLauncher:
    """Trains ``parallel`` cells at a time with ``threads`` threads each, as subprocesses; output goes to ``run_dir/log.txt``.

    A cell sees one of ``gpus``, the one with the fewest cells on it. A cell that died is started again behind all others, as often
    as its history allows.

    SIGINT or SIGTERM: cells get SIGTERM and the time they need to save, no new one starts. A second one kills them.
    """

    parallel: int | None = None
    threads: int = 1
    gpus: Sequence[str] = ()
    stream: TextIO | None = None
    line_seconds: float = 30.0

    def run(self, work: Work) -> Result:
        queue = _Queue(work, self.threads, self.gpus)
        progress = Progress(work.cells, work.total_tokens, self.stream, self.line_seconds, work.begins_at)
        with stop_signals() as signals:
            try:
                queue.work_off(self.parallel or default_parallel(self.threads, self.gpus), progress, signals)
            finally:
                queue.abandon()
                progress.close()
        return Result.of(work.cells, queue.outcomes, interrupted=bool(signals))


class _Queue:
    def __init__(self, work: Work, threads: int, gpus: Sequence[str]) -> None:
        self.work = work
        self.waiting = deque(work.cells)
        self.busy: deque[Cell] = deque()  # held by another driver
        self.running: list[_Running] = []
        self.outcomes: dict[str, Outcome] = {}
        self.threads, self.gpus = threads, gpus
        self._seconds: dict[str, float] = {}  # that its attempts took, by name of the cell
        self._announced: set[str] = set()
        self._asked, self._killed = False, False

    def work_off(self, parallel: int, progress: Progress, signals: list[int]) -> None:
        """Run until nothing is left, or until a stop signal has been served."""
        last_look = 0.0
        while self.running or ((self.waiting or self.busy) and not signals):
            self._reap(progress)
            self._serve(signals, progress)
            while len(self.running) < parallel and not signals and (cell := self._next(progress)):
                self._start(cell, progress)
            if time.monotonic() - last_look >= 1.0:  # status files and foreign locks change slowly
                last_look = time.monotonic()
                if not signals and len(self.running) < parallel:
                    self.waiting, self.busy = deque([*self.waiting, *self.busy]), deque()
                ended = {name: outcome.state in ("finished", "skipped") for name, outcome in self.outcomes.items()}
                progress.update([run.cell for run in self.running], ended)
            if self.running or self.busy:
                time.sleep(0.05)

    def _next(self, progress: Progress) -> Cell | None:
        """The first cell that waits for nothing; those whose trunk will not end get their outcomes."""
        for cell in list(self.waiting):
            held = self.work.held_back(cell, self.outcomes)
            if held == "waits":
                continue
            self.waiting.remove(cell)
            if not isinstance(held, Outcome):
                return cell
            self.outcomes[cell.name] = held
            progress.say(f"{cell.name} {held.state}: {held.reason}")
        return None

    def abandon(self) -> None:
        """After an error of the driver itself: ask what still runs to save and end."""
        for run in self.running:
            run.process.terminate()

    def _start(self, cell: Cell, progress: Progress) -> None:
        history = read_history(cell.run_dir)
        if self.work.is_finished(cell) and history.open is None:
            self.outcomes[cell.name] = Outcome(cell, "skipped")
            return
        if history.unreadable:
            progress.say(f"{cell.name}: {history.unreadable} line(s) of {ATTEMPTS_FILE} are torn and count for nothing")
        try:
            lock = take_lock(cell.run_dir)
            if lock is None:
                if cell.name not in self._announced:
                    self._announced.add(cell.name)
                    progress.say(f"{cell.name}: another process holds {cell.run_dir}, waiting for it")
                self.busy.append(cell)
                return
            with ExitStack() as stack:
                stack.enter_context(lock)
                settled = self.work.settled(cell)  # also by another driver, between the look and the lock
                if settled is None:
                    self.running.append(self._begun(cell, lock))
                    stack.pop_all()
                else:
                    self.outcomes[cell.name] = settled
        except OSError as error:  # a full disk, a command that is none
            thing = "" if error.filename is None else f"{error.filename}: "
            self.outcomes[cell.name] = Outcome(cell, "failed", f"does not start: {thing}{error.strerror}", cell.run_dir / LOG_FILE)
            progress.say(f"{cell.name} {self.outcomes[cell.name].reason}")

    def _begun(self, cell: Cell, lock: IO[str]) -> _Running:
        """Its process, which inherits the lock. Raises OSError: the disk is full, or the command does not start."""
        argv = self.work.command(cell)
        variables = dict.fromkeys(THREAD_VARIABLES, str(self.threads)) | {"PYTHONUNBUFFERED": "1"}
        used = [run.gpu for run in self.running]
        gpu = min(self.gpus, key=used.count, default=None)
        variables |= {} if gpu is None else {GPU_VARIABLE: gpu}
        with (cell.run_dir / LOG_FILE).open("ab") as output:
            output.write(f"=== {datetime.now().isoformat(timespec='seconds')} {' '.join(argv)}\n".encode())
            output.flush()
            log_start = output.tell()
            begin(cell.run_dir, "local")
            try:
                # Its own session: Ctrl-C in the terminal reaches the driver alone, which passes it on once.
                # The lock goes with it: a cell that outlives its driver stays locked.
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=KEEP_MEMORY | os.environ | variables,
                    start_new_session=True,
                    pass_fds=(lock.fileno(),),
                )
            except OSError as error:
                end(cell.run_dir, "failed", f"does not start: {error.strerror}")
                raise
        try:
            started(cell.run_dir, str(process.pid))
        except OSError:  # what is not written down must not run
            process.kill()
            process.wait()
            raise
        return _Running(cell, process, lock, log_start, time.monotonic(), gpu)

    def _reap(self, progress: Progress) -> None:
        for run in [run for run in self.running if run.process.poll() is not None]:
            self.running.remove(run)
            self._ended(run, progress)
            run.lock.close()

    def _ended(self, run: _Running, progress: Progress) -> None:
        cell, log = run.cell, run.cell.run_dir / LOG_FILE
        self._seconds[cell.name] = seconds = self._seconds.get(cell.name, 0.0) + time.monotonic() - run.began
        how, reason = self._verdict(run)
        if not holds(cell.run_dir, run.lock):  # what is there now is another's: nothing is written down, nothing starts again
            reason = f"{cell.run_dir} was removed or replaced while the cell ran"
            self.outcomes[cell.name] = Outcome(cell, "failed", reason, None, seconds)
            progress.say(f"{cell.name} failed: {reason}")
            return
        try:
            if read_history(cell.run_dir).open is not None:  # the cell itself may have told
                end(cell.run_dir, how, reason)
        except OSError as error:
            progress.say(f"{cell.name}: how it ended cannot be written down: {error.strerror}")
        if how in ("failed", "killed") and not self._asked:
            given_up = read_history(cell.run_dir).given_up(self.work.retries)
            if given_up is None:
                progress.say(f"{cell.name} {how}: {reason}; it is started again  (log: {log})")
                self.waiting.append(cell)
                return
            reason = given_up
        state: State = "stopped" if how == "killed" and self._asked else "failed" if how == "killed" else how
        self.outcomes[cell.name] = Outcome(cell, state, reason, log, seconds)
        if state == "failed":  # now, not only at the end: it may be the same mistake in every cell
            progress.say(f"{cell.name} failed: {reason}  (log: {log})")

    def _verdict(self, run: _Running) -> tuple[Literal["finished", "failed", "stopped", "killed"], str]:
        """How the process ended, and why."""
        code = run.process.returncode
        line = last_line(run.cell.run_dir / LOG_FILE, run.log_start)
        if self.work.is_finished(run.cell):  # whatever became of the process after that
            return "finished", ""
        if code == 0:
            return "failed", "exit code 0 without a finished record of this configuration"
        if code == EXIT_STOPPED:
            return "stopped", "saved, goes on when started again"
        if self._asked and code == -signal.SIGTERM:  # it had not begun to train, or it would have saved
            return "stopped", "stopped while starting"
        if self._killed and code < 0:
            return "killed", "killed before it had saved, goes on from its last checkpoint"
        return failure(code, line)

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
