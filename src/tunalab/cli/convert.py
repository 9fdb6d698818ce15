"""Commands that write a model in another form: `tunalab export`, `convert` and `convert-checkpoints`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import MODEL_HELP, RAW_HELP, add_command, add_settings
from tunalab.errors import UserError
from tunalab.trained import check_folder

if TYPE_CHECKING:
    from tunalab.cli.common import Commands

TARGETS = ("tunalab", "official")


def add(commands: "Commands") -> None:
    sub = add_command(commands, export, "write a model as a folder that needs nothing else: safetensors, configuration, tokenizer")
    sub.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    sub.add_argument("folder", type=Path, metavar="DST", help="folder to write, which must not exist")
    sub.add_argument("--raw", action="store_true", help=RAW_HELP)
    sub = add_command(commands, convert, "convert an official Tuna-2, Tuna-R or Tuna checkpoint into an exported folder, or back")
    source = "official checkpoint; with --to official: exported folder or run directory"
    sub.add_argument("source", type=Path, metavar="SRC", help=source)
    target = "folder; with --to official: a .pt or .safetensors file, or a folder"
    sub.add_argument("target", type=Path, metavar="DST", help=target)
    sub.add_argument("--to", choices=TARGETS, default="tunalab", help="the layout of DST (default: %(default)s)")
    sub.add_argument("--experiment", help="settings that shapes do not determine (default: those of the official models)")
    sub.add_argument("--variant", help="settings of the front-end, such as the VAE")
    add_settings(sub)
    sub = add_command(commands, convert_checkpoints, "write checkpoints of earlier versions in today's format, without pickles")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")


def export(arguments: argparse.Namespace) -> int:
    check_folder(arguments.model)
    from tunalab.trained.model import load

    load(arguments.model, "cpu", arguments.raw).save_pretrained(arguments.folder)
    print(f"wrote {arguments.folder}")
    return 0


def convert(arguments: argparse.Namespace) -> int:
    from tunalab.settings.layers import find
    from tunalab.trained.convert import convert_to_official, convert_to_tunalab

    source, target = arguments.source, arguments.target
    if arguments.to == "official":
        if arguments.settings or arguments.experiment or arguments.variant:
            raise UserError("--to official takes no settings: the model has its own")
        convert_to_official(source, target)
    else:
        experiment = find("experiments", arguments.experiment) if arguments.experiment is not None else None
        variant = find("variants", arguments.variant) if arguments.variant is not None else None
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
