"""JSON lines: where each line of a file starts, and the object that a line holds."""

import json
from typing import Any, BinaryIO

import numpy as np

from tunalab.data.documents import Reject

# A line is text and paths; one of this size is a broken file (lost line ends), and reading it could fill the memory.
MAX_LINE_BYTES = 16 * 2**20
_SCAN_BYTES = 64 * 2**20
BOM = b"\xef\xbb\xbf"
_CONTENT = np.array([byte not in b" \t\n\r\v\f" for byte in range(256)])


def index_lines(file: BinaryIO) -> np.ndarray:
    """Byte offsets (int64) of the starts of all lines, and last the end of the last one.

    Blank lines are nothing: they count as the end of the line before them, and the first ones go.
    """
    starts: list[np.ndarray] = []
    offset = end = begun = 0  # `begun`: the start of the line that the bytes read so far end in
    filled = False  # whether that line has anything in it
    while chunk := file.read(_SCAN_BYTES):
        data = np.frombuffer(chunk, np.uint8)
        breaks = np.flatnonzero(data == ord("\n")) + 1
        parts = np.concatenate([[0], breaks[breaks < len(data)]])
        has = _CONTENT[data[parts]]  # most lines begin with what they hold; the others are looked at one by one
        if offset == 0 and chunk.startswith(BOM):
            has[0] = False
        for part in np.flatnonzero(~has & (data[parts] != ord("\n"))):
            stop = int(parts[part + 1]) if part + 1 < len(parts) else len(data)
            text = chunk[int(parts[part]) : stop]
            has[part] = bool((text.removeprefix(BOM) if offset + part == 0 else text).strip())
        has[0] |= filled
        of_parts = parts + offset
        of_parts[0] = begun
        closed = len(breaks)  # the part after the last break goes on in the next chunk
        starts.append(of_parts[:closed][has[:closed]])
        if has[:closed].any():
            end = offset + int(breaks[np.flatnonzero(has[:closed])[-1]])
        offset += len(data)
        ends_closed = len(parts) == closed
        begun, filled = (offset, False) if ends_closed else (int(of_parts[-1]), bool(has[-1]))
    if filled:
        starts.append(np.array([begun]))
        end = offset
    return np.ascontiguousarray(np.concatenate([*starts, [end]]), np.int64)


def check_line_size(size: int) -> None:
    """Raises Reject for a line of more than :data:`MAX_LINE_BYTES`, before it is read."""
    if size > MAX_LINE_BYTES:
        raise Reject(f"line of more than {MAX_LINE_BYTES // 2**20} MiB")


def parse_line(data: bytes) -> dict[str, Any]:
    """The object that a line holds.

    Raises:
        Reject: the line is empty, no UTF-8, no JSON or no object, or a key has two values.
    """
    data = data.strip()
    if not data:
        raise Reject("empty line")
    try:
        line = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise Reject(f"not UTF-8: byte {error.start} of the line") from error
    except (ValueError, RecursionError) as error:
        raise Reject(f"not JSON: {error}{_hint(data)}") from error
    if not isinstance(line, dict):
        raise Reject(f"a line must be an object, not {type(line).__name__}{_hint(data)}")
    return line


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON allows a key to stand twice; which of two captions is meant it does not say."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if value != found[key]:
                raise Reject(f"key {key!r} stands twice, with different values")
    return found


def _hint(data: bytes) -> str:
    """For the lines of a file that is one JSON value: a list, or objects over several lines."""
    text = data.removeprefix(BOM)
    if text.startswith((b"[", b"]", b"}")) or text.endswith((b",", b"{", b"[")):
        return " (a JSON array? Lines of JSON have an object each: `jq -c '.[]' FILE` writes them)"
    return ""
