"""`tunalab evaluate`: everything that is measured of a trained model, into its run's record and MLflow."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import add_command
from tunalab.errors import UserError
from tunalab.trained import check_folder

if TYPE_CHECKING:
    from tunalab.cli.common import Commands


def add(commands: "Commands") -> None:
    sub = add_command(commands, evaluate, "measure trained models: understanding, generation, reconstruction, editing, attention")
    models = "run directories or exported folders; settings of parts"
    sub.add_argument("settings", nargs="*", metavar="MODEL | part.key=value", help=models)
    sub.add_argument("--parts", help="names, separated by commas (default: all that need nothing but the model)")
    sub.add_argument("--list", action="store_true", help="print the parts and their settings")
    sub.add_argument("--out", type=Path, help="folder for the results of one model (default: evaluation/ in its folder)")
    processes = "processes, each with a copy of the model, that measure different parts (default: 2 on several cores, 1 on a GPU)"
    sub.add_argument("--processes", type=int, metavar="N", help=processes)
    sub.add_argument("--points", choices=["all"], help="of a run that keeps its points: ask --benchmarks along its curve instead")
    sub.add_argument(
        "--benchmarks",
        nargs="+",
        default=[],
        metavar="NAME",
        help="count, pairs@2, easy_vqa, or of evaluation.benchmarks (default: all of these)",
    )
    sub.add_argument("--watch", action="store_true", help="with --points: go on until the run is finished; several may watch")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")


def evaluate(arguments: argparse.Namespace) -> int:
    settings = [word for word in arguments.settings if "=" in word and not Path(word).is_dir()]
    parts = arguments.parts.split(",") if arguments.parts else None
    if arguments.list:
        from tunalab.evaluation.parts import describe, find_parts, load_settings

        find_parts(parts)
        print(describe(load_settings(settings)))
        return 0
    models = [word for word in arguments.settings if word not in settings]
    for model in models:
        check_folder(model)
    if arguments.points or arguments.benchmarks or arguments.watch:
        return ask_along(arguments, models, settings)
    from tunalab.trained.evaluation import evaluate as measure

    try:
        missing = measure(models, parts, settings, arguments.out, arguments.processes, arguments.quiet)
    except KeyboardInterrupt:
        print("stopped: what is measured is kept, the same command goes on", file=sys.stderr)
        raise
    for line in missing:
        print(f"not measured: {line}")
    return int(bool(missing))


def ask_along(arguments: argparse.Namespace, models: list[str], settings: list[str]) -> int:
    if not (arguments.points and models):
        raise UserError("a curve is asked by: tunalab evaluate RUN --points all --benchmarks NAME")
    from tunalab.trained.points import ask_runs

    names = [word for word in arguments.benchmarks if "=" not in word]
    settings += [word for word in arguments.benchmarks if "=" in word]  # --benchmarks takes all words behind it
    for asking in ask_runs(models, names, settings, arguments.watch):
        why = ": their answers were there, and the record has them" if asking.merged and not asking.asked else ""
        print(f"{asking.run_dir}: {len(asking.asked)} points asked{why}")
    return 0
