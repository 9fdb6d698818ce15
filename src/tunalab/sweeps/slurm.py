"""The SLURM launcher: a job array of the cells that are neither finished nor in the queue, and a driver that may come and go.

The jobs need no driver (slurm_job.py says how they go on). It submits what is missing, watches status files and squeue, and
submits again what has left the queue without an end: a job that SLURM has killed, or that nobody could requeue. Stopped, it leaves
the jobs running; started again, it finds them.
"""

import time
from dataclasses import dataclass, replace
from typing import TextIO

from tunalab.errors import UserError
from tunalab.sweeps.attempts import read_history
from tunalab.sweeps.cells import LOG_FILE, last_line, take_lock
from tunalab.sweeps.grid import Cell
from tunalab.sweeps.launch_file import SlurmLaunch
from tunalab.sweeps.launcher import Outcome, Result, Work
from tunalab.sweeps.progress import Progress
from tunalab.sweeps.signals import stop_signals
from tunalab.sweeps.slurm_job import CellJob
from tunalab.sweeps.slurm_queue import Job, Key, QueueAway, SlurmQueue, check_installed

FOLDER = "slurm"  # beside the cells of the sweep
# What a job waits for in the normal course of things; anything else is said.
PATIENCE = {"None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Dependency", "Cleaning", "Prolog"}


@dataclass(frozen=True)
class SlurmLauncher:
    """Trains cells as jobs of an array, with ``threads`` threads a process; output goes to ``run_dir/log.txt``.

    SIGINT or SIGTERM, or ``launch.watch`` false: the driver ends, and what it has submitted is ``queued``.
    """

    launch: SlurmLaunch
    threads: int = 1
    stream: TextIO | None = None
    line_seconds: float = 30.0

    def run(self, work: Work) -> Result:
        """Raises UserError: there is no SLURM here, its controller does not answer, or sbatch refuses."""
        check_installed()
        progress = Progress(work.cells, work.total_tokens, self.stream, self.line_seconds)
        watch = _Watch(work, self.launch, self.threads, progress)
        try:
            with stop_signals() as signals:
                try:
                    going_on = watch.look()
                except QueueAway as error:
                    raise UserError(f"SLURM does not answer: {error}") from error
                while going_on and self.launch.watch and not signals:
                    _sleep(self.launch.poll_seconds, signals)
                    if not signals:
                        going_on = watch.look_again()
                if signals:
                    progress.say("the jobs go on without this driver, which finds them when started again; scancel ends them")
        finally:
            progress.close()
        return Result.of(work.cells, watch.outcomes | watch.queued(), interrupted=bool(signals))


@dataclass
class _Sent:
    """What this driver has submitted of a cell: how often, and the attempts before the last time."""

    times: int = 0
    attempts: int = 0


