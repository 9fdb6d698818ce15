"""What the components' training loops share."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

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
