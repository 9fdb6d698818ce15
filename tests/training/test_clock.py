"""Time in which the process was stopped does not count as training."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import quick_config
from tunalab.training import clock as memory
from tunalab.training import module
from tunalab.training.checkpoints import CheckpointStore, read_saved
from tunalab.training.clock import AwakeClock, peak_memory
from tunalab.training.module import Harness, Progress
from tunalab.training.run import train

CHILD = """\
import sys, time
from tunalab.training.clock import AwakeClock
clock = AwakeClock(tick=0.02, stopped=0.3)
began, really = clock(), time.perf_counter()
print("ready", flush=True)
sys.stdin.readline()
print(clock() - began, time.perf_counter() - really, flush=True)
"""


@pytest.mark.slow
def test_a_stopped_process_does_not_count_the_time() -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(child.pid, signal.SIGCONT)
        counted, really = map(float, child.communicate("\n")[0].split())
    assert really >= 1.0
    assert counted <= really - 0.9, "of the second that it was stopped, hardly anything counts"


@pytest.mark.parametrize(
    ("gap", "worked", "counted"),
    [(0.6, 0.0, 0.6), (2.9, 0.0, 2.9), (100.0, 0.1, 0.5), (100.0, 90.0, 100.0)],
    ids=["a tick", "a busy machine", "stopped", "a library that keeps the thread waiting"],
)
def test_what_counts(gap: float, worked: float, counted: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"perf_counter": 7.0, "process_time": 3.0}
    for name in now:
        monkeypatch.setattr(f"tunalab.training.clock.time.{name}", lambda name=name: now[name])
    clock = AwakeClock()
    clock._looking = True  # without the thread
    began = clock()
    now["perf_counter"] += gap
    now["process_time"] += worked
    assert clock() - began == pytest.approx(counted)


def test_training_is_measured_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(10_000))
    monkeypatch.setattr(module, "awake", lambda: float(next(times)))
    assert train(quick_config(), tmp_path) == 0
    newest = CheckpointStore(tmp_path / "checkpoints").newest_valid()
    assert newest is not None
    progress = read_saved(newest).progress
    assert 1 <= progress["seconds"] <= progress["steps"] + 1


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
