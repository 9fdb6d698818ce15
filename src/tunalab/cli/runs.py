"""Commands on one run: `tunalab train`."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import LOCK_HELD, RUNS, add_command, add_settings, run_config
from tunalab.errors import UserError

if TYPE_CHECKING:
    from tunalab.cli.common import Commands


def add(commands: "Commands") -> None:
    sub = add_command(commands, train, "train one run, or go on with it")
    sub.add_argument("--experiment", default="scenes", help="a file of experiments/")
    sub.add_argument("--variant", default="tuna2", help="a file of variants/")
    sub.add_argument("--run-dir", type=Path, help="default: runs/<experiment>/<variant>-seed<seed>")
    add_settings(sub)


def train(arguments: argparse.Namespace) -> int:
    from tunalab.data.sources import open_sources

    config = run_config(arguments.experiment, arguments.variant, arguments.settings)
    open_sources(config)  # before anything is built: a missing column is known in seconds
    run_dir = arguments.run_dir or RUNS / config.experiment / f"{config.variant}-seed{config.seed}"
    from tunalab.sweeps.cells import take_lock

    lock = None if os.environ.get(LOCK_HELD) else take_lock(run_dir)
    if lock is None and not os.environ.get(LOCK_HELD):
        raise UserError(f"{run_dir} is being trained by another process")
    from tunalab.training.run import train as train_run

    return train_run(config, run_dir)
