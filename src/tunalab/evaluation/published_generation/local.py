"""Models that score, from this machine alone."""

from pathlib import Path
from typing import Any

from tunalab.data.pretrained import Source
from tunalab.errors import UserError


def local_source(folder: Path, what: str) -> Source:
    """A folder of transformers' form. Raises UserError when it is none."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{what} {folder}: no such folder of a transformers model (config.json is missing)")
    return Source(str(folder), "", f"{what} {folder}")


def stamps(path: Path) -> list[Any]:
    """What changes when the files of a model do: names, sizes and times of the files right in a folder, or of a file."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
