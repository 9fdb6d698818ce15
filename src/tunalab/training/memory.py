"""Peak memory of a run's processes on this machine."""

import multiprocessing
import resource
import sys
from pathlib import Path

import torch


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
