"""How exactly the parser reads: clean renders, then under noise and blur, and after the model's own space.

The scenes are held-out ones of all kinds that are made of shapes, at all levels. An image is read exactly when its background and
the shape, colour, size and slot of every thing are right and nothing else is found.

Shapes: N images, H W C pixels.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from tunalab.data.scenes import Item, Scene, render, scene
from tunalab.evaluation.generation.parser import Parsed, parse
from tunalab.evaluation.measure import Measure, share
from tunalab.frontends.contract import VisualFrontEnd, signed
from tunalab.inference.generation import to_pixels
from tunalab.model.unified import UnifiedModel

KINDS = ("objects", "relations", "pairs", "search", "count")
LEVELS = (1, 2, 3)
NOISE = (0.05, 0.1, 0.2)  # standard deviation, of a range of 1
BLUR = (0.5, 1.0)  # standard deviation in pixels of a 32-px image
ROUND_TRIP = "round trip"
_SEED = 0


def accuracy(model: UnifiedModel, count: int, image_size: int) -> list[Measure]:
    """Of ``count`` images in each condition: exact images, and exact things among all that are there or are found."""
    scenes = parser_scenes(count)
    clean_NHWC = np.stack([render(one, image_size) for one in scenes])
    found = []
    for split, images_NHWC in [*conditions(clean_NHWC), (ROUND_TRIP, round_trip(model, clean_NHWC))]:
        parsed = parse(images_NHWC)
        note = "after the space the model generates in and back: the best it can do" if split == ROUND_TRIP else ""
        exact = [is_exact(one, truth) for one, truth in zip(parsed, scenes, strict=True)]
        found.append(share("generation", "parser", exact, metric="images exact", split=split, ceiling=1.0, note=note))
        hits, total = (sum(counts) for counts in zip(*(things(one, truth) for one, truth in zip(parsed, scenes)), strict=True))
        outcomes = [True] * hits + [False] * (total - hits)
        of_things = share("generation", "parser", outcomes, metric="things exact", split=split, ceiling=1.0, note=note)
        found.append(replace(of_things, items=[]))  # what is found beyond what is there differs from model to model
    return found


def parser_scenes(count: int) -> list[Scene]:
    """Held-out scenes, kinds and levels in turn."""
    cells = [(kind, level) for level in LEVELS for kind in KINDS]
    return [scene("test", _SEED, index // len(cells), *cells[index % len(cells)]) for index in range(count)]


def conditions(clean_NHWC: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Split and images: clean, noisy, blurred."""
    yield "clean", clean_NHWC
    draws = np.random.default_rng(_SEED)
    for deviation in NOISE:
        noisy_NHWC = clean_NHWC + draws.normal(0, 255 * deviation, clean_NHWC.shape)
        yield f"noise {deviation:g}", np.clip(np.round(noisy_NHWC), 0, 255).astype(np.uint8)
    for deviation in BLUR:
        sigma = deviation * clean_NHWC.shape[1] / 32
        yield f"blur {deviation:g}", gaussian_filter(clean_NHWC, (0, sigma, sigma, 0), mode="nearest")


@torch.no_grad()
def round_trip(model: UnifiedModel, images_NHWC: np.ndarray) -> np.ndarray:
    """The images after the space that the model generates in (a VAE's latents, or pixels) and back: uint8 (N, H, W, 3)."""
    frontend: VisualFrontEnd = model.frontend
    device = next(model.parameters()).device
    parts = []
    for part_NCHW in torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).split(256):
        parts.append(to_pixels(model, frontend.to_space(signed(part_NCHW.to(device)))))
    return np.concatenate(parts)


def is_exact(parsed: Parsed, truth: Scene) -> bool:
    return parsed.background == truth.background and _named(parsed.items) == _named(truth.items)


def things(parsed: Parsed, truth: Scene) -> tuple[int, int]:
    """How many things are found exactly, and how many are there or found."""
    there, found = _named(truth.items), _named(parsed.items)
    return (there & found).total(), (there | found).total()


def _named(items: Sequence[Item]) -> Counter[tuple[str, str, str, str]]:
    return Counter((item.shape, item.colour, item.size, item.slot) for item in items)
