"""`tunalab evaluate`: everything that is measured of a trained model, into its run's record and MLflow."""

import argparse
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import add_command
from tunalab.errors import UserError
from tunalab.files import listed
from tunalab.library import tracking_uri

if TYPE_CHECKING:
    import torch

    from tunalab.cli.common import Commands
    from tunalab.evaluation.settings import EvaluationSettings
    from tunalab.evaluation.whole import Evaluated
    from tunalab.trained.model import Model


def add(commands: "Commands") -> None:
    sub = add_command(commands, evaluate, "measure trained models: understanding, generation, reconstruction, editing, attention")
    models = "run directories or exported folders; settings of parts"
    sub.add_argument("settings", nargs="*", metavar="MODEL | part.key=value", help=models)
    sub.add_argument("--parts", help="names, separated by commas (default: all that need nothing but the model)")
    sub.add_argument("--list", action="store_true", help="the parts and their settings")
    sub.add_argument("--out", type=Path, help="folder of the results of one model (default: evaluation/ in the run directory)")
    copies = "each measures other parts with a copy of the model (default: 2 on a CPU of several cores, 1 on a GPU)"
    sub.add_argument("--processes", type=int, metavar="N", help=copies)
    sub.add_argument("--quiet", action="store_true", help="no progress bars")


def evaluate(arguments: argparse.Namespace) -> int:
    from tunalab.evaluation.parts import describe, find_parts, independent
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
    if arguments.processes is not None and arguments.processes < 1:
        raise UserError(f"--processes {arguments.processes}: at least one is needed")
    from tunalab.evaluation.side_by_side import default_processes, side_by_side
    from tunalab.records.record import RECORD_FILE, read_record
    from tunalab.trained.model import is_export

    for path in models:  # a mistyped second model is known before the first is measured
        is_export(path)
        if (path / RECORD_FILE).is_file():
            read_record(path / RECORD_FILE)
    processes = arguments.processes or default_processes()
    groups = [parts] if processes == 1 else independent(parts)
    jobs = [(path, group, settings, arguments.out, arguments.quiet) for path in models for group in groups]
    missing = []
    _load.cache_clear()  # of an earlier command of this process: the run may have gone on since
    try:
        with side_by_side(_evaluate, jobs, min(processes, len(jobs))) as outcomes:
            for (path, *_), outcome in zip(jobs, outcomes, strict=True):
                try:
                    missing += outcome()
                except UserError as error:
                    if len(models) == 1:
                        raise
                    print(f"error: {error}", file=sys.stderr)  # the other models are measured all the same
                    missing.append(f"{path}: {error}")
    except KeyboardInterrupt:
        print("stopped: what is measured is kept, the same command goes on", file=sys.stderr)
        raise
    for line in dict.fromkeys(missing):
        print(f"not measured: {line}")
    return int(bool(missing))


def _evaluate(path: Path, parts: list[str], settings: "EvaluationSettings", out: Path | None, quiet: bool) -> list[str]:
    """Measure parts of one model; returns what could not be measured, a line each."""
    from tqdm import tqdm

    from tunalab.evaluation.subject import Subject
    from tunalab.evaluation.whole import evaluate_parts
    from tunalab.inference.orders import find_device, mixed, precision
    from tunalab.records.record import RECORD_FILE, add_evaluation

    folder, record = out or path / "evaluation", path / RECORD_FILE
    device = find_device(None)
    loaded = _load(path, device)
    trained = loaded.origin.get("tokens")  # an official checkpoint does not say
    tqdm.write(f"{path}{'' if trained is None else f' at {trained:,} tokens'}: {', '.join(parts)} -> {folder}")

    def keep(result: "Evaluated") -> None:
        if record.is_file():
            add_evaluation(record, [result])
            _track(path, loaded, result, record, listed(folder, f"{result.part}-*/*.png"))

    subject = Subject(loaded.model, loaded.tokenizer, loaded.config, folder, loaded.origin, quiet)
    with mixed(precision(loaded.config, device), device):
        results, errors = evaluate_parts(subject, settings, parts, tqdm.write, keep)
    if results and record.is_file():
        tqdm.write(f"wrote {record}")
    return [f"{path}: {name}: {error}" for name, error in errors.items()]


@lru_cache(maxsize=1)  # a process that measures several groups of parts loads the model once
def _load(path: Path, device: "torch.device") -> "Model":
    import torch

    from tunalab.trained.model import load

    loaded = load(path, device)
    torch.set_num_threads(max(loaded.config.threads, torch.get_num_threads()))
    return loaded


def _track(run_dir: Path, loaded: "Model", result: "Evaluated", record: Path, pictures: list[Path]) -> None:
    """Into the run's own run in MLflow, if it has one."""
    from tunalab.tracking.sync import log_evaluation
    from tunalab.tracking.tracker import RUN_ID

    known = run_dir / RUN_ID
    if loaded.config.tracking.enabled and known.is_file():
        uri = tracking_uri(loaded.config.tracking)
        log_evaluation(
            uri, known.read_text(encoding="utf-8").strip(), result, int(loaded.origin.get("tokens") or 0), record, pictures
        )
