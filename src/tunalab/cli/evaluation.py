"""`tunalab evaluate`: everything that is measured of a trained model, into its run's record and MLflow."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import add_command, tracking_uri
from tunalab.errors import UserError

if TYPE_CHECKING:
    from tunalab.cli.common import Commands
    from tunalab.evaluation.settings import EvaluationSettings
    from tunalab.evaluation.whole import Evaluated
    from tunalab.exporting import Loaded


def add(commands: "Commands") -> None:
    sub = add_command(commands, evaluate, "measure trained models: understanding, generation, reconstruction, editing, attention")
    models = "run directories or exported folders; settings of parts"
    sub.add_argument("settings", nargs="*", metavar="MODEL | part.key=value", help=models)
    sub.add_argument("--parts", help="names, separated by commas (default: all that need nothing but the model)")
    sub.add_argument("--list", action="store_true", help="the parts and their settings")
    sub.add_argument("--out", type=Path, help="folder of the results of one model (default: evaluation/ in the run directory)")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")


def evaluate(arguments: argparse.Namespace) -> int:
    from tunalab.evaluation.parts import describe, find_parts
    from tunalab.evaluation.settings import load_settings, part_of

    overrides = [word for word in arguments.settings if "=" in word and not Path(word).is_dir()]
    settings = load_settings(overrides)
    parts = find_parts(arguments.parts.split(",") if arguments.parts else None)
    if arguments.list:
        print(describe(settings))
        return 0
    for override in overrides:
        if (part := part_of(override)) not in parts:
            raise UserError(f"setting '{override}' is of part {part}, which is not measured (parts: {', '.join(parts)})")
    models = [Path(word) for word in arguments.settings if word not in overrides]
    if not models:
        raise UserError("name a model to evaluate: a run directory such as runs/figure6/tuna2-seed0, or an exported folder")
    if arguments.out is not None and len(models) > 1:
        raise UserError("--out holds the results of one model: leave it out, or name one model")
    from tunalab.exporting.loading import is_export

    for path in models:  # a mistyped second model is known before the first is measured
        is_export(path)
    missing = []
    for path in models:
        try:
            missing += _evaluate(path, settings, parts, arguments.out, arguments.quiet)
        except UserError as error:
            if len(models) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)  # the other models are measured all the same
            missing.append(f"{path}: {error}")
        except KeyboardInterrupt:
            print("stopped: what is measured is kept, the same command goes on", file=sys.stderr)
            raise
    for line in missing:
        print(f"not measured: {line}")
    return int(bool(missing))


def _evaluate(path: Path, settings: "EvaluationSettings", parts: list[str], out: Path | None, quiet: bool) -> list[str]:
    """Measure one model; returns what could not be measured, a line each."""
    import torch

    from tunalab.evaluation.subject import Subject
    from tunalab.evaluation.whole import evaluate_parts
    from tunalab.exporting import load
    from tunalab.inference.precision import find_device, mixed, precision
    from tunalab.results.records import RECORD_FILE, add_evaluation, read_record

    folder, record = out or path / "evaluation", path / RECORD_FILE
    if record.is_file():
        read_record(record)  # a damaged one is known now, not when everything is measured
    device = find_device(None)
    loaded = load(path, device)
    torch.set_num_threads(max(loaded.config.threads, torch.get_num_threads()))
    trained = loaded.origin.get("tokens")  # an official checkpoint does not say
    print(f"{path}{'' if trained is None else f' at {trained:,} tokens'} -> {folder}")

    def keep(result: "Evaluated") -> None:
        if record.is_file():
            add_evaluation(record, [result])
            _track(path, loaded, result, record, sorted(folder.glob(f"{result.part}-*/*.png")))

    subject = Subject(loaded.model, loaded.tokenizer, loaded.config, folder, loaded.origin, quiet)
    with mixed(precision(loaded.config, device), device):
        results, errors = evaluate_parts(subject, settings, parts, done=keep)
    if results and record.is_file():
        print(f"wrote {record}")
    return [f"{path}: {name}: {error}" for name, error in errors.items()]


def _track(run_dir: Path, loaded: "Loaded", result: "Evaluated", record: Path, pictures: list[Path]) -> None:
    """Into the run's own run in MLflow, if it has one."""
    from tunalab.results.logged_evaluation import log_evaluation
    from tunalab.results.tracking import RUN_ID

    known = run_dir / RUN_ID
    if loaded.config.tracking.enabled and known.is_file():
        uri = tracking_uri(loaded.config.tracking)
        log_evaluation(uri, known.read_text().strip(), result, int(loaded.origin.get("tokens") or 0), record, pictures)
