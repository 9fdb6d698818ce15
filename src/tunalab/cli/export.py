"""`tunalab export`: a trained model as a folder that stands alone."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import add_command

if TYPE_CHECKING:
    from tunalab.cli.common import Commands


def add(commands: "Commands") -> None:
    sub = add_command(commands, export, "write the model of a run as safetensors, configuration and tokenizer")
    sub.add_argument("run_dir", type=Path, metavar="RUN", help="run directory")
    sub.add_argument("folder", type=Path, metavar="DST", help="folder to be written")
    sub.add_argument("--raw", action="store_true", help="the weights that go on training, not their averages")


def export(arguments: argparse.Namespace) -> int:
    from tunalab.trained.model import export_run

    export_run(arguments.run_dir, arguments.folder, arguments.raw)
    print(f"wrote {arguments.folder}")
    return 0
