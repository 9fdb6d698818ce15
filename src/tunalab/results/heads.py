"""The head of a record: which run it is and whether it finished, without reading the rest (a thousand in a blink)."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tunalab.results.records import SCHEMA

_HEAD, _TAIL = 4096, 16  # bytes; `run` stands first in a record, and is short


@dataclass(frozen=True)
class Head:
    config_hash: str
    finished: bool


def read_head(path: Path) -> Head | None:
    """None where there is no record, or none whose head and end are as ``write_record`` leaves them: the whole must then tell."""
    try:
        with path.open("rb") as stream:
            start = stream.read(_HEAD).decode("utf-8", errors="replace")
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
            whole = stream.read().rstrip().endswith(b"}")
    except OSError:
        return None
    begin = f'{{\n "schema": {SCHEMA},\n "run": '
    if not start.startswith(begin) or not whole:
        return None
    try:
        run = json.JSONDecoder().raw_decode(start, len(begin))[0]
        return Head(run["config_hash"], run["finished"])
    except (ValueError, KeyError, TypeError):
        return None
