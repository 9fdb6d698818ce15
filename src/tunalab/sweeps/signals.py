"""Stop signals as a list that a loop looks at: drivers and jobs finish what they are doing before they act on one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tunalab.errors import stop_signals_heeded


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that fills with the stop signals received; handlers only take note, the loop acts.

    Outside the main thread Python allows no handlers: signals then keep their usual meaning.
    """
    received: list[int] = []
    before = {}
    try:
        for number in stop_signals_heeded():
            before[number] = signal.signal(number, lambda which, _: received.append(which))
    except ValueError:
        pass
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