class _Watch:
    def __init__(self, work: Work, launch: SlurmLaunch, threads: int, progress: Progress) -> None:
        self.work, self.launch, self.threads, self.progress = work, launch, threads, progress
        first = work.cells[0]
        self.queue = SlurmQueue(first.run_dir.parent / FOLDER, first.sweep, launch)
        self.outcomes: dict[str, Outcome] = {}
        self.jobs: dict[Key, Job] = {}
        self._sent: dict[str, _Sent] = {}
        self._began: dict[str, float] = {}  # when this driver first saw a cell alive
        self._said: set[tuple[str, str]] = set()

    def look(self) -> bool:
        """Settle what has ended, submit what is missing; whether anything goes on. Raises QueueAway, UserError."""
        self.jobs = self.queue.jobs()
        missing = [cell for cell in self._open() if self._is_missing(cell)]
        if missing:
            with self.queue.alone():
                self.jobs = self.queue.jobs()
                missing = [cell for cell in missing if not self._alive(cell)]
                if missing:
                    self._submit(missing)
        self._tell()
        return bool(self._open())

    def look_again(self) -> bool:
        """The same, when the controller may be away for a while: its jobs go on."""
        try:
            return self.look()
        except QueueAway as error:
            self._say_once("", f"SLURM does not answer, asking on: {error}")
            return True

    def queued(self) -> dict[str, Outcome]:
        """Cells that go on without a driver."""
        return {
            cell.name: Outcome(cell, "queued", f"job {job.name} {job.state.lower()}", cell.run_dir / LOG_FILE)
            for cell in self._open()
            if (job := self._alive(cell)) is not None
        }

    def _open(self) -> list[Cell]:
        return [cell for cell in self.work.cells if cell.name not in self.outcomes]

    def _job(self, cell: Cell) -> Job | None:
        return self.jobs.get(Key(cell.run_dir.name, self.work.hashes[cell.name]))

    def _alive(self, cell: Cell) -> Job | None:
        job = self._job(cell)
        return job if job is not None and job.alive else None

    def _is_missing(self, cell: Cell) -> bool:
        """Whether a cell is to be submitted; notes the outcome of one that has ended."""
        if self._alive(cell):
            self._began.setdefault(cell.name, time.monotonic())
            return False
        if self.work.is_finished(cell):
            self._note(Outcome(cell, "finished" if cell.name in self._began else "skipped", log=cell.run_dir / LOG_FILE))
            return False
        lock = take_lock(cell.run_dir)
        if lock is None:
            self._say_once(cell.name, f"another process holds {cell.run_dir}, waiting for it")
            return False
        with lock:
            settled = self.work.settled(cell)
        outcome = settled or self._end_of_job(cell)
        if outcome is not None:
            self._note(outcome)
        return outcome is None

    def _end_of_job(self, cell: Cell) -> Outcome | None:
        """Of a cell that could be started: why it should not be."""
        job, sent = self._job(cell), self._sent.get(cell.name, _Sent())
        if job is not None and job.state == "CANCELLED" and cell.name in self._began:
            return Outcome(cell, "stopped", f"job {job.name} was cancelled; goes on when started again")
        if sent.times and len(read_history(cell.run_dir).attempts) == sent.attempts:
            log = None if job is None else self.queue.log(job)
            words = "" if log is None else last_line(log)
            return Outcome(cell, "failed", f"its job ended before the cell began: {words or 'without a word'}", log)
        if sent.times > self.work.retries:
            return Outcome(cell, "failed", f"left the queue {sent.times} times without an end", cell.run_dir / LOG_FILE)
        return None

    def _submit(self, cells: list[Cell]) -> None:
        jobs = [
            CellJob(
                replace(cell, factors={}, overrides=[]),  # it needs none of them, and they may hold credentials
                self.work.command(cell),
                self.work.hashes[cell.name],
                self.work.records,
                self.threads,
                self.work.retries,
                self.launch.requeues,
            )
            for cell in cells
        ]
        before = {cell.name: len(read_history(cell.run_dir).attempts) for cell in cells}
        number = self.queue.submit(jobs)
        for name, attempts in before.items():
            self._sent[name] = _Sent(self._sent.get(name, _Sent()).times + 1, attempts)
            self._began.setdefault(name, time.monotonic())
        names = ", ".join(cell.name for cell in cells[:3]) + (", ..." if len(cells) > 3 else "")
        self.progress.say(f"submitted {len(cells)} cell(s) as job {number}: {names}")
        self.jobs = self.queue.jobs()

    def _note(self, outcome: Outcome) -> None:
        name = outcome.cell.name
        seconds = time.monotonic() - self._began[name] if name in self._began else 0.0
        self.outcomes[name] = Outcome(outcome.cell, outcome.state, outcome.reason, outcome.log, seconds)
        if outcome.state in ("failed", "stopped"):
            self.progress.say(f"{name} {outcome.state}: {outcome.reason}  (log: {outcome.log or outcome.cell.run_dir / LOG_FILE})")

    def _tell(self) -> None:
        alive = [(cell, job) for cell in self._open() if (job := self._alive(cell)) is not None]
        for cell, job in alive:
            if job.state == "PENDING" and job.reason not in PATIENCE:
                self._say_once(cell.name, f"job {job.name} waits: {job.reason}")
        ended = {name: outcome.state in ("finished", "skipped") for name, outcome in self.outcomes.items()}
        self.progress.update([cell for cell, job in alive if job.state == "RUNNING"], ended)

    def _say_once(self, name: str, text: str) -> None:
        if (name, text) not in self._said:
            self._said.add((name, text))
            self.progress.say(f"{name}: {text}" if name else text)


def _sleep(seconds: float, signals: list[int]) -> None:
    until = time.monotonic() + seconds
    while not signals and time.monotonic() < until:
        time.sleep(min(0.1, seconds))
