"""The SLURM launcher: job arrays of open cells, and a driver that may come and go.

<folder>/<name>.json    which cell is which task of the array of that name, written before it is submitted: a driver that dies in
                        between loses nothing
<folder>/<id>_*         submitit's own: what a job is to do, and what its tasks printed besides their cell

The jobs need no driver (slurm_job.py says how they go on). It submits what is missing, watches
status files and squeue, and submits again what has left the queue without an end: a job that
SLURM has killed, or that nobody could requeue. Stopped, it leaves the jobs running; started
again, it finds them.
"""

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from tunalab.errors import UserError
from tunalab.files import locked, write_atomically
from tunalab.sweeps.cells import LOG_FILE, last_line, read_history, take_lock
from tunalab.sweeps.grid import Cell
from tunalab.sweeps.launcher import Outcome, Result, SlurmLaunch, Work, stop_signals
from tunalab.sweeps.slurm_job import CellJob
from tunalab.sweeps.state import Progress

OVER = {
    *("CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "DEADLINE", "BOOT_FAIL", "OUT_OF_MEMORY", "REVOKED"),
}
# How long the tasks of a job wait for each other's end: the first one leaves early where there is nothing left to do.
WAIT_SECONDS = 60


@dataclass(frozen=True)
class Job:
    """A task of an array. ``reason``: why it is pending."""

    name: str
    state: str
    reason: str

    @property
    def alive(self) -> bool:
        """It runs, will run, or is not yet gone from its nodes."""
        return self.state not in OVER


@dataclass(frozen=True)
class Key:
    """What a cell is known by in the queue: edited settings make it another."""

    directory: str
    config_hash: str


class QueueAway(Exception):
    """SLURM's controller does not answer."""


class SlurmQueue:
    """The jobs of one sweep, whose files are in ``folder``."""

    def __init__(self, folder: Path, sweep: str, launch: SlurmLaunch) -> None:
        self.folder, self.sweep, self.launch = folder, sweep, launch
        self._arrays: dict[str, list[Key]] = {}

    def jobs(self) -> dict[Key, Job]:
        """Of every cell the job that is alive, or else the last one that SLURM still remembers (MinJobAge, 5 minutes by default).

        Raises:
            QueueAway: squeue fails; says why.
        """
        fields = "%F|%K|%T|%j|%r"
        call = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", f"--format={fields}"]
        found = subprocess.run(call, capture_output=True, encoding="utf-8", errors="replace")
        if found.returncode != 0:
            raise QueueAway((found.stderr.strip() or f"squeue: exit code {found.returncode}").splitlines()[-1])
        jobs: dict[Key, Job] = {}
        for line in found.stdout.splitlines():
            number, task, state, name, reason = line.split("|", maxsplit=4)
            cells = self._cells(name)
            index = int(task) if task.isdecimal() else 0  # N/A: a cell that was submitted alone is no array
            if index >= len(cells):
                continue
            job = Job(f"{number}_{task}" if task.isdecimal() else number, state, reason)
            if job.alive or cells[index] not in jobs:
                jobs[cells[index]] = job
        return jobs

    def submit(self, jobs: Sequence[CellJob], after: str | None = None) -> str:
        """Submit an array of these cells; its number. The caller is :meth:`alone`. ``after``: a job that must have ended well.

        Raises:
            UserError: sbatch refuses; says why.
        """
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        name = f"{self.sweep}-{secrets.token_hex(4)}"
        write_atomically(self._manifest(name), json.dumps([vars(key_of(job)) for job in jobs], indent=0) + "\n")
        executor = SlurmExecutor(self.folder)
        executor.update_parameters(**sbatch_parameters(self.launch, name, after))
        try:
            return str(executor.submit_array(jobs)[0].job_id).split("_")[0]
        except (FailedJobError, FailedSubmissionError) as error:
            lines = [line for line in str(error).splitlines() if "sbatch:" in line] or str(error).strip().splitlines()
            raise UserError(f"sbatch does not take the sweep: {lines[0].strip()}") from error

    def log(self, job: Job) -> Path:
        """What the first task of a job printed besides its cell."""
        return self.folder / f"{job.name}_0_log.out"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One driver at a time looks and submits: of two that start together, one finds the jobs of the other."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock"):
            yield

    def _manifest(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _cells(self, name: str) -> list[Key]:
        """The cells of an array, none for a job that is not of this sweep."""
        if name not in self._arrays:
            try:
                text = self._manifest(name).read_text(encoding="utf-8") if name.startswith(f"{self.sweep}-") else "[]"
            except FileNotFoundError:
                return []
            self._arrays[name] = [Key(**entry) for entry in json.loads(text)]
        return self._arrays[name]


def key_of(job: CellJob) -> Key:
    return Key(job.cell.run_dir.name, job.config_hash)


def check_installed() -> None:
    """Raises UserError on a machine without SLURM's commands."""
    missing = [command for command in ("sbatch", "squeue", "srun") if shutil.which(command) is None]
    if missing:
        raise UserError(f"no {', '.join(missing)} on this machine: a launch file for slurm needs one that submits jobs")


def sbatch_parameters(launch: SlurmLaunch, name: str, after: str | None = None) -> dict[str, Any]:
    """For submitit: its own names where it has some.

    The cell is told by SIGTERM ahead of its time limit as at any other time, in place of submitit's USR2. The batch script lives on
    through a SIGTERM, else it would take srun, and with it the tasks, down before they have saved. ``wckey``: submitit's own would
    be refused where such keys are checked.
    """
    left_to_cluster = {
        "partition": launch.partition,
        "account": launch.account,
        "constraint": launch.constraint,
        "qos": launch.qos,
        "gpus_per_node": launch.gpus_per_node or None,
        "mem": None if launch.memory_gb is None else f"{launch.memory_gb}GB",
    }
    return {key: value for key, value in left_to_cluster.items() if value is not None} | {
        "job_name": name,
        "time": launch.minutes,
        "nodes": launch.nodes,
        "ntasks_per_node": launch.tasks_per_node,
        "cpus_per_task": launch.cpus_per_task,
        "array_parallelism": launch.array_parallelism,
        "setup": ["trap : TERM", *launch.setup],
        # srun does not take over --cpus-per-task of the job from SLURM 22.05 on.
        "srun_args": ["--kill-on-bad-exit=1", f"--wait={WAIT_SECONDS}", f"--cpus-per-task={launch.cpus_per_task}"],
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": {
            "requeue": True,
            "export": "ALL",
            "signal": f"TERM@{launch.signal_seconds}",
            **({} if after is None else {"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"}),
            **launch.sbatch,
        },
    }


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
        progress = Progress(work.cells, work.total_tokens, self.stream, self.line_seconds, work.begins_at)
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
                while missing:  # trunks first: what begins at one depends on its job
                    names = {cell.name for cell in missing}
                    waiting = {cell.name: cell.after if self._waits(cell) else "" for cell in missing}
                    first = [cell for cell in missing if waiting[cell.name] not in names]
                    for trunk in dict.fromkeys(waiting[cell.name] for cell in first):
                        job = next((self._alive(cell) for cell in self.work.cells if cell.name == trunk), None)
                        if job is not None or not trunk:  # a trunk that a process of another launcher trains is waited for here
                            self._submit([cell for cell in first if waiting[cell.name] == trunk], job)
                    missing = [cell for cell in missing if cell not in first]
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

    def _waits(self, cell: Cell) -> bool:
        return self.work.held_back(cell, self.outcomes) == "waits"

    def _is_missing(self, cell: Cell) -> bool:
        """Whether a cell is to be submitted; notes the outcome of one that has ended."""
        if self._alive(cell):
            self._began.setdefault(cell.name, time.monotonic())
            return False
        if self.work.is_finished(cell):
            self._note(Outcome(cell, "finished" if cell.name in self._began else "skipped", log=cell.run_dir / LOG_FILE))
            return False
        held = self.work.held_back(cell, self.outcomes)
        if isinstance(held, Outcome):
            self._note(held)
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
        if self._waits(cell):  # its job went with its trunk's, which is submitted again
            return None
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

    def _submit(self, cells: list[Cell], waits_for: Job | None) -> None:
        """An array of these cells, which SLURM starts once the job of the trunk that they all wait for has ended well."""
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
        number = self.queue.submit(jobs, None if waits_for is None else waits_for.name)
        for name, attempts in before.items():
            self._sent[name] = _Sent(self._sent.get(name, _Sent()).times + (waits_for is None), attempts)
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
