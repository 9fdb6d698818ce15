"""Ctrl-C, SIGTERM, SIGHUP: the handler only raises a flag; at the end of a step every rank saves and leaves together."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

from tunalab.errors import stop_signals_heeded
from tunalab.settings.loading import config_hash
from tunalab.training.checkpoints import CheckpointStore
from tunalab.training.claiming import Holding
from tunalab.training.distribution import ALONE, Ranks
from tunalab.training.module import Harness, Progress
from tunalab.training.state import restore, write_state


class StopSignal(Callback):
    """``stopped`` turns true at the first step end after a signal on any rank. A second Ctrl-C interrupts at once.

    ``holding``, on the first rank: the run's directory. When it is lost, nothing can be saved, and every rank raises UserError.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.holding: Holding | None = None
        self.flag = False
        self.stopped = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Installed here because Lightning installs its own earlier, whose SIGTERM exits 0 without a checkpoint.
        for number in stop_signals_heeded():
            signal.signal(number, self._raise_flag)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        lost = self.holding is not None and self.holding.lost()
        flags = self.ranks.numbers([self.flag, lost])
        if flags[:, 1].any():
            with self.ranks.together():
                if self.holding is not None:
                    self.holding.check()
        if flags[:, 0].any():
            self.stopped = True
            trainer.should_stop = True

    @contextmanager
    def handlers_restored(self) -> Iterator[None]:
        """Around the whole fit: whatever handled the signals before does so again after it, also after an error.

        Raises KeyboardInterrupt: of it Lightning makes an exit with code 1, which is that of a run that failed.
        """
        before = {number: signal.getsignal(number) for number in stop_signals_heeded()}
        try:
            yield
        except SystemExit as end:
            if not isinstance(end.__context__, KeyboardInterrupt):
                raise
            raise KeyboardInterrupt from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        if self.flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.flag = True


# When a run is saved: every so often, after each evaluation, when asked to stop, at its end. And its start from there.


class Resuming(Callback):
    """Stands first among the callbacks, so that the others start with the run where it was.

    ``lanes`` and ``next_lane``: where this rank's stream begins, which is also what the next checkpoint says of lanes that have
    not been asked for a step by then.
    """

    def __init__(self) -> None:
        self.checkpoint: Path | None = None
        self.lanes: dict[int, dict[str, Any]] = {}
        self.next_lane = 0

    def on_train_start(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        # Here, not before: shards and moments are made on their devices by now, and are filled in place.
        if self.checkpoint is not None:
            restore(self.checkpoint, pl_module, trainer.optimizers[0])
            pl_module.progress.lanes, pl_module.progress.next_lane = dict(self.lanes), self.next_lane


class Checkpointing(Callback):
    """Stands last among the callbacks, so that a checkpoint holds what the others did at the same step."""

    def __init__(self, store: CheckpointStore, seconds: float, stop: StopSignal) -> None:
        self.store = store
        self.seconds = seconds
        self.stop = stop
        self.requested = False  # set by other callbacks: save at the end of this step
        self._last = time.monotonic()
        self._saved_step = -1

    def on_train_batch_end(self, trainer: Trainer, pl_module: Harness, *_: Any) -> None:  # type: ignore[override]
        due = time.monotonic() - self._last >= self.seconds
        due = bool(self.store.ranks.numbers([due])[0, 0])  # one clock decides, else ranks would wait for each other
        if due or self.requested or self.stop.stopped:
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        if pl_module.progress.steps != self._saved_step:
            self.save(trainer, pl_module)

    def save(self, trainer: Trainer, pl_module: Harness) -> None:
        def write(folder: Path) -> None:
            write_state(folder, pl_module, trainer.optimizers[0])

        self.store.save(pl_module.progress.steps, write, config_hash=config_hash(pl_module.config))
        self._saved_step = pl_module.progress.steps
        self._last = time.monotonic()
        self.requested = False
        pl_module.pause_clock()


# Evaluation inside a run, at log-spaced token counts, on EMA weights; its points make the run's curve.


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
