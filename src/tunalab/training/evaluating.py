"""Evaluation inside a run, at log-spaced token counts, on EMA weights; its points make the run's curve."""

from collections.abc import Callable
from typing import Any

from lightning import Callback, Trainer

from tunalab.training.checkpointing import Checkpointing
from tunalab.training.module import Harness, Progress


class Evaluating(Callback):
    """Runs ``evaluate`` (under EMA weights) when the run has passed the next token count, and hands its points on.

    The first rank evaluates while the others wait, and every rank keeps its points: plain dictionaries in the run's progress, and
    so in its checkpoints: a resumed run has the whole curve.
    """

    def __init__(
        self,
        at_tokens: list[int],
        evaluate: Callable[[Harness], dict[str, Any]],
        on_point: Callable[[Harness], None],
        checkpointing: Checkpointing,
    ) -> None:
        self.at_tokens = at_tokens
        self.evaluate = evaluate
        self.on_point = on_point
        self.checkpointing = checkpointing

    def on_train_batch_end(self, trainer: Trainer, pl_module: Harness, *_: Any) -> None:  # type: ignore[override]
        if self._due(pl_module.progress):
            self._point(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        # The last step may end just short of the last count; the end of training is always a point.
        points = pl_module.progress.points
        spent = not self.checkpointing.stop.stopped
        if spent and (not points or points[-1]["steps"] != pl_module.progress.steps):
            self._point(pl_module)

    def _due(self, progress: Progress) -> bool:
        last = progress.points[-1]["tokens"] if progress.points else 0
        return any(last < at <= progress.tokens for at in self.at_tokens)

    def _point(self, module: Harness) -> None:
        p, ranks = module.progress, module.ranks
        module.pause_clock()
        point: dict[str, Any] = {}
        with module.ema.applied(), module.gathered(), ranks.together(patient=True):
            if ranks.first:
                counters = {"tokens": p.tokens, "steps": p.steps, "images": p.images, "flops": p.flops, "seconds": p.seconds}
                point = {**counters, **self.evaluate(module)}
        p.points.append(ranks.broadcast(point))
        with ranks.together():
            if ranks.first:
                self.on_point(module)
        self.checkpointing.requested = True
        module.pause_clock()
