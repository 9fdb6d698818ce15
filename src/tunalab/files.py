"""Writing a file or a folder so that a reader, or a power cut, sees the old one or the new one and nothing in between.

What is written has the mode that the umask says, whatever a library made of it: safetensors leaves files for their owner alone.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_native_id
from typing import IO, Any, Literal

DATA_FILE = "data.json"  # of a run directory: what its sources held (data/changes.py)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8) to a temporary file beside ``path``, flush it to the disk, rename it over ``path``.

    Raises:
        OSError: the disk is full or not writable; ``path`` is then as it was.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """An empty file beside ``final``; what is written to its path becomes ``final`` in one rename, after it has reached the disk.

    Raises:
        OSError: the disk is full or not writable; ``final`` is then as it was, as after any error inside.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    # The id keeps two writers apart, threads of one process too. Same folder: a rename is atomic only inside one file system.
    temporary = final.with_name(f".{final.name}.{get_native_id()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # what a killed one of the same number left
        temporary.touch()
        mode = temporary.stat().st_mode & 0o666  # that of any new file here
        yield temporary
        _set_mode(temporary, mode)
        _flush(temporary)
        os.replace(temporary, final)
    except OSError as error:
        # Writing names no file, and the rename names ours: nobody knows the temporary one.
        if error.errno is not None and (error.filename is None or error.filename2 is not None):
            raise OSError(error.errno, error.strerror, str(final)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _flush(final.parent)  # the rename itself lives in the folder


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """An empty folder beside ``final``; what is put into it becomes ``final`` in one rename, after everything has reached the disk.

    Raises:
        OSError: the disk is full or not writable; ``final`` is then as it was, as after any error inside.
    """
    temporary = final.parent / f".{final.name}.{get_native_id()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed one of the same number left
    temporary.mkdir(parents=True)
    aside = final.parent / f".{final.name}.{get_native_id()}.old"
    mode = temporary.stat().st_mode & 0o666  # a folder made just now has the mode of any new file
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            if path.is_file():
                _set_mode(path, mode)
            _flush(path)
        if os.path.lexists(final):  # a rename replaces no folder with something in it, and a file in use may not go at once
            os.rename(final, aside)
        os.replace(temporary, final)
        _flush(final.parent)
    finally:
        for left in (temporary, aside):
            with suppress(OSError):
                remove(left)


def remove(path: Path) -> None:
    """A folder with all that is in it, a file, or a link, whatever it leads to. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_folder(final: Path, fill: Callable[[Path], None]) -> None:
    """``final`` as a folder of what ``fill`` puts into an empty one, whole or not at all: as :func:`whole_folder`."""
    with whole_folder(final) as folder:
        fill(folder)


def below(folder: Path, name: str, links: bool = False) -> Path | None:
    """The file that a foreign text (a manifest, an index, a record) names in a folder; None where that would lead out of it:
    absolute, by ``..``, by a drive of Windows, by a link, or as no name at all.

    Links of the Hugging Face cache lead from ``snapshots/`` to files beside it, and are followed. ``links``: so are all, in a
    folder that is the user's own.
    """
    if not name or "\0" in name or name[0] in "/\\" or ".." in re.split(r"[/\\]", name) or re.match("[A-Za-z]:", name):
        return None
    if links:
        return folder / name
    try:
        real, path = folder.resolve(), (folder / name).resolve()
    except (OSError, RuntimeError):  # a name too long, links in a circle
        return None
    root = next((above.parent for above in (real, *real.parents) if above.name == "snapshots"), real)
    return folder / name if path.is_relative_to(root) else None


def sha256(path: Path) -> str:
    """In hexadecimal digits: zeroed or truncated weights load without any error otherwise."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _set_mode(path: Path, mode: int) -> None:
    if path.stat().st_mode & 0o777 != mode:
        path.chmod(mode)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def listed(folder: Path, pattern: str = "*") -> list[Path]:
    """What matches a glob pattern in a folder, sorted, without what systems leave beside people's files.

    macOS puts a ``._NAME`` beside every NAME on disks of other systems and into archives: it ends alike and is none of its kind.
    """
    return sorted(path for path in folder.glob(pattern) if not is_clutter(path.name))


def is_clutter(name: str) -> bool:
    return name.startswith("._") or name in (".DS_Store", "Thumbs.db", "desktop.ini")


# Files of one JSON value per line, which several processes append to and any of them may be killed while it does.


def json_line(plain: Any) -> str:
    return json.dumps(plain, allow_nan=False) + "\n"


def append_line(path: Path, plain: Any, flush: bool = False) -> None:
    """Append one JSON line in one write: it lands whole behind all others, and a torn one before it stays a line of its own.

    ``flush``: until it is on the disk. Raises OSError: the disk is full (the line is then torn) or not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json_line(plain).encode()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if flush:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def appended_lines(path: Path, torn: Literal["drop", "cut", "keep"] = "drop") -> list[str]:
    """The lines of a file, none where there is no file.

    ``torn``: a last line without its end, as a killed process leaves it, is dropped, also cut off the file, or kept.
    Raises OSError.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = data.rfind(b"\n") + 1
    if torn == "cut" and whole < len(data):
        os.truncate(path, whole)
    kept = data if torn == "keep" else data[:whole]
    return kept.decode(errors="replace").split("\n")[: None if kept[whole:] else -1]


# Locks of the kernel: they end with their holders, also when these are killed.


def lock(file: int | IO[Any], wait: bool = True, shared: bool = False) -> bool:
    """Lock an open file until it is closed; without ``wait`` False where another process holds it."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time is inside; the others wait. ``path``: a file, made where it is missing, which nobody replaces.

    No folder: on a network file system the lock of one holds on its own machine alone.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)
