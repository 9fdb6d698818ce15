"""Exponential moving average of the trained weights: what is evaluated, while the raw weights go on training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Ema:
    """Shadow weights of the given parameters. The decay grows with the number of updates n as (1 + n) / (10 + n) up to ``decay``,

    so that the average does not remember the initial weights for thousands of steps. Of a sharded parameter every rank averages
    its own shard.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(
            [local(shadow) for shadow in self.shadow.values()], [local(p) for p in self.parameters.values()], 1 - decay
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averaged weights inside the block and its raw weights, the very same bits, after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Contents change places, not tensors: a sharded parameter is gathered from storage that its module keeps to itself.
        for name, p in self.parameters.items():
            shadow, weights = local(self.shadow[name]), local(p)
            averaged = shadow.clone()
            shadow.copy_(weights)
            weights.copy_(averaged)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor, any other as it is."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()
