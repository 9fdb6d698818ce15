"""Documents, questions and examples of drawings: those of the scenes, each with a cast of its own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tunalab.data.changes import local_file
from tunalab.data.documents import Kind, Question
from tunalab.data.drawings.art import FILE, Art, load_art
from tunalab.data.drawings.cast import Cast
from tunalab.data.scenes import ScenesCorpus, SceneSettings, caption_examples
from tunalab.data.scenes import benchmark as scenes_benchmark
from tunalab.data.scenes.sampling import stream
from tunalab.data.shards.files import ShardFile


def _cast(art: Art, part: str, *key: object) -> Cast:
    return Cast.drawn(art, stream("cast", *key), part)


class DrawingsCorpus(ScenesCorpus):
    """As ScenesCorpus, of a folder of art. Raises UserError: unknown kind or split, or the art cannot be read."""

    family = "drawings"

    def __init__(self, kind: Kind, split: str, settings: SceneSettings, folder: str) -> None:
        super().__init__(kind, split, settings)
        self._art, self._file = load_art(folder), Path(folder) / FILE
        self.fingerprint = self._art.fingerprint

    def files_read(self, every: bool) -> list[ShardFile]:
        return [file for file in [local_file(self._file)] if file]

    def look(self, index: int) -> Cast:
        return _cast(self._art, "seen", self.kind, self.split, self.settings.seed, index)


def split_of(kind: str, part: str) -> str:
    """The split of the scenes that questions about a part are drawn from: layouts that training never shows.

    A word has no thing in it: what is new to training are the words themselves, which only "composition" has.
    """
    return "composition" if (kind, part) == ("ocr", "concepts") else "test"


def benchmark(art: Art, kind: str, level: int, part: str, image_size: int, seed: int, groups: int) -> list[Question]:
    """Questions of a kind and level about one of PARTS. Raises UserError as scenes.benchmark."""
    looks = partial(_cast, art, part, "benchmark", kind, level, part, seed)
    return scenes_benchmark(kind, level, split_of(kind, part), image_size, seed, groups, looks=looks)


def caption_source(art: Art) -> Callable[..., tuple[np.ndarray, list[str]]]:
    """scenes.caption_examples of what training shows: to pretrain components from."""

    def examples(split: str, seed: int, *arguments: Any, **options: Any) -> tuple[np.ndarray, list[str]]:
        options["looks"] = partial(_cast, art, "seen", "caption example", split, seed)
        return caption_examples(split, seed, *arguments, **options)

    return examples
