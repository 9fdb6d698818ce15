"""Published understanding benchmarks of the paper, through lmms-eval on local copies of their data (extra ``lmms``).

While lmms-eval runs, nothing is read from a hub; what it changes in other libraries is undone.

One image a question, stretched to the nearest image size of the run; greedy answers. Accuracy is
each benchmark's own; MMVet's is the mean score of a judge (interop/endpoint.py says how one is
named), and what it did not score is a failure.

On three of the twelve the paper's scores follow other rules than lmms-eval 0.7.3 (evaluation/published.py).
``published.rules=published`` gives both accuracies from one set of replies, for a comparison with
the paper; ``stock`` that of 0.7.3 alone, as its own program.

Every task is a piece of its own (``published-gqa``): it is kept, recorded and replaced alone, and
where it fails it costs no other.
"""

import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from importlib.resources import files
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from string import Template
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from PIL import ImageFile

from tunalab.errors import UserError, first_line
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.parts import Piece, PublishedSettings
from tunalab.evaluation.published import BENCHMARKS, LOCAL, PUBLISHED, RULED
from tunalab.evaluation.subject import Subject
from tunalab.files import listed, write_atomically
from tunalab.interop.endpoint import MODEL, Endpoint
from tunalab.interop.lmms.scores import measures, mmvet
from tunalab.settings.loading import digest

_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "API_TYPE": "dummy",  # the judge of the stock MMVet, never used, needs a key as soon as its task is read
}


@contextmanager
def offline(snapshot: Path) -> Iterator[None]:
    """``snapshot``: the folder for a task that requests its data set when it is read (VisuLogic's does)."""
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    before, fetch = constants.HF_HUB_OFFLINE, huggingface_hub.snapshot_download
    truncated, state = ImageFile.LOAD_TRUNCATED_IMAGES, random.getstate()
    os.environ.update(_VARIABLES)
    constants.HF_HUB_OFFLINE = True  # the variable was read when the library was imported
    huggingface_hub.snapshot_download = lambda *_, **__: str(snapshot)  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():  # it silences all of them
            yield
    finally:
        constants.HF_HUB_OFFLINE, huggingface_hub.snapshot_download = before, fetch
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated  # its import lets damaged images pass everywhere
        random.setstate(state)
        for name, value in variables.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def stock() -> Path:
    """The folder of lmms-eval's own tasks. Raises UserError when it is not installed."""
    found = find_spec("lmms_eval")
    if found is None or found.origin is None:
        raise UserError("the published benchmarks need lmms-eval: pip install --constraint constraints.txt '.[lmms]'")
    return Path(found.origin).parent / "tasks"


def check_data(data: Path, task: str) -> None:
    """Raises UserError, one line: the task has no folder of its name."""
    if not (data / task).is_dir():
        copy = f"{task} (a copy of {BENCHMARKS[task].source})"
        raise UserError(f"{data} has no folder {copy}: put it there, or name other tasks in published.tasks")


def copy_identity(folder: Path) -> str:
    """Twelve hex digits of the names and sizes of a copy's files, wherever it lies: a smaller copy is another benchmark.

    What libraries put beside the data (hidden files, cached tables) is no part of it.
    """
    sizes = {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return digest(
        sorted(
            (name.as_posix(), size)
            for name, size in sizes.items()
            if not name.name.startswith("cache-") and not any(part.startswith(".") for part in name.parts)
        )
    )


def write_ready(data: Path, task: str, folder: Path) -> None:
    """A task's file into ``folder``, with the paths of the data and of the stock files that it includes."""
    places = {"data": str(data.resolve()), "stock": str(stock())}
    text = files(__package__).joinpath("tasks", f"{task}.yaml").read_text(encoding="utf-8")
    write_atomically(folder / f"{task}.yaml", f"task: {task}{LOCAL}\n{Template(text).substitute(places)}")


def manager(folder: Path) -> Any:
    """A ``TaskManager`` of the task files in ``folder`` alone: reading all stock ones, over 1,500, takes many seconds."""
    from lmms_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False, model_name="tunalab")


def load(data: Path, task: str, manager: Any, changes: dict[str, Any]) -> Any:
    """A task of ``manager`` with ``changes`` of its settings: an lmms-eval ``Task``.

    Raises UserError: its data cannot be read, or its first item lacks what the task needs.
    """
    from lmms_eval.tasks import get_task_dict
    from tenacity import RetryError

    try:
        name = f"{task}{LOCAL}"
        made = get_task_dict([{"task": name, **changes_of_copy(data / task), **changes}], manager)[name]
        made.doc_to_visual(made.task_docs[0])
    except (RetryError, OSError, ValueError, TypeError, LookupError) as error:
        reason = (error.last_attempt.exception() if isinstance(error, RetryError) else None) or error
        shown = f"{type(reason).__name__}: {first_line(reason)}"
        raise UserError(f"{task}: {data / task} is no copy of {BENCHMARKS[task].source}: {shown}") from error
    return made


