"""The exception whose message is meant for the person at the keyboard, what a machine refused in one line, and the end of what can
go on: signals, exit code.
"""

import errno
import os
import re
import signal
from pathlib import Path
from unicodedata import category

from tunalab.redaction import redacted

EXIT_STOPPED = 75  # EX_TEMPFAIL: a run, or a sweep, was stopped, has saved, and goes on when it is started again


class UserError(Exception):
    """A mistake of the user: the command line prints its single line and exits with code 2, without a traceback.

    The message names the thing that is wrong and, where there are any, the choices. It is free of credentials, whatever it quotes.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(shown(redacted(message)))


def shown(text: str) -> str:
    """A line that quotes names: control characters in them by their numbers, as some end the line and some steer a terminal."""
    return "".join(ascii(letter)[1:-1] if category(letter) == "Cc" else letter for letter in text)


def first_line(error: BaseException) -> str:
    """Of the message of a parser, say, whose other lines show the place; the kind of error where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: BaseException, longest: int = 300) -> str:
    """All of a message whose lines each say something, cut at ``longest`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[:longest]}..."


def stop_signals_heeded() -> tuple[signal.Signals, ...]:
    """Ctrl-C, SIGTERM, and SIGHUP of a terminal that closes, unless whoever started this process had it ignored (nohup)."""
    hung_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hung_up)


# What somebody can mend without reading code -> how.
_REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "not permitted for this user: choose another place, or change its permissions"),
    errno.EROFS: "choose a place that can be written",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or choose another place; what was saved before is whole"),
    errno.EFBIG: "files there may not be this large (ulimit -f, or the file system): choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "the link leads back to itself: remove it, or choose another place",
    errno.EISDIR: "a folder is in the way of a file: remove it, or choose another name",
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file is in the way of a folder: remove it, or choose another place"),
    errno.ENOTEMPTY: "another process writes there: choose another place",
    errno.ENOENT: "check the path",
    **dict.fromkeys((errno.EBUSY, errno.ETXTBSY), "another process uses it: try again, or choose another place"),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE), "the disk or its server does not answer as it should: try again, or choose another place"
    ),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit (ulimit -n)"),
    errno.ENOMEM: "free some memory",
}
_OF_RUST = re.compile(r"\(os error (\d+)\)")  # safetensors and tokenizers give the system's error as text alone


def refused_by_system(error: BaseException) -> str | None:
    """One line on an error of files that somebody can mend: the path, the reason, what to do; None for any other error."""
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError) and "Symlink loop" in str(error):
        error = error.__context__  # pathlib's word for ELOOP until Python 3.13
    number, name = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    if number is None and (found := _OF_RUST.search(str(error))):
        number = int(found[1])
    if number not in _REMEDIES:
        return None
    reason = os.strerror(number) if name is not None or not isinstance(error, OSError) else (error.strerror or os.strerror(number))
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not isinstance(name, str | os.PathLike):  # a descriptor, or none: of a write, say
        return f"{reason} ({_REMEDIES[number]})"
    return f"{os.fspath(name)}: {reason} ({_of_place(Path(name), number) or _REMEDIES[number]})"


def _of_place(path: Path, number: int) -> str | None:
    """What stands there, where that is more helpful."""
    if number not in (errno.ENOENT, errno.EEXIST, errno.ENOTDIR):
        return None
    for place in (path, *path.parents):
        if os.path.islink(place) and not os.path.exists(place):
            return f"{place} is a link to {os.readlink(place)}, which is missing: remove it, or make what it leads to"
        if os.path.isfile(place) and (place != path or number == errno.EEXIST):
            return f"the file {place} is in the way of a folder: remove it, or choose another place"
    return None
