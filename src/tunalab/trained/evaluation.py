"""Everything that is measured of trained models, into their runs' records and MLflow: :func:`evaluate`."""

import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from tunalab.errors import UserError
from tunalab.evaluation.attention import Captioned, draw_examples, example_questions, shown_attention, shown_questions
from tunalab.evaluation.parts import EvaluationSettings, find_parts, independent, load_settings, part_of
from tunalab.evaluation.side_by_side import side_by_side
from tunalab.evaluation.subject import Subject
from tunalab.evaluation.whole import Evaluated, evaluate_parts
from tunalab.files import listed
from tunalab.inference.requests import computing, find_device, precision
from tunalab.records.record import RECORD_FILE, add_evaluation, read_record
from tunalab.settings.schema import RunConfig
from tunalab.tracking.client import full_uri
from tunalab.tracking.sync import log_evaluation
from tunalab.tracking.tracker import RUN_ID, log_files
from tunalab.trained import model as trained
from tunalab.trained.model import Model, is_export


def evaluate(
    models: str | Path | Sequence[str | Path],
    parts: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    out: str | Path | None = None,
    processes: int | None = None,
    quiet: bool = False,
) -> list[str]:
    """Measure trained models; returns a line per thing that could not be measured.

    ``models``: run directories or exported folders. ``parts``: by default all that need nothing but the model. ``settings`` of
    parts: ["understanding.groups=100"]. Results go into ``out`` (of one model; by default evaluation/ in its folder), and into the
    record of a run directory, and are not measured again. ``processes`` measure side by side, each with a copy of the model (by
    default 2 on a CPU of several cores, 1 on a GPU).

    Raises UserError: an unknown part or setting, no such model, a damaged record, or the only model cannot be loaded.
    """
    from tunalab.evaluation.side_by_side import default_processes

    read, names = load_settings(list(settings)), find_parts(parts)
    for setting in settings:
        if (part := part_of(setting)) not in names:
            raise UserError(f"setting '{setting}' is of part {part}, which is not measured (parts: {', '.join(names)})")
    paths = [Path(models)] if isinstance(models, str | Path) else [Path(path) for path in models]
    if not paths:
        raise UserError("name a model to evaluate: a run directory or an exported folder")
    if out is not None and len(paths) > 1:
        raise UserError("--out holds the results of one model: leave it out, or name one model")
    if processes is not None and processes < 1:
        raise UserError(f"--processes {processes}: at least one is needed")
    for path in paths:  # a mistyped second model is an error before the first is measured
        is_export(path)
        if (path / RECORD_FILE).is_file():
            read_record(path / RECORD_FILE)
    processes = processes or default_processes()
    groups = [names] if processes == 1 else independent(names)
    folders = [path / "evaluation" if out is None else Path(out) for path in paths]
    jobs = [(path, group, read, folder, quiet) for path, folder in zip(paths, folders, strict=True) for group in groups]
    missing: list[str] = []
    _load.cache_clear()  # of an earlier call of this process: the run may have gone on since
    with side_by_side(_measure, jobs, min(processes, len(jobs))) as outcomes:
        for (path, *_), outcome in zip(jobs, outcomes, strict=True):
            try:
                missing += outcome()
            except UserError as error:
                if len(paths) == 1:
                    raise
                print(f"error: {error}", file=sys.stderr)  # the other models are measured all the same
                missing.append(f"{path}: {error}")
    return list(dict.fromkeys(missing))


def _measure(path: Path, parts: list[str], settings: EvaluationSettings, folder: Path, quiet: bool) -> list[str]:
    """Measure parts of one model; returns what could not be measured, a line each."""
    record, device = path / RECORD_FILE, find_device(None)
    loaded = _load(path, device)
    tokens = loaded.origin.get("tokens")  # an official checkpoint does not say
    tqdm.write(f"{path}{'' if tokens is None else f' at {tokens:,} tokens'}: {', '.join(parts)} -> {folder}")

    def keep(result: Evaluated) -> None:
        if record.is_file():
            add_evaluation(record, [result])
            if tracked := _tracked(path, loaded.config):
                log_evaluation(*tracked, result, int(tokens or 0), record, listed(folder, f"{result.part}-*/*.png"))

    subject = Subject(loaded.model, loaded.tokenizer, loaded.config, folder, loaded.origin, quiet)
    with computing(precision(loaded.config, device), device):
        results, errors = evaluate_parts(subject, settings, parts, tqdm.write, keep)
    if results and record.is_file():
        tqdm.write(f"wrote {record}")
    return [f"{path}: {name}: {error}" for name, error in errors.items()]


@lru_cache(maxsize=1)  # a process that measures several groups of parts loads the model once
def _load(path: Path, device: torch.device) -> Model:
    loaded = trained.load(path, device)
    torch.set_num_threads(max(loaded.config.threads, torch.get_num_threads()))
    return loaded


def _tracked(path: Path, config: RunConfig) -> tuple[str, str] | None:
    """Where MLflow is, and the run's own run there, if it has one."""
    own = path / RUN_ID
    if not (config.tracking.enabled and own.is_file()):
        return None
    return full_uri(config.tracking.uri), own.read_text(encoding="utf-8").strip()


def track_pictures(model: str | Path, pictures: list[Path], folder: str) -> None:
    """Log pictures of a model to its run in MLflow, if it has one."""
    if tracked := _tracked(Path(model), trained.model_config(model)):
        log_files(*tracked, pictures, folder)


def attention_examples(
    models: Iterable[tuple[str, Model]], count: int, layer: int | None = None, head: int | None = None
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """One picture of where several models (name, model) look in the same ``count`` questions about scenes, and their identities.

    A row of questions, then two rows per model: at the word, and at the question's last token.
    Raises UserError: their image sizes differ, no such layer or head.
    """
    rows: list[Captioned] = []
    identities: list[dict[str, Any]] = []
    first = ("", 0)
    for name, loaded in models:
        size = loaded.config.data.image_size
        questions = example_questions(count, size, loaded.model.frontend.space.token_pixels)
        if not rows:
            rows, first = [shown_questions(questions)], (name, size)
        elif first[1] != size:
            raise UserError(f"models of different image sizes in one picture: {first[0]} {first[1]}, {name} {size}")
        tokens = loaded.config.evaluation.max_answer_tokens
        with loaded.computing():
            rows += shown_attention(name, loaded.model, loaded.tokenizer, questions, tokens, layer, head)
        identities.append(loaded.identity)
    return draw_examples(rows), identities
