"""A thread that carries what a run logs to MLflow, in order, and tries again after a failure.

MLflow has a queue of its own, which gives a batch up at its first failure, and on exit waits out every time limit of every batch
when a server hangs. This one keeps what has not arrived, and is left behind after its patience.
"""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from tunalab.results.mlflow.client import survive

T = TypeVar("T")

GATHER_SECONDS = 10.0  # what is logged within it travels together: one call takes 25 ms of a core, which may be the run's only one
RETRY_SECONDS = 30.0  # after a failure
PATIENCE_SECONDS = 60.0  # at the end of a run; a server that hangs takes half of it to fail once


class Sender(Generic[T]):
    """``deliver`` gets a list of what has not arrived, removes from its front what has, and raises where it fails."""

    def __init__(self, uri: str, deliver: Callable[[list[T]], None], failed_at_start: bool) -> None:
        self.uri = uri
        self.failing = failed_at_start
        self._deliver = deliver
        self._queue: SimpleQueue[T] = SimpleQueue()
        self._unsent: list[T] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="tunalab-mlflow")
        self._thread.start()

    def put(self, entry: T) -> None:
        """Takes microseconds, whatever the server does."""
        self._queue.put(entry)

    def close(self) -> int:
        """Deliver the rest, with one more attempt where the last has failed; returns how many entries have not arrived."""
        self._closing.set()
        self._thread.join(PATIENCE_SECONDS)
        return len(self._unsent) + self._queue.qsize()

    def _run(self) -> None:
        next_try = time.monotonic() + RETRY_SECONDS * self.failing
        closing = False
        while not closing:
            closing = self._closing.wait(GATHER_SECONDS)
            while not self._queue.empty():
                self._unsent.append(self._queue.get())
            if self._unsent and (closing or time.monotonic() >= next_try):
                self.failing = not survive(self.uri, lambda: self._deliver(self._unsent))[0]
                next_try = time.monotonic() + RETRY_SECONDS * self.failing
