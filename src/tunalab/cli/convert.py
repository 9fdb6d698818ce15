"""`tunalab convert` and `tunalab convert-checkpoints`: official checkpoints and ours, and a run's own of an earlier format."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import add_command, add_settings
from tunalab.errors import UserError

if TYPE_CHECKING:
    from tunalab.cli.common import Commands

TARGETS = ("tunalab", "official")


def add(commands: "Commands") -> None:
    sub = add_command(commands, convert, "an official Tuna-2, Tuna-R or Tuna checkpoint to a folder of ours, or back")
    sub.add_argument(
        "source", type=Path, metavar="SRC", help="official checkpoint; with --to official: exported folder or run directory"
    )
    sub.add_argument("target", type=Path, metavar="DST", help="folder; with --to official: a .pt or .safetensors file, or a folder")
    sub.add_argument("--to", choices=TARGETS, default="tunalab", help="the layout of DST (default: %(default)s)")
    sub.add_argument("--experiment", help="what shapes cannot tell; the official models' settings by default")
    sub.add_argument("--variant", help="a variant's front-end settings, such as the VAE")
    add_settings(sub)
    sub = add_command(commands, convert_checkpoints, "make the checkpoints of earlier versions readable: today's hold no pickles")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")


def convert(arguments: argparse.Namespace) -> int:
    from tunalab.settings.layers import find
    from tunalab.trained.convert import convert_to_official, convert_to_tunalab

    source, target = arguments.source, arguments.target
    if arguments.to == "official":
        if arguments.settings or arguments.experiment or arguments.variant:
            raise UserError("--to official takes no settings: the model has its own")
        convert_to_official(source, target)
    else:
        experiment, variant = (
            None if name is None else find(folder, name)
            for folder, name in (("experiments", arguments.experiment), ("variants", arguments.variant))
        )
        convert_to_tunalab(source, target, experiment, variant, arguments.settings)
    return 0


def convert_checkpoints(arguments: argparse.Namespace) -> int:
    from tunalab.sweeps.cells import take_lock
    from tunalab.training.earlier import convert_checkpoints as convert_all

    for run_dir in arguments.runs:
        if not run_dir.is_dir():
            raise UserError(f"{run_dir}: there is no such run directory")
        lock = take_lock(run_dir)
        if lock is None:
            raise UserError(f"{run_dir} is being trained by another process")
        with lock:
            convert_all(run_dir)
    return 0
