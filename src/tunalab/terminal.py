"""How far work is: a bar on a terminal, elsewhere a line now and then."""

import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm


LINE_SECONDS = 30.0
LEAST_COLUMNS, LEAST_LINES = 40, 5


def redraws(stream: TextIO) -> bool:
    """Whether a bar or a table can be drawn again in its own place: on a terminal that is large enough and says so.

    A pipe, a file, TERM=dumb, and terminals of unknown size (0 x 0: serial lines, some containers) get lines instead.
    """
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        size = os.get_terminal_size(stream.fileno())
    except OSError:
        return False
    return size.columns >= LEAST_COLUMNS and size.lines >= LEAST_LINES


def progress_bar(items: Iterable[Any] | None = None, quiet: bool = False, **how: Any) -> "tqdm[Any]":
    """``items`` with a bar on stderr that goes when they end, or a line every half minute; ``how`` as for tqdm."""
    from tqdm import tqdm

    if quiet or redraws(sys.stderr):
        return tqdm(items, **{"leave": False, "dynamic_ncols": True, "disable": quiet, **how})

    class Lines(tqdm):  # type: ignore[type-arg]
        """Whole lines, however narrow the terminal, none before the first half minute."""

        printed = time.monotonic()

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if time.monotonic() - self.printed >= LINE_SECONDS:
                self.printed = time.monotonic()
                self.fp.write(f"{self.format_meter(**{**self.format_dict, 'ncols': None})}\n")
                self.fp.flush()

        def clear(self, *_: Any, **__: Any) -> None:
            pass  # a line stays

    # miniters: or tqdm asks its clock too rarely when steps were fast at first.
    return Lines(
        items,
        **{
            **how,
            "leave": False,
            "delay": 0,
            "position": 0,
            "mininterval": min(1.0, LINE_SECONDS),
            "miniters": 1,
            "file": sys.stderr,
        },
    )


def wrapped(text: str, columns: int) -> list[str]:
    """The lines of a text as a terminal of this width shows them."""
    width = max(1, columns)
    return [line[start : start + width] for line in text.splitlines() for start in range(0, max(1, len(line)), width)]


def share(done: float, total: float) -> str:
    """In whole percent, 100% only when all is done."""
    return f"{min(100, int(100 * done / total))}%" if total else ""


def duration(seconds: float) -> str:
    """In the unit that leaves a number from 1 on, to three digits: 45 s, 1.5 h, 1,204 d."""
    size, unit = next(((size, unit) for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")) if seconds >= size), (1, "s"))
    return f"{seconds / size:,.0f} {unit}" if seconds >= 100 * size else f"{seconds / size:.3g} {unit}"


def amount(tokens: float) -> str:
    """123,456 or 45.6M."""
    return f"{tokens:,.0f}" if tokens < 1e6 else f"{tokens / 1e6:,.1f}M"


# Text in columns, for what commands print.


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows under each other: the first ``left`` columns to the left, the others, which hold numbers, to the right."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if n < left else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
