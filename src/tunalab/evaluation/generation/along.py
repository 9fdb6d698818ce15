"""Benchmarks of images along a run: the same prompts with the same seeds at every point, in few steps of the sampler.

Which images are right, a scorer says. That of ``scene_prompts`` is the parser of scenes, which takes milliseconds: they are asked
like questions. ``geneval`` and ``dpg`` need models of others (interop/along.py): a run keeps the images of its points, and another
process scores them.

Shapes: N images, H W C pixels.
"""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tunalab.data.tokenizer import Tokenizer
from tunalab.evaluation.along import SPLIT, evaluation_mode
from tunalab.evaluation.generation.following import renders
from tunalab.evaluation.generation.parser import check_size, parse
from tunalab.evaluation.generation.prompts import CATEGORIES, Prompt, prompts, right
from tunalab.evaluation.jsonl import SUBSET_SEED
from tunalab.evaluation.measure import Score
from tunalab.evaluation.samples import sample_texts
from tunalab.inference.prompts import device_of
from tunalab.inference.requests import ImageFile, make_missing, precision
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import BenchmarkConfig, RunConfig

FOLDER = Path("points") / "images"


def spread(groups: Sequence[str], limit: int) -> list[int]:
    """The numbers of ``limit`` items, as nearly as can be equally many of each group, always the same ones; in order."""
    rng = np.random.default_rng(SUBSET_SEED)
    of_group: dict[str, list[int]] = {}
    for number in rng.permutation(len(groups)).tolist():
        of_group.setdefault(groups[number], []).append(number)
    turns = sorted((place, group, number) for group, numbers in of_group.items() for place, number in enumerate(numbers))
    return sorted(number for _, _, number in turns[:limit])


def seed_of(text: str) -> int:
    """Of the image of a prompt: it depends on the prompt alone, so that a larger limit leaves the others' images as they are."""
    return zlib.crc32(text.encode())


@dataclass(frozen=True, eq=False)
class ImageBenchmark:
    """``texts``: the prompts, one image each; ``of``: how many there are in all; ``steps`` of the sampler."""

    name: str
    texts: tuple[str, ...]
    of: int
    steps: int
    chance: float = 0.0

    def describe(self) -> dict[str, int | str]:
        """For the record, as of questions (``evaluation.benchmarks.Benchmark``)."""
        digest = hashlib.sha256(repr((self.texts, self.steps)).encode()).hexdigest()[:12]
        return {"items": len(self.texts), "of": self.of, "questions": digest, "steps": self.steps}


@dataclass(frozen=True, eq=False)
class ScenePrompts(ImageBenchmark):
    """Prompts of held-out scenes in GenEval's six categories; an image is right as the parser of scenes reads it."""

    prompts: tuple[Prompt, ...] = ()

    def ask(self, model: UnifiedModel, tokenizer: Tokenizer, config: RunConfig) -> Score:
        fewer = replace(config, sampling=replace(config.sampling, steps=self.steps))
        with evaluation_mode(model):
            images_NHWC = sample_texts(model, tokenizer, self.texts, fewer, [seed_of(text) for text in self.texts])
        return Score.from_outcomes(right_images(self.prompts, images_NHWC), self.chance)


def scene_prompts(key: str, chosen: BenchmarkConfig, config: RunConfig) -> ScenePrompts:
    """Raises UserError: images of the run's size cannot be parsed, or there are not so many prompts."""
    check_size(config.data.image_size)
    return _scene_prompts(key, chosen.limit, chosen.steps, config.data.image_size)


@lru_cache(maxsize=8)
def _scene_prompts(key: str, limit: int, steps: int, image_size: int) -> ScenePrompts:
    each, more = divmod(limit, len(CATEGORIES))
    asked = [one for number, name in enumerate(CATEGORIES) for one in prompts(name, SPLIT, each + (number < more))]
    # Chance is what a perfect image gets that was made for another prompt of the category.
    others = [one for _, group in groupby(asked, key=lambda one: one.category) for one in _turned([*group])]
    chance = float(np.mean(right_images(asked, renders(others, image_size))))
    return ScenePrompts(key, tuple(one.text for one in asked), limit, steps, chance, tuple(asked))


def _turned(group: list[Prompt]) -> list[Prompt]:
    return group[1:] + group[:1]


def right_images(asked: Sequence[Prompt], images_NHWC: np.ndarray) -> list[bool]:
    """Whether each image (H, W, 3) uint8 shows what its prompt asks, as the parser of scenes reads it."""
    read = parse(images_NHWC)
    return [right(prompt.category, prompt.scene, one) for prompt, one in zip(asked, read, strict=True)]


@dataclass(frozen=True, eq=False)
class KeptImages(ImageBenchmark):
    """``files``: where the scorer looks for each image, below a folder. ``beside`` writes what else it needs there.

    ``judge``: the score of the images in a folder; None: no scorer is named.
    """

    files: tuple[str, ...] = ()
    beside: Callable[[Path], None] = lambda folder: None
    judge: Callable[[Path], Score] | None = None

    def folder(self, run_dir: Path, tokens: int) -> Path:
        """Of a point's images; other prompts or steps under the same name are another folder."""
        return run_dir / FOLDER / f"{self.name}-{self.describe()['questions']}" / f"{tokens:012d}"

    def is_made(self, folder: Path) -> bool:
        return all((folder / file).is_file() for file in self.files)

    def make(self, model: UnifiedModel, tokenizer: Tokenizer, config: RunConfig, folder: Path, identity: dict[str, Any]) -> None:
        """The images that are not there yet. ``identity``: which model makes them (trained.model.Model.identity)."""
        sampling = replace(config.sampling, steps=self.steps)
        size = (config.data.image_size, config.data.image_size)
        how = precision(config, device_of(model))
        asked = zip(self.files, self.texts, strict=True)
        files = [ImageFile(folder / file, text, [seed_of(text)], size, sampling, how, identity) for file, text in asked]
        self.beside(folder)
        with evaluation_mode(model):
            make_missing(model, tokenizer, config.objective, files)
