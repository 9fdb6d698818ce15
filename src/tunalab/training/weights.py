"""The learnt weights inside a checkpoint: the one place, besides the trainer's own resume, that knows how they are stored."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tunalab.training.checkpoints import STATE


@dataclass(frozen=True, eq=False)
class LearntWeights:
    """``weights`` by the model's names, without frozen parts (a tied table may appear under both of its names), at ``steps``
    optimiser steps and ``tokens`` tokens.
    """

    weights: dict[str, Tensor]
    steps: int
    tokens: int


def learnt_weights(checkpoint: Path, raw: bool = False) -> LearntWeights:
    """Of an undamaged checkpoint folder: the averaged weights, or with ``raw`` those that go on training."""
    state = torch.load(checkpoint / STATE, weights_only=True, map_location="cpu", mmap=True)
    weights = {name.removeprefix("model."): tensor for name, tensor in state["state_dict"].items()}
    if not raw:
        # Averages exist of parameters alone; what else a module stores is the same for both.
        weights |= state["tunalab"]["ema"]["shadow"]
    progress = state["tunalab"]["progress"]
    return LearntWeights(weights, progress["steps"], progress["tokens"])
