"""Ctrl-C, SIGTERM, SIGHUP: the handler only raises a flag; at the end of a step every rank saves and leaves together."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

from tunalab.errors import stop_signals_heeded
from tunalab.training.claiming import Holding
from tunalab.training.ranks import ALONE, Ranks


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
