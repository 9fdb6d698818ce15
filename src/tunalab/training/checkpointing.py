"""When a run is saved: every so often, after each evaluation, when asked to stop, at its end. And its start from there."""

import time
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from tunalab.config import config_hash
from tunalab.training.checkpoints import CheckpointStore
from tunalab.training.module import Harness
from tunalab.training.state import restore, write_state
from tunalab.training.stopping import StopSignal


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
