"""A sweep in SLURM's queue: cells into job arrays, and jobs back to their cells.

<folder>/<name>.json    which cell is which task of the array of that name, written before it is submitted: a driver that dies in
                        between loses nothing
<folder>/<id>_*         submitit's own: what a job is to do, and what its tasks printed besides their cell
"""

import fcntl
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunalab.errors import UserError
from tunalab.files import write_atomically
from tunalab.sweeps.launch_file import SlurmLaunch
from tunalab.sweeps.slurm_job import CellJob

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

    def submit(self, jobs: Sequence[CellJob]) -> str:
        """Submit an array of these cells; its number. The caller is :meth:`alone`.

        Raises:
            UserError: sbatch refuses; says why.
        """
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        name = f"{self.sweep}-{secrets.token_hex(4)}"
        write_atomically(self._manifest(name), json.dumps([vars(key_of(job)) for job in jobs], indent=0) + "\n")
        executor = SlurmExecutor(self.folder)
        executor.update_parameters(**sbatch_parameters(self.launch, name))
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
        with (self.folder / "lock").open("a", encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
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


def sbatch_parameters(launch: SlurmLaunch, name: str) -> dict[str, Any]:
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
        "additional_parameters": {"requeue": True, "export": "ALL", "signal": f"TERM@{launch.signal_seconds}", **launch.sbatch},
    }
