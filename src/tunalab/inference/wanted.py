"""Image files that are asked for: what each will hold, the settings it will tell, and whether it is there already.

Shapes: H W C image pixels and channels.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import tunalab
from tunalab.config import SamplingConfig
from tunalab.data.buckets import Size
from tunalab.errors import UserError
from tunalab.inference.files import differences, read_settings
from tunalab.inference.samplers import clamps

VERSION = "tunalab"  # the setting by which files may differ and still be the same image


@dataclass(frozen=True, eq=False)
class Source:
    """An image to be edited, (H, W, 3) uint8, already in the size of the images asked for."""

    name: str
    pixels_HWC: np.ndarray

    @property
    def size(self) -> Size:
        height, width = self.pixels_HWC.shape[:2]
        return height, width


@dataclass(frozen=True, eq=False)
class Wanted:
    """One file of the images of a text, an image a seed (several stand in a square, row by row), and the settings it will hold."""

    path: Path
    text: str
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    source: Source | None = None

    def is_there(self) -> bool:
        """Raises UserError when something else, or something damaged, is in its place."""
        if not self.path.exists():
            return False
        way_out = "choose another folder, or remove it"
        try:
            settings = read_settings(self.path)
        except UserError as error:
            raise UserError(f"{error}: {way_out}") from error
        if settings is None:
            raise UserError(f"{self.path} is there and does not say how it was made: {way_out}")
        different = list(differences({**settings, VERSION: None}, {**self.settings, VERSION: None}))
        if different:
            raise UserError(f"{self.path} is there, made otherwise ({'; '.join(different)}): {way_out}")
        return True


@dataclass(frozen=True, eq=False)
class Manner:
    """How images are made: by which ``model`` (plain), of which size, by which sampler, in bf16 or fp32."""

    model: dict[str, Any]
    size: Size
    sampling: SamplingConfig
    precision: str

    def wanted(self, path: Path, text: str, seeds: Sequence[int], source: Source | None = None) -> Wanted:
        settings: dict[str, Any] = {"prompt": text, "seed": seeds[0] if len(seeds) == 1 else list(seeds)}
        settings["size"] = f"{self.size[0]}x{self.size[1]}"
        if source is not None:
            pixels = hashlib.sha256(source.pixels_HWC.tobytes()).hexdigest()
            settings["source"] = {"name": source.name, "sha256": pixels}
        sampling: dict[str, Any] = {"sampler": self.sampling.method, "steps": self.sampling.steps}
        own = source is not None and self.sampling.edit_guidance
        sampling |= {"edit_guidance": own} if own else {"guidance": self.sampling.guidance}
        if self.sampling.negative_prompt:
            sampling["negative_prompt"] = self.sampling.negative_prompt
        # Told where they change the image alone: images of 20 plain steps are those of versions without these settings.
        sampling |= {"grid": self.sampling.grid} if self.sampling.grid != "steps" else {}
        sampling |= {"shift": self.sampling.shift} if self.sampling.shift != 1 else {}
        sampling |= {"clamp": self.sampling.clamp} if clamps(replace(self.sampling, clamp="official")) else {}
        settings |= sampling | {"precision": self.precision, "model": self.model, VERSION: tunalab.__version__}
        return Wanted(path, text, tuple(seeds), settings, source)


def square(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images (H, W, 3) of one size as a square of as many rows as columns, row by row. Raises ValueError: no square number."""
    side = math.isqrt(len(images))
    grid = np.stack(images).reshape(side, side, *images[0].shape)
    return np.concatenate(np.concatenate(grid, axis=1), axis=1)
