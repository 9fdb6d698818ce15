"""Files of benchmarks that the user brings: JSON objects, with the keys that are needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunalab.data.documents import Reject
from tunalab.data.lines import parse_line
from tunalab.errors import UserError
from tunalab.files import below


def read_bytes(path: Path, what: str) -> bytes:
    """Raises UserError, naming ``what`` is missing, when the file cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{what}: {path} cannot be read: {error.strerror}") from error


def read_lines(path: Path, what: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with the words that name its line.

    Raises UserError: the file cannot be read or is empty, a line is no JSON object.
    """
    objects = []
    for number, line in enumerate(read_bytes(path, what).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            objects.append((where, parse_line(line)))
        except Reject as reject:
            raise UserError(f"{where}: {reject}") from reject
    if not objects:
        raise UserError(f"{what}: {path} is empty")
    return objects


def text_of(where: str, plain: Mapping[str, Any], key: str) -> str:
    """Raises UserError: there is no such key, or it holds no text."""
    value = plain.get(key)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: no text under {key!r} (keys: {', '.join(map(str, plain)) or 'none'})")
    return value


def name_of(where: str, plain: Mapping[str, Any], key: str) -> str:
    """A text that becomes part of a file's name. Raises UserError when it would lead elsewhere."""
    return checked_name(where, text_of(where, plain, key))


def path_of(where: str, plain: Mapping[str, Any], key: str, folder: Path) -> Path:
    """The file that a text names below a folder. Raises UserError when it would lead elsewhere."""
    name = text_of(where, plain, key)
    path = below(folder, name)
    if path is None:
        raise UserError(f"{where}: {key} {name!r} leads out of {folder}: a path below that folder is needed")
    return path


def checked_name(where: str, name: str) -> str:
    if "/" in name or "\\" in name or name.startswith(".") or below(Path(), name) is None:
        raise UserError(f"{where}: {name!r} cannot be part of a file's name")
    return name
