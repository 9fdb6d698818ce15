"""Jobs of one evaluation in several processes, each with its share of the threads.

What a part does is a mixture of small products, which more threads hardly speed up, and of drawing, rendering and parsing, which
have one thread: two cores are used by two parts at a time, not by one.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from tunalab.errors import UserError

T = TypeVar("T")

bar: int | None = None  # the line of this process's progress bars; None: it is alone


@contextmanager
def side_by_side(do: Callable[..., T], jobs: Sequence[tuple[Any, ...]], processes: int) -> Iterator[list[Callable[[], T]]]:
    """Calls that return, or raise, what ``do(*job)`` does, in the order of the jobs; inside the context all of them are worked on.

    One process is this one, which does a job when its result is asked for. Of several each works on one job at a time, in the order
    of the jobs. They end with the context and with this process, in the midst of a job where need be.

    A result raises UserError where a process died, of memory most likely.
    """
    if processes == 1:
        yield [partial(do, *job) for job in jobs]
        return
    spawn = multiprocessing.get_context("spawn")
    places, lock = spawn.Value("i", 0), spawn.RLock()
    pool = ProcessPoolExecutor(processes, spawn, _begin, (_threads() // processes, places, lock))
    try:
        yield [partial(_result, pool.submit(do, *job), processes) for job in jobs]
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def default_processes() -> int:
    """Two on a CPU of more than one core: each holds a copy of the model. On a GPU one: it is what computes."""
    import torch

    return 1 if torch.cuda.is_available() else min(2, _threads())


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _begin(threads: int, places: Any, lock: Any) -> None:
    """In a new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch
    from tqdm import tqdm

    global bar
    torch.set_num_threads(max(1, threads))
    with places.get_lock():
        bar = places.value
        places.value += 1
    tqdm.set_lock(lock)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _result(future: "Future[T]", processes: int) -> T:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError(
            f"one of {processes} processes died (out of memory?): what is measured is kept; go on with --processes 1"
        ) from error
