"""Sweeps of counting cells on the cluster of tests/slurm/start, and what the tests do to them."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunalab.sweeps.cells import read_history

HERE = Path(__file__).parent
QUICK = {"poll_seconds": 0.5, "minutes": 10, "signal_seconds": 60}


@dataclass
class Counting:
    """A sweep whose cells count; see counting.py."""

    runs: Path
    sweep: str
    names: list[str]
    steps: int = 40
    seconds: float = 0.1
    launch: dict[str, Any] = field(default_factory=dict)

    def drive(self) -> "subprocess.Popen[str]":
        launch = json.dumps(QUICK | self.launch)
        call = [sys.executable, HERE / "drive.py", self.runs, self.sweep, str(self.steps), str(self.seconds), launch, *self.names]
        return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def dir(self, name: str) -> Path:
        return self.runs / self.sweep / name

    def trained(self, name: str) -> list[tuple[str, int]]:
        """(attempt, step) in the order in which they were trained, also what was lost."""
        file = self.dir(name) / "trained.txt"
        rows = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [(row[0], int(row[1])) for row in rows if len(row) == 2]

    def wait_for_step(self, name: str, step: int, attempts: int = 1) -> None:
        """Until an attempt (the second of two, for ``attempts`` 2) is past ``step``."""

        def there() -> bool:
            rows = self.trained(name)
            return len({attempt for attempt, _ in rows}) >= attempts and rows[-1][1] >= step

        wait_for(there)

    def check_trained_once(self, name: str) -> list[str]:
        """Every step stands once in the lineage of the final weights, which are those of an undisturbed run, and at no time did two
        attempts train. The attempts, in their order.
        """
        last = sorted((self.dir(name) / "checkpoints").glob("step-*"))[-1]
        state = json.loads((last / "state.json").read_text())
        assert [step for step, _ in state["lineage"]] == list(range(self.steps))
        assert state["weights"] == undisturbed(self.steps)
        order = [attempt for attempt, _ in self.trained(name)]
        starts = [attempt for index, attempt in enumerate(order) if index == 0 or order[index - 1] != attempt]
        assert len(starts) == len(set(starts)), f"two attempts of {name} at a time: {starts}"
        return starts


def undisturbed(steps: int) -> str:
    weights = ""
    for step in range(steps):
        weights = hashlib.sha256(f"{weights} {step}".encode()).hexdigest()
    return weights


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def tell(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def job_of(run_dir: Path) -> str:
    """The number of the job that trains a cell, by its own history."""
    attempt = read_history(run_dir).attempts[-1]
    return attempt.job.split("+")[0]
