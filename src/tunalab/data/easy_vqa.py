"""easy-VQA: 5,000 real files of 64 px with questions, from PyPI (extra ``data``), as a corpus and as a benchmark.

Only the package's JSON and PNG files are used, and its code is never imported.
"""

import importlib.util
import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from tunalab.data.changes import local_file, sampled
from tunalab.data.documents import Document, Image, Question, Text
from tunalab.data.images import cover
from tunalab.data.shards.files import ShardFile
from tunalab.errors import UserError

# Published sizes, (images, questions) a split. A package that differs from them is not the benchmark.
SPLITS = {"train": (4000, 38575), "test": (1000, 9673)}


class EasyVqaCorpus:
    """The train split, one document an image, each with up to ``questions_per_image`` of its questions.

    An epoch is one pass over the images. The next one asks the following questions of each, in an order drawn once
    per image, so that all of an image's questions come equally often.

    Raises:
        UserError: the package is missing or not the published one.
    """

    name = "easy_vqa/vqa"

    def __init__(self, image_size: int, questions_per_image: int) -> None:
        if questions_per_image < 1:
            raise UserError(f"easy_vqa/vqa: questions_per_image {questions_per_image} is not a positive count")
        self._folder = _data_folder()
        self._image_size = image_size
        self._questions_per_image = questions_per_image

    @property
    def length(self) -> int:
        return SPLITS["train"][0]

    def files_read(self, every: bool) -> list[ShardFile]:
        return [file for file in [local_file(self._folder / "train" / "questions.json")] if file]

    def images_read(self, every: bool) -> list[ShardFile]:
        numbers = sampled(self.length, every)
        found = (local_file(self._folder / "train" / "images" / f"{number}.png") for number in numbers)
        return [file for file in found if file]

    def document(self, index: int) -> Document:
        """Document ``index``; indices from ``length`` on belong to later epochs."""
        epoch, image_id = divmod(int(index), self.length)
        questions = _questions_by_image(self._folder, "train")[image_id]
        order = np.random.default_rng((image_id, len(questions))).permutation(len(questions))
        count = min(self._questions_per_image, len(questions))
        segments: list[Text | Image] = [Image(_read_image(self._folder, "train", image_id, self._image_size))]
        for offset in range(count):
            prompt, answer = questions[order[(epoch * count + offset) % len(questions)]]
            segments += [Text(prompt), Text(answer, target=True)]
        return Document("vqa", tuple(segments))


def easy_vqa_benchmark(image_size: int, count: int | None = None, seed: int = 0) -> list[Question]:
    """Questions of the published test split.

    Args:
        image_size: side of the images in pixels.
        count: how many questions; None or more than there are: all of them.
        seed: which ones. A smaller count asks a part of what a larger one asks.

    Returns:
        The questions in the published order.

    Raises:
        UserError: the package is missing or not the published one, or the count is not positive.
    """
    if count is not None and count < 1:
        raise UserError(f"easy_vqa: question count {count} is not positive")
    folder = _data_folder()
    rows = _read_rows(folder, "test")
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    images: dict[int, np.ndarray] = {}
    questions = []
    for number in sorted(chosen.tolist()):
        prompt, answer, image_id = rows[number]
        if image_id not in images:
            images[image_id] = _read_image(folder, "test", image_id, image_size)
        questions.append(Question(images[image_id], prompt, answer, group=number, options=_options(answer)))
    return questions


# Its three sorts of answers.
_SORTS = (
    ("yes", "no"),
    ("circle", "rectangle", "triangle"),
    ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
)


def _options(answer: str) -> tuple[str, ...]:
    return next((sort for sort in _SORTS if answer in sort), ())


def worded_questions(split: str) -> list[tuple[str, str]]:
    """Question and answer of all of a split ("train" or "test"), without images.

    Raises:
        UserError: the package is missing or not the published one.
    """
    return [(prompt, answer) for prompt, answer, _ in _read_rows(_data_folder(), split)]


def check_installed() -> None:
    """Raises UserError, with the command that mends it, unless the published package is installed."""
    folder = _data_folder()
    for split in SPLITS:
        _read_rows(folder, split)


def _data_folder() -> Path:
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("easy_vqa: the easy-VQA data is not installed, get it with: pip install 'tunalab[data]'")
    return Path(spec.submodule_search_locations[0]) / "data"


@cache
def _read_rows(folder: Path, split: str) -> list[tuple[str, str, int]]:
    path = folder / split / "questions.json"
    try:
        rows = [(prompt, answer, image_id) for prompt, answer, image_id in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError) as error:
        raise UserError(f"easy_vqa: {path} cannot be read, install it again: pip install 'tunalab[data]'") from error
    found = (len({image_id for _, _, image_id in rows}), len(rows))
    if found != SPLITS[split]:
        raise UserError(
            f"easy_vqa: the {split} split has {found[0]} images and {found[1]} questions instead of "
            f"{SPLITS[split][0]} and {SPLITS[split][1]}; easy-vqa 1.0 is needed: pip install 'tunalab[data]'"
        )
    return rows


@cache
def _questions_by_image(folder: Path, split: str) -> list[list[tuple[str, str]]]:
    questions: list[list[tuple[str, str]]] = [[] for _ in range(SPLITS[split][0])]
    for prompt, answer, image_id in _read_rows(folder, split):
        questions[image_id].append((prompt, answer))
    return questions


def _read_image(folder: Path, split: str, image_id: int, image_size: int) -> np.ndarray:
    # Not read_image of image_files: these files are part of an installed package, and a damaged one is no reject.
    with PillowImage.open(folder / split / "images" / f"{image_id}.png") as image:
        return cover(image.convert("RGB"), (image_size, image_size))
