"""CLIP score, HPS v2 and colours of things, by open_clip's models with weights of this machine.

CLIP score: https://arxiv.org/abs/2104.08718, there "CLIP-S", 2.5 max(cosine, 0) with words before the prompt; beside
it the cosine with the prompt alone, which most reports on text-to-image mean. HPS v2:
https://arxiv.org/abs/2306.09341, the cosine of a ViT-H-14 that learnt what people prefer, images padded to a square.
Cosines are often given times 100. Ours are computed in float32; the official scripts compute in float16 on a GPU.

Shapes: N images, T texts, D features, H W C image pixels and channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from tunalab import files
from tunalab.data.pretrained import LOAD_ERRORS
from tunalab.errors import UserError, one_line
from tunalab.evaluation.measure import Measure
from tunalab.inference.images import read_settings
from tunalab.interop.dpg import cells
from tunalab.interop.geneval import COLOURS, Detection
from tunalab.interop.outcomes import Outcomes, item_measure, path_of, read_lines, stamps, text_of
from tunalab.terminal import progress_bar

CONFIG = "open_clip_config.json"
BACKGROUND = (153, 153, 153)  # what GenEval puts around a thing: #999
BATCH = 32
# The wordings that GenEval's classifier averages: colour, thing.
WORDINGS: tuple[Callable[[str, str], str], ...] = (
    lambda colour, thing: f"a photo of a {colour} {thing}",
    lambda colour, thing: f"a photo of a {colour}-colored {thing}",
    lambda colour, thing: f"a photo of a {colour} object",
)


class Clip:
    """``weights``: a folder with open_clip's own configuration, or a file of weights of ``architecture`` (ViT-L-14-quickgelu).

    ``padded``: images that are not square are padded, by :func:`padded_square`; else they become so as the weights have it.
    Raises UserError, one line: nothing there, an unknown architecture, weights that do not fit.
    """

    def __init__(self, weights: Path, architecture: str | None, device: torch.device, padded: bool = False) -> None:
        import open_clip
        from open_clip.utils import to_2tuple

        what = f"CLIP {weights}"
        if weights.is_dir() and not (weights / CONFIG).is_file():
            raise UserError(f"{what}: {CONFIG} is missing; for a file of weights name that file and its architecture")
        if not weights.exists():
            raise UserError(f"{what}: no such file or folder")
        if weights.is_file() and architecture not in open_clip.list_models():
            raise UserError(f"{what}: weights in a file need --architecture, one of open_clip's (such as ViT-L-14-quickgelu)")
        place = f"local-dir:{weights}" if weights.is_dir() else str(architecture)
        pretrained = None if weights.is_dir() else str(weights)
        try:
            self.model: Any
            self.model, self.preprocess = open_clip.create_model_from_pretrained(place, pretrained, device=device)
            self.tokenizer = open_clip.get_tokenizer(place)
        except LOAD_ERRORS as error:
            raise UserError(f"{what} cannot be read: {one_line(error)}") from error
        self.model.eval()
        if padded:
            values = open_clip.get_model_preprocess_cfg(self.model)
            self.preprocess = partial(padded_square, side=to_2tuple(values["size"])[0], mean=values["mean"], std=values["std"])
        self.identity = [architecture, "padded values" if padded else None, stamps(weights)]
        self.device = device
        self.name = f"open_clip {weights.resolve().name if weights.is_dir() else architecture}"

    @torch.no_grad()
    def images(self, images_HWC: Sequence[np.ndarray]) -> Tensor:
        """Unit features (N, D)."""
        features = []
        for first in range(0, len(images_HWC), BATCH):
            batch = [self.preprocess(Image.fromarray(pixels_HWC)) for pixels_HWC in images_HWC[first : first + BATCH]]
            features.append(self.model.encode_image(torch.stack(batch).to(self.device), normalize=True))
        return torch.cat(features)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit features (T, D)."""
        features: Tensor = self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=True)
        return features

    def fit(self, images_HWC: Sequence[np.ndarray], texts: Sequence[str]) -> list[list[float]]:
        """Of every text its cosine with each image."""
        cosines: list[list[float]] = (self.texts(texts) @ self.images(images_HWC).T).tolist()
        return cosines


