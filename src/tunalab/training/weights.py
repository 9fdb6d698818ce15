"""The learnt weights inside a checkpoint, whole, whatever number of ranks wrote it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tunalab.training.state import EMA, FIRST_FORMAT, MODEL, read_saved, read_whole, reading


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
    if (checkpoint / FIRST_FORMAT).exists():
        return _first_format(checkpoint / FIRST_FORMAT, raw)
    weights = read_whole(checkpoint, MODEL)
    if not raw:
        # Averages exist of parameters alone; what else a module stores is the same for both.
        weights |= read_whole(checkpoint, EMA)
    progress = read_saved(checkpoint).progress
    return LearntWeights(weights, progress["steps"], progress["tokens"])


def _first_format(path: Path, raw: bool) -> LearntWeights:
    with reading(path.parent):
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        weights = {name.removeprefix("model."): tensor for name, tensor in state["state_dict"].items()}
        if not raw:
            weights |= state["tunalab"]["ema"]["shadow"]
        progress = state["tunalab"]["progress"]
        return LearntWeights(weights, progress["steps"], progress["tokens"])
