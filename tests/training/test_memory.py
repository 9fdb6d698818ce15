import multiprocessing
import resource
import time
from typing import Any

import pytest

from tunalab.training import clock as memory
from tunalab.training import module
from tunalab.training.clock import peak_memory
from tunalab.training.module import Harness, Progress

MEGABYTE = 2**20


def _hold(megabytes: int, ready: Any) -> None:
    held = bytearray(b"x") * (megabytes * MEGABYTE)
    ready.set()
    time.sleep(60 if held else 0)


def test_data_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    most = memory._most  # processes that earlier tests started and that have ended count too, and may have been larger than ours
    monkeypatch.setattr(memory, "_most", lambda who: most(who) if who == resource.RUSAGE_SELF else 0)
    alone = peak_memory()
    assert alone >= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes, not in the kilobytes of Linux
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=_hold, args=(200, ready))
    child.start()
    try:
        assert ready.wait(30)
        assert peak_memory() >= alone + 150 * MEGABYTE
    finally:
        child.kill()
        child.join()
    monkeypatch.setattr(memory, "_most", lambda who: most(who) if who == resource.RUSAGE_SELF else 10**15)
    assert peak_memory() >= 10**15  # those that have ended, where they were the larger


def test_the_most_of_all_starts_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness.__new__(Harness)
    harness.__dict__["progress"] = Progress(**{"tokens": 3, "lanes": {}})  # as a checkpoint from before the field was there
    for now, most in ((500, 500), (200, 500), (700, 700)):
        monkeypatch.setattr(module, "peak_memory", lambda now=now: now)
        harness.note_memory()
        assert harness.progress.peak_memory == most
