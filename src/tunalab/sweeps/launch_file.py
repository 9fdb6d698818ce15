"""Where a sweep runs and with what: a file of sweeps/launch/. Its key ``launcher`` says which, the others are the launcher's own.

Nothing here changes what a cell computes, except ``nodes`` and ``tasks_per_node`` of SLURM: several processes read documents in
another order than one, and a record says how many there were.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunalab.errors import UserError
from tunalab.layers import read_yaml
from tunalab.results.checking import Mismatch, build


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


Launch = LocalLaunch | SlurmLaunch
LAUNCHERS: dict[str, type[LocalLaunch] | type[SlurmLaunch]] = {"local": LocalLaunch, "slurm": SlurmLaunch}
SMALLEST = {"memory_gb": 1, "requeues": 0, "retries": 0, "gpus_per_node": 0, "signal_seconds": 0, "poll_seconds": 0.1}  # others: 1
# What the launcher needs as it sets it, or what has a key of its own.
TAKEN = {
    *("array", "job-name", "comment", "output", "error", "open-mode", "requeue", "no-requeue", "signal", "ntasks", "wrap"),
    *("nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "time", "partition", "account", "constraint", "qos"),
}


def read_launch(path: Path) -> Launch:
    """Read and check a launch file.

    Raises:
        UserError: it is missing, has an unknown key, or a value that cannot be; names file, key and choices.
    """
    plain = read_yaml(path)
    name = plain.pop("launcher", None)
    if name not in LAUNCHERS:
        found = "is missing" if name is None else f"has unknown value {name!r}"
        raise UserError(f"{path}: key 'launcher' {found}, choices: {', '.join(LAUNCHERS)}")
    try:
        launch = build(LAUNCHERS[name], plain)
    except Mismatch as error:
        raise UserError(f"{path}: {error}") from error
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
