"""Writing a file so that a reader, or a power cut, sees the old one or the new one and nothing in between."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to a temporary file beside ``path``, flush it to the disk, rename it over ``path``.

    Raises:
        OSError: the disk is full or not writable; ``path`` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers apart. Same folder: a rename is atomic only inside one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself lives in the folder
    finally:
        os.close(folder)
