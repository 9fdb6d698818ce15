"""Sampled images beside records: one small PNG a run, its images in a row at their own size, the prompts inside the file.

A run directory holds a picture for each of its evaluations, enlarged and captioned. What is published is made of the last one, so
that a report of a fresh clone shows the same prompts, from the same noise, through every front-end.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tunalab.errors import UserError
from tunalab.evaluation.along import pictured, prompt_of
from tunalab.evaluation.samples import CELL_WIDTH, IMAGE_SIDE, MARGIN
from tunalab.files import listed, write_atomically
from tunalab.records.record import Record, read_record
from tunalab.settings.loading import from_plain

FOLDER = "samples"  # of a run directory, and of a folder of records
LARGEST_SIDE = 64  # pixels of a published image
LARGEST_FILE = 100_000  # bytes: images are left out from the end until a file is as small


@dataclass(frozen=True)
class Samples:
    """Images uint8 (H, W, 3) with their prompts, image n of noise seed n, at ``tokens`` of a run."""

    tokens: int
    prompts: tuple[str, ...]
    images: tuple[np.ndarray, ...]


def of_run(run_dir: Path, record: Record) -> Samples | None:
    """From the last picture in a run directory; None where it has none, or none of today's layout."""
    pictures = listed(run_dir / FOLDER, "tokens-*.png")
    try:
        config = from_plain(record.config)
    except UserError:  # of an earlier revision: its prompts are not to be had
        return None
    if not pictures or not config.evaluation.sample_prompts:
        return None
    try:
        prompts = tuple(prompt_of(document) for document in pictured(config, config.evaluation.sample_prompts))
    except UserError:  # of files that are not here
        return None
    with Image.open(pictures[-1]) as picture:
        images = cut(np.asarray(picture.convert("RGB")), len(prompts), config.data.image_size)
    return None if images is None else Samples(int(pictures[-1].stem.removeprefix("tokens-")), prompts, images)


def cut(picture_HWC: np.ndarray, count: int, side: int) -> tuple[np.ndarray, ...] | None:
    """The images, at their own size, of a picture of so many squares by ``evaluation.samples.draw_grid``; None if it is none."""
    scale = max(1, round(IMAGE_SIDE / side))
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    width = max(CELL_WIDTH, side * scale) + MARGIN
    height, rest = divmod(picture_HWC.shape[0] - MARGIN, rows)
    if picture_HWC.shape[1] != columns * width + MARGIN or rest or height < side * scale:
        return None
    corners = [(MARGIN + n // columns * height, MARGIN + n % columns * width) for n in range(count)]
    return tuple(picture_HWC[y : y + side * scale : scale, x : x + side * scale : scale] for y, x in corners)


def publish(samples: Samples, path: Path) -> None:
    """Write the small PNG, below ``LARGEST_FILE``."""
    count = len(samples.images)
    while count and len(content := _encode(samples, count)) > LARGEST_FILE:
        count = min(count - 1, count * LARGEST_FILE // len(content))
    if count:
        write_atomically(path, content)


def publish_beside(run_dirs: Mapping[str, Path], records: Path) -> list[Path]:
    """For every run (name of its record -> run directory) that has pictures, a file in ``records``/samples. Returns them."""
    written = []
    for name, run_dir in run_dirs.items():
        found = of_run(run_dir, read_record(records / f"{name}.json"))
        if found is not None:
            publish(found, records / FOLDER / f"{name}.png")
            written.append(records / FOLDER / f"{name}.png")
    return written


def published(path: Path) -> Samples | None:
    """What :func:`publish` wrote, None where there is no file. Raises UserError: the file is another PNG, or damaged."""
    if not path.exists():
        return None
    try:
        with Image.open(path) as strip:
            about = json.loads(strip.text["tunalab"])  # type: ignore[attr-defined]
            pixels = np.asarray(strip.convert("RGB"))
        prompts, tokens = tuple(map(str, about["prompts"])), int(about["tokens"])
        images = tuple(np.split(pixels, len(prompts), axis=1))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is no row of published samples: {type(error).__name__}: {error}") from error
    return Samples(tokens, prompts, images)


def png(image_HWC: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _encode(samples: Samples, count: int) -> bytes:
    about = PngInfo()
    about.add_text("tunalab", json.dumps({"tokens": samples.tokens, "prompts": samples.prompts[:count]}))
    buffer = BytesIO()
    small = [_at_most(image) for image in samples.images[:count]]
    Image.fromarray(np.concatenate(small, axis=1)).save(buffer, "PNG", optimize=True, pnginfo=about)
    return buffer.getvalue()


def _at_most(image_HWC: np.ndarray) -> np.ndarray:
    if max(image_HWC.shape[:2]) <= LARGEST_SIDE:
        return image_HWC
    return np.asarray(Image.fromarray(image_HWC).resize((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS))
