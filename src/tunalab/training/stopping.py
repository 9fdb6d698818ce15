"""Ctrl-C and SIGTERM: the handler only raises a flag; at the end of a step every rank saves and leaves together."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

from tunalab.training.ranks import ALONE, Ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal(Callback):
    """``stopped`` turns true at the first step end after a signal on any rank. A second Ctrl-C interrupts at once."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.flag = False
        self.stopped = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Installed here because Lightning installs its own earlier, whose SIGTERM exits 0 without a checkpoint.
        for number in SIGNALS:
            signal.signal(number, self._raise_flag)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.ranks.numbers([self.flag]).any():
            self.stopped = True
            trainer.should_stop = True

    @contextmanager
    def handlers_restored(self) -> Iterator[None]:
        """Around the whole fit: whatever handled the signals before does so again after it, also after an error."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        if self.flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.flag = True
