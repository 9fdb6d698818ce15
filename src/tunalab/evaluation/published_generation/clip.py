"""CLIP models of open_clip with weights of this machine: how well images fit texts, and which colour a thing has.

Shapes: N images, T texts, D features, H W C image pixels and channels.
"""

from collections.abc import Callable, Sequence
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

from tunalab.data.pretrained import LOAD_ERRORS, one_line
from tunalab.errors import UserError
from tunalab.evaluation.published_generation.detection import Detection
from tunalab.evaluation.published_generation.geneval import COLOURS
from tunalab.evaluation.published_generation.local import stamps

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
            known = open_clip.get_model_preprocess_cfg(self.model)
            self.preprocess = partial(padded_square, side=to_2tuple(known["size"])[0], mean=known["mean"], std=known["std"])
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
        self._known: dict[str, Tensor] = {}

    def colours(self, pixels_HWC: np.ndarray, seen: Sequence[Detection]) -> list[str]:
        crops = [cut_out(pixels_HWC, one) for one in seen]
        (thing,) = {one.thing for one in seen}
        best = (self.clip.images(crops) @ self._colours_TD(thing).T).argmax(dim=1)
        return [COLOURS[number] for number in best.tolist()]

    def _colours_TD(self, thing: str) -> Tensor:
        if thing not in self._known:
            means = [self.clip.texts([wording(colour, thing) for wording in WORDINGS]).mean(dim=0) for colour in COLOURS]
            self._known[thing] = normalize(torch.stack(means), dim=1)
        return self._known[thing]


def cut_out(pixels_HWC: np.ndarray, one: Detection) -> np.ndarray:
    """The box of a detection, grey outside its mask; black where a box goes beyond the image, as Pillow crops."""
    kept = pixels_HWC if one.mask_HW is None else np.where(one.mask_HW[..., None], pixels_HWC, np.array(BACKGROUND, np.uint8))
    return np.asarray(Image.fromarray(kept).crop(one.box))
