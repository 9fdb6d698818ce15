"""Evaluation inside a run, at log-spaced token counts, on EMA weights; its points make the run's curve."""

import math
from collections.abc import Callable
from typing import Any

from lightning import Callback, Trainer

from tunalab.config import EvaluationConfig
from tunalab.training.checkpointing import Checkpointing
from tunalab.training.module import Harness


def evaluation_tokens(evaluation: EvaluationConfig, budget: int) -> list[int]:
    """Token counts, log-spaced from ``first`` (a share of the budget) to the budget: the same for every variant."""
    if evaluation.points == 1:
        return [budget]
    first = math.log(evaluation.first)
    shares = [math.exp(first * (1 - k / (evaluation.points - 1))) for k in range(evaluation.points)]
    return sorted({max(1, round(share * budget)) for share in shares})


class Evaluating(Callback):
    """Runs ``evaluate`` (under EMA weights) when the run has passed the next token count, and hands its points on.

    ``points`` are plain dictionaries and part of the checkpoint, so a resumed run has the whole curve.
    """

    def __init__(
        self,
        at_tokens: list[int],
        evaluate: Callable[[Harness], dict[str, Any]],
        on_point: Callable[[Harness, list[dict[str, Any]]], None],
        checkpointing: Checkpointing,
    ) -> None:
        self.at_tokens = at_tokens
        self.evaluate = evaluate
        self.on_point = on_point
        self.checkpointing = checkpointing
        self.points: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Harness, *_: Any) -> None:  # type: ignore[override]
        if self._due(pl_module.progress.tokens):
            self._point(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        # The last step may end just short of the last count; the end of training is always a point.
        spent = not self.checkpointing.stop.stopped
        if spent and (not self.points or self.points[-1]["steps"] != pl_module.progress.steps):
            self._point(pl_module)

    def _due(self, tokens: int) -> bool:
        last = self.points[-1]["tokens"] if self.points else 0
        return any(last < at <= tokens for at in self.at_tokens)

    def _point(self, module: Harness) -> None:
        p = module.progress
        module.pause_clock()
        with module.ema.applied():
            result = self.evaluate(module)
        counters = {"tokens": p.tokens, "steps": p.steps, "images": p.images, "flops": p.flops, "seconds": p.seconds}
        self.points.append({**counters, **result})
        self.on_point(module, self.points)
        self.checkpointing.requested = True
        module.pause_clock()

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = list(state_dict["points"])
