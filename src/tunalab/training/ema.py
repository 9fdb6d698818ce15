"""Exponential moving average of the trained weights: what is evaluated, while the raw weights go on training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Shadow weights of the given parameters. The decay grows with the number of updates n as (1 + n) / (10 + n) up to ``decay``,

    so that the average does not remember the initial weights for thousands of steps.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().clone() for name, p in parameters.items()}

    def follow(self) -> None:
        """Move the averages to where the parameters are now: a module is built on the CPU and moved before it trains."""
        for name, p in self.parameters.items():
            self.shadow[name] = self.shadow[name].to(p.device)

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.shadow.values()), [p.detach() for p in self.parameters.values()], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averaged weights inside the block and its raw weights, the very same bits, after it."""
        raw = {name: p.data for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            p.data = self.shadow[name]
        try:
            yield
        finally:
            for name, p in self.parameters.items():
                p.data = raw[name]

    def state_dict(self) -> dict[str, object]:
        return {"updates": self.updates, "shadow": dict(self.shadow)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Raises ValueError when names differ, listing them."""
        shadow: dict[str, Tensor] = state["shadow"]  # type: ignore[assignment]
        if set(shadow) != set(self.shadow):
            raise ValueError(f"EMA weights do not fit; they differ in {sorted(set(shadow) ^ set(self.shadow))}")
        for name, tensor in shadow.items():
            self.shadow[name].copy_(tensor)
        self.updates = int(state["updates"])  # type: ignore[call-overload]
