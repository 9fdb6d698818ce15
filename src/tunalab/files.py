"""Writing a file or a folder so that a reader, or a power cut, sees the old one or the new one and nothing in between."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8) to a temporary file beside ``path``, flush it to the disk, rename it over ``path``.

    Raises:
        OSError: the disk is full or not writable; ``path`` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers apart. Same folder: a rename is atomic only inside one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)  # the rename itself lives in the folder


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """An empty folder beside ``final``; what is put into it becomes ``final`` in one rename, after everything has reached the disk.

    Raises:
        OSError: the disk is full or not writable; ``final`` is then as it was, as after any error inside.
    """
    temporary = final.parent / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed process of the same number left
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _flush(path)
        if final.exists():  # a rename replaces no folder with something in it
            shutil.rmtree(final)
        os.replace(temporary, final)
        _flush(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_folder(final: Path, fill: Callable[[Path], None]) -> None:
    """``final`` as a folder of what ``fill`` puts into an empty one, whole or not at all: as :func:`whole_folder`."""
    with whole_folder(final) as folder:
        fill(folder)


def sha256(path: Path) -> str:
    """In hexadecimal digits: zeroed or truncated weights load without any error otherwise."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
