"""What a run measures of its own process: time in which it was awake, and peak memory.

The clock stands still while the process is stopped (SIGSTOP, a debugger, a paused virtual machine). A process
gets no notice of that. So a thread looks at the clock again and again: where two looks lie far apart, and the
process has hardly computed between them, it was stopped. What a suspended laptop misses, Python's own clock
leaves out already.
"""

import multiprocessing
import resource
import sys
import threading
import time
from pathlib import Path

import torch

TICK = 0.5  # seconds between two looks
STOPPED = 3.0  # a gap from here on counts as being stopped; shorter ones are a busy machine


class AwakeClock:
    """Calling it gives seconds since some moment, without those in which the process was stopped (to about a tick each time)."""

    def __init__(self, tick: float = TICK, stopped: float = STOPPED) -> None:
        self.tick, self.stopped = tick, stopped
        self._lock = threading.Lock()
        self._last, self._worked, self._lost = time.perf_counter(), time.process_time(), 0.0
        self._looking = False

    def __call__(self) -> float:
        if not self._looking:
            self._looking = True
            threading.Thread(target=self._look_on, name="awake clock", daemon=True).start()
        return self._look()

    def _look_on(self) -> None:
        while True:
            time.sleep(self.tick)
            self._look()

    def _look(self) -> float:
        with self._lock:
            now, worked = time.perf_counter(), time.process_time()
            gap = now - self._last
            # A library may keep this thread waiting while it computes: then the process has worked, and the time counts.
            if gap > self.stopped and worked - self._worked < gap / 2:
                self._lost += gap - self.tick
            self._last, self._worked = now, worked
            return now - self._lost


awake = AwakeClock()


def peak_memory() -> int:
    """Bytes, since this process started; a run keeps the most over all its starts (``Progress.peak_memory``).

    On a GPU what this process allocated there at most. Else the largest resident set of this process plus those of its data
    processes, each at its own peak: an upper bound, since pages they share count in each. Data processes that have ended count
    as the largest of them did.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    running = sum(_resident_peak(child.pid) for child in multiprocessing.active_children())
    return _most(resource.RUSAGE_SELF) + max(running, _most(resource.RUSAGE_CHILDREN))


def _most(who: int) -> int:
    peak = resource.getrusage(who).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in kilobytes


def _resident_peak(pid: int | None) -> int:
    """Of a running process, where the system tells (Linux); 0 elsewhere, and when it ended meanwhile."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