def padded_square(image: Image.Image, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The longest side resized to ``side``, zeros (black) on both sides of the other: (3, side, side).

    As HPS v2's own code (https://github.com/tgxs002/HPSv2, hpsv2/src/open_clip/transform.py) with torchvision from 0.17: values
    are resized, not bytes, so they are not rounded and may leave 0 to 1. With an older torchvision that code has no antialias.
    """
    pixels_CHW = transforms.to_tensor(image.convert("RGB"))
    height, width = (max(1, round(length * side / max(image.size))) for length in (image.height, image.width))
    small_CHW = transforms.resize(pixels_CHW, [height, width], InterpolationMode.BICUBIC, antialias=True)
    left, top = (side - width) // 2, (side - height) // 2
    square_CHW = transforms.pad(small_CHW, [left, top, side - width - left, side - height - top], fill=0)
    return transforms.normalize(square_CHW, list(mean), list(std))


class ZeroShotColours:
    """The colour whose wordings fit the thing best, everything around it grey: GenEval's classifier, with any CLIP."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.name = f"zero-shot by {clip.name}"
        self._features: dict[str, Tensor] = {}

    def colours(self, pixels_HWC: np.ndarray, detections: Sequence[Detection]) -> list[str]:
        crops = [cut_out(pixels_HWC, one) for one in detections]
        (thing,) = {one.thing for one in detections}
        best = (self.clip.images(crops) @ self._colours_TD(thing).T).argmax(dim=1)
        return [COLOURS[number] for number in best.tolist()]

    def _colours_TD(self, thing: str) -> Tensor:
        if thing not in self._features:
            means = [self.clip.texts([wording(colour, thing) for wording in WORDINGS]).mean(dim=0) for colour in COLOURS]
            self._features[thing] = normalize(torch.stack(means), dim=1)
        return self._features[thing]


def cut_out(pixels_HWC: np.ndarray, one: Detection) -> np.ndarray:
    """The box of a detection, grey outside its mask; black where a box goes beyond the image, as Pillow crops."""
    kept = pixels_HWC if one.mask_HW is None else np.where(one.mask_HW[..., None], pixels_HWC, np.array(BACKGROUND, np.uint8))
    return np.asarray(Image.fromarray(kept).crop(one.box))


CLIP_SCORE, HPS = "CLIP score", "HPS v2"
PREFIX, WEIGHT = "A photo depicts ", 2.5  # of CLIP-S, as its authors' script has them
SCALES: dict[str, Callable[[float], float]] = {
    "cosine": lambda cosine: cosine,
    "CLIP-S": lambda cosine: WEIGHT * max(cosine, 0.0),
}


@dataclass(frozen=True)
class Prompted:
    """An image file, the prompt that it was made of (None: it is damaged), and how many samples it shows."""

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
        question = [image.prompt, image.count, prefixes]
        found = outcomes.of(image.path, question, partial(find, image, image.prompt))
        failures += found is None
        for metric, by_prompt in values.items():
            by_prompt.setdefault(image.prompt, []).extend([] if found is None else map(SCALES[metric], found[metric]))
    return [
        item_measure(benchmark, metric, [float(np.mean(one)) if one else None for one in by_prompt.values()], failures, clip.name)
        for metric, by_prompt in values.items()
    ]


def prompted_images(folder: Path, data: Path | None) -> list[Prompted]:
    """``data``: JSON lines of image (a path below the folder) and prompt; None: the images' own settings.

    Raises UserError: there are no images, one has no prompt, is an edit, or is missing.
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
    found = [one for path in files.listed(folder, "**/*.png") if (one := _prompted(path)) is not None]
    if all(one.prompt is None for one in found):
        raise UserError(f"{folder} holds no PNG that says which prompt it was made of")
    return found


def _prompted(path: Path) -> Prompted | None:
    """None of pictures that are no samples: overviews, sources of edits."""
    try:
        settings = read_settings(path)
    except UserError:
        return Prompted(path, None)
    if settings is None:
        raise UserError(f"{path} does not say which prompt it was made of: give --data, JSON lines of image and prompt")
    if "prompt" not in settings:
        return None
    if "source" in settings:
        raise UserError(f"{path} is an edit: what it was made of is no description of it")
    seed = settings["seed"]
    return Prompted(path, settings["prompt"], len(seed) if isinstance(seed, list) else 1)
