"""What the components' training loops share."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunalab.frontends.contract import signed

WARMUP = 50

# Wraps the loop over steps, to show how far it is.
Progress = Callable[[Iterable[Any]], Iterable[Any]]


def cosine_with_warmup(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a cosine to zero at ``steps``."""

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def trainer_device() -> torch.device:
    """Components are small but need minutes on one core, so a GPU is used when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# Training data of the components: endless batches from the split that nothing else sees.
#
# Shapes: B images, H W pixels, C colours.

# (split, seed, count, image_size) -> images (B, H, W, C) uint8 and their captions
CaptionSource = Callable[[str, int, int, int], tuple[np.ndarray, list[str]]]
# (seed, count) -> texts
TextSource = Callable[[int, int], list[str]]

TRAIN_SPLIT = "components"
HELD_OUT_SPLIT = "test"
CHUNK = 1024


def to_tensor(images_BHWC: np.ndarray) -> Tensor:
    """uint8 (B, H, W, C) to float RGB (B, C, H, W) in [-1, 1]."""
    return signed(torch.from_numpy(images_BHWC).permute(0, 3, 1, 2))


def batches(source: CaptionSource, seed: int, batch: int, image_size: int, steps: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    """``steps`` batches of fresh examples (drawn in chunks), a function of the seed. Images stay uint8."""
    images_BHWC, captions = np.zeros((0, image_size, image_size, 3), np.uint8), list[str]()
    chunk = 0
    for _ in range(steps):
        while len(captions) < batch:
            more_BHWC, more = source(TRAIN_SPLIT, seed * 1_000_000 + chunk, max(batch, min(CHUNK, batch * steps)), image_size)
            images_BHWC, captions = np.concatenate([images_BHWC, more_BHWC]), captions + more
            chunk += 1
        yield images_BHWC[:batch], captions[:batch]
        images_BHWC, captions = images_BHWC[batch:], captions[batch:]
