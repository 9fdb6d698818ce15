"""What the harness's own measuring instruments are worth, as tables: `tunalab verify` writes results/verification/.

A check is a module of this folder, registered in ``CHECKS`` by the name of its table. Its ``tables()`` measures with
fixed seeds, from nothing but the package and what is committed, and returns the tables of one page. That of chance also writes
the package's file of chances.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tunalab.errors import UserError
from tunalab.files import write_atomically

# Page -> module with ``tables() -> list[Table]``.
CHECKS: dict[str, str] = {
    "parser": "tunalab.verification.parser",
    "chance": "tunalab.verification.chance",
    "scorers": "tunalab.verification.scorers",
    "sampling": "tunalab.verification.sampling",
    "encoders": "tunalab.verification.encoders",
    "components": "tunalab.verification.components",
    "coverage": "tunalab.verification.coverage",
}


@dataclass(frozen=True)
class Table:
    """``rows`` of texts under ``columns``; ``about``: what was measured, on how much, and how to read it."""

    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def verify(names: Sequence[str], folder: Path) -> list[Path]:
    """Run the named checks (all when none is named) and write a page each. Returns the files written.

    Raises UserError: a name that is not in ``CHECKS``.
    """
    for name in names:
        if name not in CHECKS:
            raise UserError(f"check {name} is unknown (choices: {', '.join(CHECKS)})")
    written = []
    for name in names or CHECKS:
        tables: list[Table] = import_module(CHECKS[name]).tables()
        path = folder / f"{name}.md"
        write_atomically(path, f"<!-- made by: tunalab verify {name} -->\n\n" + "\n".join(map(markdown, tables)))
        written.append(path)
    return written


def markdown(table: Table) -> str:
    from tunalab.analysis.written import markdown_table

    return f"## {table.title}\n\n{table.about}\n\n{markdown_table(table.columns, table.rows, left=len(table.columns))}\n"
