"""Candidates: folders of images, each image with the settings it was made with (`tunalab generate`), matched prompt by prompt.

Shapes: N images, H W C image pixels and channels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tunalab.errors import UserError
from tunalab.files import listed
from tunalab.inference.files import read_settings


def read_folder(folder: Path) -> dict[str, list[Path]]:
    """Prompt -> the files of its images, both by file name. Raises UserError: no such folder, or no image that tells its prompt."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    found: dict[str, list[Path]] = {}
    for path in listed(folder, "*.png"):
        settings = read_settings(path)
        if settings is not None and isinstance(settings.get("prompt"), str):
            found.setdefault(settings["prompt"], []).append(path)
    if not found:
        raise UserError(f"{folder} holds no PNG that says which prompt it was made of: make them with `tunalab generate`")
    return found


def matched(names: Sequence[str], folders: Sequence[dict[str, list[Path]]]) -> list[str]:
    """The prompts of all candidates, in the order of the first. Raises UserError: prompts or numbers of images differ."""
    first = folders[0]
    for name, files in zip(names[1:], folders[1:], strict=True):
        different = [prompt for prompt in [*first, *files] if len(first.get(prompt, ())) != len(files.get(prompt, ()))]
        if different:
            prompt = different[0]
            raise UserError(
                f"{names[0]} has {len(first.get(prompt, ()))} images of {prompt!r} and {name} {len(files.get(prompt, ()))}: "
                "a fair vote needs the same number"
            )
    return list(first)


def unequal(names: Sequence[str], folders: Sequence[dict[str, list[Path]]]) -> list[str]:
    """Settings in which candidates' images were made differently, a line each: a vote on them is not one on the models alone."""
    made = [read_settings(next(iter(files.values()))[0]) or {} for files in folders]
    lines = []
    for key in ("size", "sampler", "steps", "guidance"):
        values = [settings.get(key) for settings in made]
        if any(value != values[0] for value in values):
            lines.append(f"{key} differs: " + ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True)))
    return lines


def read_images(paths: Sequence[Path]) -> np.ndarray:
    """RGB uint8 (N, H, W, 3). Raises UserError when they differ in size."""
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB")))
    if len({pixels_HWC.shape for pixels_HWC in images}) > 1:
        raise UserError(f"{paths[0].parent}: images of one prompt differ in size")
    return np.stack(images)
