"""What a job of a SLURM array does: each of its tasks starts one process of the cell, and the first task sees to what comes next.

How a cell goes on
    `scontrol requeue`, a preemption and a lost node put the job back into the queue under its number. SLURM tells it by SIGTERM
    alone, which submitit passes by: it reaches the cell, which saves and exits with 75. Ahead of its time limit, in the grace
    period of a preemption and after `scancel --signal=TERM` the job is still running once the cell has saved: then the first task
    requeues it. So it does after an error, as often as the history of the cell allows. A job that was cancelled is left alone
    (SLURM would take a cancelled job back, too).

What makes every step be trained exactly once
    One attempt at a time. The first task and the process it starts hold the lock of the run directory, whatever becomes of the
    daemons: when slurmd of a node is gone, SLURM ends `srun` and starts the job elsewhere, while what runs on that node may well
    go on. The new attempt then waits for the lock, and finds a finished cell or a newer checkpoint. For this flock has to hold
    between nodes, as it does on NFS, GPFS, CephFS, and on Lustre mounted with `flock`.
    A checkpoint is weights, moments and place in the stream in one, there whole or not at all. What an attempt trained behind its
    last checkpoint is lost with it, and trained again from the same weights: in the history of the final weights every step
    stands once. That alone would do: on a file system whose locks are local two attempts waste time side by side, but no step
    can come twice into one checkpoint.
    Nothing else is asked: not the state of a job, not its accounting, not its result.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Literal

from tunalab.errors import EXIT_STOPPED
from tunalab.sweeps.cells import LOG_FILE, How, begin, end, holds, last_line, read_history, take_lock
from tunalab.sweeps.grid import Cell
from tunalab.sweeps.launcher import Work, failure, stop_signals
from tunalab.sweeps.local import THREAD_VARIABLES

LOOK_SECONDS = 1.0
Standing = Literal["running", "requeued", "ended"]


class CellFailed(Exception):
    """So that SLURM shows the job as failed; the history of the cell has the reason."""


@dataclass(frozen=True)
class CellJob:
    """A cell as submitit pickles it. ``requeues``: how often the job is put back into the queue from here at most."""

    cell: Cell
    argv: list[str]
    config_hash: str
    records: Path | None
    threads: int
    retries: int
    requeues: int

    def __call__(self) -> str:
        """In every task of the job. Raises CellFailed."""
        # SIGTERM alone: SLURM sends it to every process of a job, so the cell has it as well.
        with stop_signals() as signals:
            if os.environ.get("SLURM_PROCID", "0") == "0":
                return self._lead(signals)
            return self._follow(signals)

    def _lead(self, signals: list[int]) -> str:
        run_dir, log = self.cell.run_dir, self.cell.run_dir / LOG_FILE
        lock = self._wait_for_lock(signals)
        if lock is None:
            return self._again("told to stop while it waited for the lock")
        with lock:
            work = Work([self.cell], lambda _: self.argv, {self.cell.name: self.config_hash}, self.records, retries=self.retries)
            settled = work.settled(self.cell)
            if settled is not None:
                if settled.state == "failed":  # a job that ends well starts those that depend on it
                    raise CellFailed(settled.reason)
                return f"{settled.state} {settled.reason}"
            begin(run_dir, "slurm", attempt_name())
            start = log.stat().st_size if log.exists() else 0
            try:
                code = self._train(log, signals, lock)
            except OSError as error:  # no such command on this node
                end(run_dir, "failed", f"does not start: {error}")
                raise
            if not holds(run_dir, lock):
                raise CellFailed(f"{run_dir} was removed or replaced while the cell ran")
            how, reason = self._verdict(code, work.is_finished(self.cell), bool(signals), last_line(log, start))
            if read_history(run_dir).open is not None:  # the cell itself may have told
                end(run_dir, how, reason)
            given_up = read_history(run_dir).given_up(self.retries)
        if how in ("finished", "stopped"):
            return how
        if how == "preempted":
            return self._again(reason)
        if given_up is None and not signals:
            print(self._again(reason), flush=True)
        raise CellFailed(f"{how}: {reason}")

    def _follow(self, signals: list[int]) -> str:
        """Another task than the first: begins once that has begun the attempt. It is ended (srun --wait) where there is none."""
        run_dir = self.cell.run_dir
        while (attempt := read_history(run_dir).open) is None or attempt.job != attempt_name():
            if signals:
                return "stopped"
            time.sleep(LOOK_SECONDS)
        log = run_dir / f"log-rank{os.environ['SLURM_PROCID']}.txt"  # appending from two nodes is not safe on NFS
        code = self._train(log, signals)
        if code not in (0, EXIT_STOPPED, -signal.SIGTERM):
            raise CellFailed(f"exit code {code}, see {log}")
        return "ended"

    def _wait_for_lock(self, signals: list[int]) -> IO[str] | None:
        printed = False
        while not signals:
            lock = take_lock(self.cell.run_dir)
            if lock is not None:
                return lock
            if not printed:
                printed = True
                print(f"another process holds {self.cell.run_dir}, waiting for it", flush=True)
            time.sleep(LOOK_SECONDS)
        return None

    def _train(self, log: Path, signals: list[int], lock: IO[str] | None = None) -> int:
        """This task's process of the cell, which inherits the lock. Its exit code, negative for a signal."""
        variables = dict.fromkeys(THREAD_VARIABLES, str(self.threads)) | {"PYTHONUNBUFFERED": "1"}
        with log.open("ab") as output:
            about = f"{datetime.now().isoformat(timespec='seconds')} job {attempt_name()} on {socket.gethostname()}"
            output.write(f"=== {about} {shlex.join(self.argv)}\n".encode())
            output.flush()
            process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | variables,
                pass_fds=() if lock is None else (lock.fileno(),),
            )
        stopping = False
        while (code := process.poll()) is None:
            if signals and not stopping:  # it may have come before there was a process
                stopping = True
                process.terminate()
            time.sleep(0.05)
        return code

    def _verdict(self, code: int, finished: bool, asked: bool, line: str) -> tuple[How, str]:
        if finished:  # whatever became of the process after that
            return "finished", ""
        if code == 0:
            return "failed", "exit code 0 without a finished record of this configuration"
        starting = asked and code == -signal.SIGTERM  # it had not begun to train, or it would have saved
        if code == EXIT_STOPPED or starting:
            word = "stopped while starting" if starting else "saved"
            if standing() == "ended":
                return "stopped", f"{word}; job {attempt_name()} was cancelled"
            return "preempted", f"{word}, goes on in the queue"
        return failure(code, line)

    def _again(self, reason: str) -> str:
        """Put the job back into the queue, unless SLURM has done so or has been told otherwise."""
        state = standing()
        if state != "running":
            return f"{reason}; job {state}"
        if restarts() >= self.requeues:
            raise CellFailed(f"{reason}; not requeued: {restarts()} times are all that is allowed")
        subprocess.run(["scontrol", "requeue", job_number()], check=True)
        return f"{reason}; requeued"


def job_number() -> str:
    """As squeue shows it. SLURM_JOB_ID alone will not do: of an array one task has the number of them all."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def attempt_name() -> str:
    """The number of the job, and how often it has been requeued."""
    return f"{job_number()}+{restarts()}" if restarts() else job_number()


def restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def standing(patience: float = 20.0) -> Standing:
    """What SLURM has in mind with this very start of the job. Asked while the controller is away, it asks again for a while."""
    call = ["squeue", "--noheader", f"--jobs={job_number()}", "--Format=State:30,RestartCnt:12"]
    until = time.monotonic() + patience
    while True:
        found = subprocess.run(call, capture_output=True, encoding="utf-8", errors="replace")
        if found.returncode == 0 or time.monotonic() > until:
            break
        time.sleep(LOOK_SECONDS)
    words = found.stdout.split()
    if len(words) != 2:
        print(f"squeue does not know job {attempt_name()}: {found.stderr.strip()}", file=sys.stderr, flush=True)
        return "ended"
    state, count = words
    if int(count) > restarts():
        return "requeued"
    return "running" if state == "RUNNING" else "ended"
