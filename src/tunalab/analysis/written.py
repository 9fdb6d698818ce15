"""Tables as files: Markdown to read and CSV to compute with. The first line names the command that made them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tunalab.errors import UserError
from tunalab.files import write_atomically


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The first ``left`` columns to the left, the others, which hold numbers, to the right."""
    ruler = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, ruler, *rows))


def with_interval(values: Sequence[Any], form: Callable[[Any], str], bold: bool = False) -> str:
    """``value [low, high]``; the value alone where ``low`` is missing."""
    value, low, high = values
    text = f"**{form(value)}**" if bold else form(value)
    return text if low is None or pd.isna(low) else f"{text} [{form(low)}, {form(high)}]"


def percent(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.1f}"


def replace_block(file: Path, begin: str, end: str, block: str) -> bool:
    """``block`` between the lines ``begin`` and ``end`` of a file; whether that changes it.

    Raises UserError: the lines do not stand there once, in this order.
    """
    text = file.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"{file}: the lines '{begin}' and '{end}' must stand there once, in this order")
    before, after = text.partition(begin)[0], text.partition(end)[2]
    new = f"{before}{begin}\n{block}\n{end}{after}"
    if new != text:
        write_atomically(file, new)
    return new != text


def write_tables_to(folder: Path, command: str, tables: Mapping[str, str | pd.DataFrame], digits: int = 6) -> list[Path]:
    """Markdown as ``NAME.md``, frames as ``NAME.csv``, by the names of ``tables``. Returns the files."""
    for name, table in tables.items():
        if isinstance(table, str):
            text = f"<!-- made by: {command} -->\n\n{table}"
        else:
            text = f"# made by: {command}\n" + table.to_csv(index=False, float_format=f"%.{digits}g")
        write_atomically(folder / name, text)
    return [folder / name for name in tables]
