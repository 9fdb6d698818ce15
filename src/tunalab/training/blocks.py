"""The blocks of decoder and head: the units in which activations are recomputed, kernels fused and parameters sharded.

Those of a front-end are recomputed only. It runs once for every image size of a batch, and ranks have different sizes: gathering
its blocks one by one, they would wait for each other in different places.

Shapes: B rows, L tokens, D width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunalab.model.attention import raise_recompile_limit
from tunalab.model.unified import UnifiedModel


def blocks(model: UnifiedModel) -> list[nn.Module]:
    return [*model.decoder.model.layers, *model.head.blocks]


def recomputed(model: UnifiedModel) -> list[nn.Module]:
    """What activation checkpointing computes again: these, and the blocks of the front-end."""
    return [*blocks(model), *model.frontend.blocks()]


def prepare_blocks(model: UnifiedModel, recompute: bool, compiled: bool) -> None:
    """How blocks run in training; elsewhere they run as they are, and names of parameters stay too.

    ``recompute``: they keep their inputs alone and run again in the backward pass. ``compiled``: by kernels that torch makes for
    them, with as few passes over memory as it finds; also what is recomputed is then only what the backward pass reads.
    """
    if not recompute and not compiled:
        return
    run: Callable[..., Tensor] = _recomputed if recompute else _plain
    if compiled:
        raise_recompile_limit()
        # One function for all blocks, so that those of one kind share one compilation.
        run = torch.compile(run, fullgraph=True)
    for block in blocks(model):
        _replace_forward(block, run)
    if recompute:
        for block in model.frontend.blocks():
            _replace_forward(block, _recomputed)


def _replace_forward(block: nn.Module, run: Callable[..., Tensor]) -> None:
    plain = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        return run(block, *args, **kwargs)

    block.forward = forward  # type: ignore[method-assign]  # the instance's own, so that the hooks of sharding stay outside


def _plain(block: nn.Module, h_BLD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return type(block).forward(block, h_BLD, *args, **kwargs)


def _recomputed(block: nn.Module, h_BLD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    def run(h_BLD: Tensor) -> Tensor:
        return _plain(block, h_BLD, *args, **kwargs)

    # Nothing is drawn inside a block, so no generator's state need be kept.
    out: Tensor = checkpoint(run, h_BLD, use_reentrant=False, preserve_rng_state=False)
    return out
