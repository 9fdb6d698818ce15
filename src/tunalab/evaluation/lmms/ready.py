"""The ready task files (tasks/), pointed at local copies of the data, and tasks made of them."""

from functools import partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

from tunalab.config import digest
from tunalab.errors import UserError
from tunalab.evaluation.lmms.catalogue import BENCHMARKS, LOCAL
from tunalab.files import listed, write_atomically
from tunalab.layers import first_line


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