def changes_of_copy(folder: Path) -> dict[str, Any]:
    """What the form of a local copy changes: written by ``save_to_disk``, or GQA as it lies on the hub."""
    if (folder / "dataset_dict.json").is_file():
        return {"dataset_name": None, "dataset_kwargs": {"load_from_disk": True}}
    questions, images = (folder / f"testdev_balanced_{what}" for what in ("instructions", "images"))
    if questions.is_dir():
        return {
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": {"testdev": _parquet(questions)}},
            "process_docs": partial(_with_images, images),
        }
    return {}


def _parquet(folder: Path) -> list[str]:
    return [str(path) for path in listed(folder, "**/*.parquet")]


def _with_images(folder: Path, questions: Any) -> Any:
    """Questions with the image that each names; every image is held once."""
    from datasets import concatenate_datasets, load_dataset

    images = load_dataset("parquet", data_files=_parquet(folder), split="train")
    row_of = {name: row for row, name in enumerate(images["id"])}
    chosen = images.select([row_of[name] for name in questions["imageId"]]).select_columns(["image"])
    return concatenate_datasets([questions, chosen], axis=1)


_SEED = 0  # MMMU's rules guess where no choice can be read
_JUDGED_AT_ONCE = 8
_JUDGE_SECONDS, _JUDGE_RETRIES = 60.0, 3
_JUDGE_TEMPERATURE = 0.0  # of the stock task


def pieces(settings: PublishedSettings) -> list[Piece]:
    """A piece a task. Raises UserError: lmms-eval or the folder of the data is missing."""
    stock()
    if not settings.data:
        raise UserError("published.data=FOLDER says where the benchmarks are, a folder a task (see published.tasks)")
    if not Path(settings.data).is_dir():
        raise UserError(f"published.data={settings.data}: no such folder (it holds a folder a task, see published.tasks)")
    return [_piece(task, settings) for task in dict.fromkeys(settings.tasks)]


def _piece(task: str, settings: PublishedSettings) -> Piece:
    about: dict[str, Any] = {"limit": settings.limit, "data": copy_identity(Path(settings.data) / task)}
    if task in RULED:
        about["rules"] = settings.rules
    if BENCHMARKS[task].judged:
        about["judge"] = [os.environ.get(MODEL), _JUDGE_TEMPERATURE, settings.judge_tokens]
    return Piece(f"published-{task}", about, partial(_measure, task=task, settings=settings))


def _measure(subject: Subject, task: str, settings: PublishedSettings) -> list[Measure]:
    """``subject.folder`` keeps the replies and the judge's answers.

    Raises UserError, one line: data or the judge is missing, or the task cannot read its data.
    """
    data = Path(settings.data)
    check_data(data, task)
    changes: dict[str, Any] = {}
    if task == "mmvet":
        how = {"timeout": _JUDGE_SECONDS, "retries": _JUDGE_RETRIES, "temperature": _JUDGE_TEMPERATURE}
        judge = Endpoint.from_environment(os.environ, subject.folder / "judge", max_tokens=settings.judge_tokens, **how)
        changes["process_results"] = mmvet(judge)
    write_ready(data, task, subject.folder / "tasks")
    results, cut = _results(subject, settings, task, changes)
    return measures(results, settings.rules, cut)


def _results(
    subject: Subject, settings: PublishedSettings, task: str, changes: dict[str, Any]
) -> tuple[dict[str, Any], dict[tuple[str, int], str]]:
    """As ``simple_evaluate`` returns them, and the replies under the paper's limit. Raises UserError as :func:`_measure`."""
    data = Path(settings.data)
    # What its tasks print, and in quiet evaluations its own bars.
    with offline(data / task), redirect_stdout(StringIO()), redirect_stderr(StringIO() if subject.quiet else sys.stderr):
        from lmms_eval.evaluator import simple_evaluate
        from tenacity import RetryError

        from tunalab.interop.lmms.model import Answerer

        tasks = manager(subject.folder / "tasks")
        made = load(data, task, tasks, changes)
        shorter = RULED[task].max_tokens if task in RULED and settings.rules == PUBLISHED else None
        answerer = Answerer(subject, settings.batch_tokens, cut_at=shorter)
        try:
            results: dict[str, Any] = simple_evaluate(
                model=answerer,
                tasks=[made],
                task_manager=tasks,
                limit=settings.limit or None,
                bootstrap_iters=0,
                random_seed=_SEED,
                numpy_random_seed=None,
                torch_random_seed=None,
                # In order where nothing is waited for: guesses are drawn in the order of scoring.
                process_docs_parallel=_JUDGED_AT_ONCE if BENCHMARKS[task].judged else 1,
            )
        except RetryError as error:  # around whatever the scoring of an item raised
            reason = error.last_attempt.exception()
            if isinstance(reason, UserError):
                raise reason from error
            raise UserError(f"{task}: an item of {data / task} cannot be scored: {type(reason).__name__}: {reason}") from error
    return results, answerer.cut
