"""When a run is saved: every so often, after every evaluation, when it is asked to stop, and at its end."""

import time
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from tunalab.training.checkpoints import STATE, CheckpointStore
from tunalab.training.module import Harness
from tunalab.training.stopping import StopSignal


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
        if trainer.world_size > 1:
            due = bool(trainer.strategy.broadcast(due))  # one clock decides, else ranks would wait for each other
        if due or self.requested or self.stop.stopped:
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        if pl_module.progress.steps != self._saved_step:
            self.save(trainer, pl_module)

    def save(self, trainer: Trainer, pl_module: Harness) -> None:
        def write(folder: Path) -> None:
            trainer.save_checkpoint(folder / STATE)

        self.store.save(pl_module.progress.steps, write)
        self._saved_step = pl_module.progress.steps
        self._last = time.monotonic()
        self.requested = False
        pl_module.pause_clock()
