"""Output that nobody reads any more ends nothing: a closed terminal (EIO), or a pipe into something that has ended (EPIPE)."""

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, TextIO, cast

from tunalab.redaction import redacted


class Unread:
    """A text stream that is thrown away from the moment that its terminal or pipe has no reader. Other errors are errors.

    ``clean``: what becomes of each text on its way.
    """

    def __init__(self, stream: TextIO, clean: Callable[[str], str] = str) -> None:
        self._stream, self._clean = stream, clean

    def write(self, text: str) -> int:
        try:
            self._stream.write(self._clean(text))
            return len(text)
        except OSError as error:
            self._throw_away(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._throw_away(error)

    def _throw_away(self, error: OSError) -> None:
        number = self._stream.fileno()
        unread = error.errno == errno.EPIPE or (error.errno == errno.EIO and not stat.S_ISREG(os.fstat(number).st_mode))
        if not unread:
            raise error
        self.throw_away()

    def throw_away(self) -> None:
        """From here on, below everything that writes there: C libraries and Python's own last flush included."""
        number = self._stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def nobody_need_read() -> Iterator[None]:
    """Inside, standard output and error are :class:`Unread`; where the caller closed one, what is printed goes nowhere.

    Warnings and errors, also those of libraries, pass without credentials; what a command was asked for passes as it is.
    """
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = cast(TextIO, Unread(before[0] or nowhere))
        sys.stderr = cast(TextIO, Unread(before[1] or nowhere, redacted))
        try:
            yield
        finally:
            written = cast(Unread, sys.stdout), cast(Unread, sys.stderr)
            sys.stdout, sys.stderr = before
            _end(written[1], suppress(OSError))
            _end(written[0], nullcontext())


def _end(stream: Unread, errors: AbstractContextManager[None]) -> None:
    """What it still holds is written here, where a reader who went away is no error. What cannot be is tried no second time."""
    with errors:
        try:
            stream.flush()
        except OSError:
            stream.throw_away()
            raise
