"""Making the images that a benchmark asks for. What is there is kept, so that it can go on.

Shapes: H W C image pixels and channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunalab.data.buckets import Buckets, Size
from tunalab.data.documents import Reject
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.files import listed
from tunalab.inference.orders import Manner, Source, Wanted, check_size, image_bar, make_wanted, read_settings
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import ObjectiveConfig


def makers(folder: Path) -> list[dict[str, Any]]:
    """Every model (trained.model.Model.identity) that images below the folder name, once; damaged images name none."""
    found: list[dict[str, Any]] = []
    for path in listed(folder, "**/*.png"):
        try:
            settings = read_settings(path) or {}
        except UserError:
            continue
        model = settings.get("model")
        if isinstance(model, dict) and model not in found:
            found.append(model)
    return found


def origin(model: dict[str, Any]) -> dict[str, Any]:
    """As a run's record names the state of its model."""
    return {"run": model["name"], **{key: model[key] for key in ("config_hash", "weights", "steps", "tokens")}}


AT_ONCE = 64  # files whose source images are held in memory


@dataclass(frozen=True, eq=False)
class Picture:
    """An image to be edited. ``decode``: its pixels (H, W, 3) uint8 in one of the sizes given; raises Reject."""

    name: str
    decode: Callable[[Buckets], np.ndarray]

    def read(self, buckets: Buckets) -> np.ndarray:
        """Raises UserError where the image cannot be used."""
        try:
            return self.decode(buckets)
        except Reject as reject:
            raise UserError(str(reject)) from reject


@dataclass(frozen=True, eq=False)
class Item:
    """One file of a benchmark: ``name`` below the folder, the images of ``text``, one a seed, in a square.

    ``picture``: what ``text`` edits. ``beside`` writes what the benchmark wants beside the file, into the folder given, and raises
    UserError where something else is in its place.
    """

    name: str
    text: str
    seeds: tuple[int, ...]
    picture: Picture | None = None
    beside: Callable[[Path], None] | None = None


def make_items(
    model: UnifiedModel,
    tokenizer: Tokenizer,
    objective: ObjectiveConfig,
    manner: Manner,
    buckets: Buckets,
    items: Sequence[Item],
    folder: Path,
    **bounds: int,
) -> int:
    """Make what is not there yet; how many files were there. ``manner.size``: of images that are not edits; those take the size
    that their picture gets in ``buckets``. ``bounds``: ``batch_tokens`` of :func:`make_wanted`.

    Raises UserError, before anything is made: a file is in the place of another, a picture cannot be read, tokens do not cut a
    size exactly. Later: a file cannot be written, the device has too little memory.
    """

    def wanted(item: Item) -> Wanted:
        path = folder / item.name
        if item.picture is None:
            return manner.wanted(path, item.text, item.seeds)
        source = Source(item.picture.name, item.picture.read(buckets))
        return replace(manner, size=source.size).wanted(path, item.text, item.seeds, source)

    missing: dict[Size, list[Item]] = {}
    for item in items:  # pictures are read twice: all of a benchmark would fill the memory
        one = wanted(item)
        size = manner.size if one.source is None else one.source.size
        check_size(model.frontend.space, size)
        if not one.is_there():
            missing.setdefault(size, []).append(item)
    for item in items:
        if item.beside is not None:
            item.beside(folder)
    count = sum(map(len, missing.values()))
    with image_bar(sum(len(item.seeds) for group in missing.values() for item in group), manner.sampling) as bar:
        for size, group in missing.items():
            for first in range(0, len(group), AT_ONCE):
                part = [wanted(item) for item in group[first : first + AT_ONCE]]
                make_wanted(model, tokenizer, objective, replace(manner, size=size), part, progress=bar.update, **bounds)
    return len(items) - count
