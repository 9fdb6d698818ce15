"""Models that score, from this machine alone."""

from pathlib import Path
from typing import Any

from tunalab.data.pretrained import Source, reading
from tunalab.errors import UserError
from tunalab.files import listed


def described(folder: Path, what: str, processor: Any) -> tuple[Source, Any, Any]:
    """A folder of transformers' form as a source of weights, its configuration, and what ``processor``, a class, reads from it.

    Raises UserError: it is no such folder, or cannot be read.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UserError(f"{what} {folder}: no such folder of a transformers model (config.json is missing)")
    source = Source(str(folder), "", f"{what} {folder}")
    with reading(source):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return source, config, processor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def stamps(path: Path) -> list[Any]:
    """What changes when the files of a model do: names, sizes and times of the files right in a folder, or of a file."""
    files = listed(path) if path.is_dir() else [path]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
