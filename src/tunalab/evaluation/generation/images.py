"""The images that prompts are answered with, sampled once for all parts of an evaluation that look at them.

Shapes: P prompts, S samples of each, H W C pixels.
"""

import io
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from tunalab.data.scenes import Scene, render
from tunalab.data.scenes.placing import place
from tunalab.data.scenes.sampling import stream
from tunalab.errors import UserError
from tunalab.evaluation.generation.parser import check_size
from tunalab.evaluation.generation.prompts import CATEGORIES, DENSE, Prompt, prompts
from tunalab.evaluation.settings import PromptSettings
from tunalab.evaluation.subject import Subject, kept_array
from tunalab.files import write_atomically

RENDERS = "renders"  # the split of perfect images
CHUNK = 16  # prompts whose images are kept together: so much is sampled again after an interruption


@dataclass(frozen=True, eq=False)
class Generated:
    """uint8 images (P, S, H, W, 3) of the prompts, the same order for every model."""

    prompts: tuple[Prompt, ...]
    images_PSHWC: np.ndarray


def chosen_prompts(settings: PromptSettings, series: int = 0) -> tuple[Prompt, ...]:
    """Raises UserError when there are not so many, or none is asked for."""
    found = [prompt for category in CATEGORIES for prompt in prompts(category, settings.split, settings.prompts, series)]
    found += prompts(DENSE, settings.split, settings.dense, series)
    if not found:
        raise UserError("prompts=0 and dense=0 leave nothing to generate")
    return tuple(found)


def generated(subject: Subject, settings: PromptSettings) -> Generated:
    """Sampled with the run's settings of sampling; what the evaluation's folder holds of them already is read.

    An image's seed depends on its prompt and number alone, so that more prompts leave the others' images as they are.
    """
    asked = chosen_prompts(settings)
    config = subject.config
    check_size(config.data.image_size)
    chosen = {entry.name: getattr(settings, entry.name) for entry in fields(PromptSettings)}
    what = {"prompts": chosen, "sampling": asdict(config.sampling), "size": config.data.image_size}
    folder = subject.shared("images", what)
    firsts = range(0, len(asked), CHUNK)
    chunks = []
    for first in subject.progress(firsts, "images", len(firsts)):
        path = folder / f"{first:06d}.npy"
        if not path.exists():
            texts = [prompt.text for prompt in asked[first : first + CHUNK] for _ in range(settings.samples)]
            numbers = list(range(settings.samples)) * (len(texts) // settings.samples)
            seeds = [zlib.crc32(text.encode()) + number for text, number in zip(texts, numbers, strict=True)]
            content = io.BytesIO()
            np.save(content, subject.images(texts, seeds))
            write_atomically(path, content.getvalue())
        chunks.append(kept_array(path))
    images_NHWC = np.concatenate(chunks)
    return Generated(asked, images_NHWC.reshape(len(asked), settings.samples, *images_NHWC.shape[1:]))


def renders(asked: Sequence[Prompt], image_size: int) -> np.ndarray:
    """What the prompts describe, as images (P, H, W, 3) uint8."""
    return np.stack([render(prompt.scene, image_size) for prompt in asked])


def displaced_renders(asked: Sequence[Prompt], count: int, image_size: int, series: int = 0) -> np.ndarray:
    """``count`` perfect images of each caption (P, S, H, W, 3) uint8, the things in their slots displaced anew as their level
    displaces; another ``series`` is drawn independently."""
    return np.stack([[render(scene, image_size) for scene in displaced(prompt.scene, count, series)] for prompt in asked])


def displaced(scene: Scene, count: int, series: int = 0) -> list[Scene]:
    """``count`` scenes of one caption."""
    rng = stream("displaced", scene.content, series)
    level = scene.level
    return [
        replace(scene, items=tuple(place(rng, level, item.shape, item.colour, item.size, item.slot) for item in scene.items))
        for _ in range(count)
    ]
