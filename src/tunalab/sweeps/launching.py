"""The launcher that a launch file asks for."""

from dataclasses import replace

from tunalab.sweeps.launcher import Launch, Launcher, LocalLaunch, visible_gpus
from tunalab.sweeps.local import LocalLauncher, default_parallel
from tunalab.sweeps.slurm import SlurmLauncher


def at_a_time(launch: Launch, threads: int, parallel: int | None = None) -> int:
    """How many cells are trained at the same time. ``parallel``: as the command line says; ``threads``: of a cell."""
    if isinstance(launch, LocalLaunch):
        return parallel or launch.parallel or default_parallel(threads, visible_gpus())
    return parallel or launch.array_parallelism


def launcher(launch: Launch, threads: int, parallel: int | None = None) -> Launcher:
    """Ready to run. ``threads`` and ``parallel`` as for :func:`at_a_time`."""
    number = at_a_time(launch, threads, parallel)
    if isinstance(launch, LocalLaunch):
        return LocalLauncher(number, threads, visible_gpus())
    return SlurmLauncher(replace(launch, array_parallelism=number), threads)
