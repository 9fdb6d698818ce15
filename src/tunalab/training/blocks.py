"""The blocks of decoder and head: the units in which activations are recomputed and parameters sharded.

The front-end is no unit. It runs once for every image size of a batch, and ranks have different sizes: gathering its blocks one
by one, they would wait for each other in different places.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tunalab.model.unified import UnifiedModel


def blocks(model: UnifiedModel) -> list[nn.Module]:
    return [*model.decoder.model.layers, *model.head.blocks]


def recompute_activations(model: UnifiedModel) -> None:
    """Blocks keep their inputs alone and run again in the backward pass; names of parameters stay as they are."""
    for block in blocks(model):
        _recompute(block)


def _recompute(block: nn.Module) -> None:
    plain = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        # Nothing is drawn inside a block, so no generator's state need be kept.
        return checkpoint(plain, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    block.forward = forward  # type: ignore[method-assign]  # the instance's own, so that the hooks of sharding stay outside
