"""CLIP score and HPS v2: how well images fit the prompts that they were made of, by the cosine of a CLIP's features.

CLIP score: https://arxiv.org/abs/2104.08718, there "CLIP-S", 2.5 max(cosine, 0) with words before the prompt; beside it the cosine
with the prompt alone, which most reports on text-to-image mean. HPS v2: https://arxiv.org/abs/2306.09341, the cosine of a ViT-H-14
that learnt what people prefer, images padded to a square. Cosines are often given times 100. Ours are computed in float32; the
official scripts compute in float16 on a GPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tunalab import files
from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.published_generation.clip import Clip
from tunalab.evaluation.published_generation.dpg import cells
from tunalab.evaluation.published_generation.lines import path_of, read_lines, text_of
from tunalab.evaluation.published_generation.outcomes import Outcomes
from tunalab.evaluation.published_generation.summary import item_measure
from tunalab.inference.files import read_settings
from tunalab.terminal import progress_bar

CLIP_SCORE, HPS = "CLIP score", "HPS v2"
PREFIX, WEIGHT = "A photo depicts ", 2.5  # of CLIP-S, as its authors' script has them
SCALES: dict[str, Callable[[float], float]] = {
    "cosine": lambda cosine: cosine,
    "CLIP-S": lambda cosine: WEIGHT * max(cosine, 0.0),
}


@dataclass(frozen=True)
class Prompted:
    """An image file, the prompt that it was made of (None: it is damaged and cannot tell), and how many samples it shows."""

    path: Path
    prompt: str | None
    count: int = 1


def score_fit(benchmark: str, images: Sequence[Prompted], clip: Clip, outcomes: Outcomes) -> list[Measure]:
    """The mean cosine, items being prompts; of the CLIP score its own CLIP-S too. Raises UserError when no image can be read."""
    prefixes = {"cosine": ""} | ({"CLIP-S": PREFIX} if benchmark == CLIP_SCORE else {})
    values: dict[str, dict[str, list[float]]] = {metric: {} for metric in prefixes}
    failures = 0

    def find(image: Prompted, prompt: str, pixels_HWC: np.ndarray) -> dict[str, Any]:
        texts = [prefix + prompt for prefix in prefixes.values()]
        return dict(zip(prefixes, clip.fit(cells(pixels_HWC, image.count), texts), strict=True))

    for image in progress_bar(images, desc=benchmark):
        if image.prompt is None:
            failures += 1
            continue
        asked = [image.prompt, image.count, prefixes]
        found = outcomes.of(image.path, asked, partial(find, image, image.prompt))
        failures += found is None
        for metric, by_prompt in values.items():
            by_prompt.setdefault(image.prompt, []).extend([] if found is None else map(SCALES[metric], found[metric]))
    return [
        item_measure(benchmark, metric, [float(np.mean(one)) if one else None for one in by_prompt.values()], failures, clip.name)
        for metric, by_prompt in values.items()
    ]


def prompted_images(folder: Path, data: Path | None) -> list[Prompted]:
    """``data``: JSON lines of image (a path below the folder) and prompt; None: the images tell, as all that tunalab makes.

    Raises UserError: there are no images, one does not tell its prompt, is an edit, or is missing.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    if data is not None:
        listed = [
            Prompted(path_of(where, line, "image", folder), text_of(where, line, "prompt"))
            for where, line in read_lines(data, "prompts")
        ]
        if missing := [one.path for one in listed if not one.path.is_file()]:
            raise UserError(f"{missing[0]} is missing, which {data} names")
        return listed
    told = [one for path in files.listed(folder, "**/*.png") if (one := _told(path)) is not None]
    if all(one.prompt is None for one in told):
        raise UserError(f"{folder} holds no PNG that tells the prompt it was made of")
    return told


def _told(path: Path) -> Prompted | None:
    """None of pictures that are no samples: overviews, sources of edits."""
    try:
        settings = read_settings(path)
    except UserError:
        return Prompted(path, None)
    if settings is None:
        raise UserError(f"{path} does not tell the prompt it was made of: give --data, JSON lines of image and prompt")
    if "prompt" not in settings:
        return None
    if "source" in settings:
        raise UserError(f"{path} is an edit: what it was made of is no description of it")
    seed = settings["seed"]
    return Prompted(path, settings["prompt"], len(seed) if isinstance(seed, list) else 1)
