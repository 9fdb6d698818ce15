"""Peak memory of this process, over every start of the run that is still known to the operating system."""

import resource
import sys

import torch


def peak_memory() -> int:
    """Bytes: on a GPU the most that was allocated there, else the largest resident set."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in kilobytes
