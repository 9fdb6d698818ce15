"""JSON lines: where each line of a file starts, and the object that a line holds."""

import json
from typing import Any, BinaryIO

import numpy as np

from tunalab.data.documents import Reject

# A line is text and paths; one of this size is a broken file (lost line ends), and reading it could fill the memory.
MAX_LINE_BYTES = 16 * 2**20
_SCAN_BYTES = 64 * 2**20


def index_lines(file: BinaryIO) -> np.ndarray:
    """Byte offsets (int64) of the starts of all lines, and last the end of the last one. Trailing empty lines go."""
    breaks = []
    offset = 0
    while chunk := file.read(_SCAN_BYTES):
        breaks.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + (offset + 1))
        offset += len(chunk)
    starts = np.concatenate([np.zeros(1, np.int64), *breaks, np.full(1, offset, np.int64)])
    # A file that ends in a line break has no line after it; an empty one has no lines at all.
    count = len(starts) - 1
    while count and _is_blank(file, int(starts[count - 1]), int(starts[count])):
        count -= 1
    return np.ascontiguousarray(starts[: count + 1], np.int64)


def check_line_size(size: int) -> None:
    """Raises Reject for a line of more than :data:`MAX_LINE_BYTES`, before it is read."""
    if size > MAX_LINE_BYTES:
        raise Reject(f"line of more than {MAX_LINE_BYTES // 2**20} MiB")


def parse_line(data: bytes) -> dict[str, Any]:
    """The object that a line holds.

    Raises:
        Reject: the line is empty, no UTF-8, no JSON or no object.
    """
    if not data.strip():
        raise Reject("empty line")
    try:
        line = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Reject(f"not UTF-8: byte {error.start} of the line") from error
    except (ValueError, RecursionError) as error:
        raise Reject(f"not JSON: {error}") from error
    if not isinstance(line, dict):
        raise Reject(f"a line must be an object, not {type(line).__name__}")
    return line


def _is_blank(file: BinaryIO, start: int, end: int) -> bool:
    file.seek(start)
    return end - start <= MAX_LINE_BYTES and not file.read(end - start).strip()
