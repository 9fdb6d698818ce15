"""What a sweep would do, printed before anything is trained."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunalab.results.columns import columns
from tunalab.sweeps.grid import Cell

ADDED_UP = ("tokens", "flops", "minutes")


def dry_run(cells: Sequence[Cell], describe: Callable[[Cell], Mapping[str, Any]], parallel: int = 1) -> str:
    """Print, and return, a table of every run: ``describe(cell)`` gives its columns (parameters, tokens, flops, minutes, ...).

    Tokens, FLOPs and minutes are added up in the last row; minutes are also divided by ``parallel``.
    """
    described = [dict(describe(cell)) for cell in cells]
    keys = list(dict.fromkeys(key for row in described for key in row))
    lines = [["run", *keys]]
    lines += [[cell.name, *(_text(row.get(key)) for key in keys)] for cell, row in zip(cells, described, strict=True)]
    sums = {key: sum(row[key] for row in described) for key in keys if key in ADDED_UP and all(key in row for row in described)}
    lines.append([f"{len(cells)} runs", *(_text(sums.get(key)) for key in keys)])
    text = columns(lines)
    if "minutes" in sums:
        text += f"\nabout {_text(sums['minutes'] / parallel)} minutes with {parallel} run(s) at a time"
    print(text)
    return text


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value >= 1e7 and isinstance(value, float):
        return f"{value:.2e}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
