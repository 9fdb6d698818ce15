"""What a report is made of, before it is Markdown or HTML."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tunalab.results.samples import Samples
from tunalab.results.tables.training import markdown_row


@dataclass(frozen=True)
class Picture:
    """``png``: the file's bytes; ``caption``: what to see in it, and how it is made."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """``text``: Markdown. ``samples``: by the name of a column, in the order of the columns."""

    title: str
    text: str
    pictures: Sequence[Picture] = ()
    samples: dict[str, Samples] = field(default_factory=dict)
    folded: bool = False  # in HTML: shown when asked for

    @property
    def anchor(self) -> str:
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.title.lower()).split())


@dataclass(frozen=True)
class Report:
    """``level`` of the verdict: broken | asked | doubt | equal."""

    title: str
    command: str
    level: str
    verdict: str
    sections: Sequence[Section]


def demoted(text: str) -> str:
    """Markdown whose headings of the second level are of the third: to stand inside a section."""
    return re.sub(r"^## ", "### ", text, flags=re.MULTILINE)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table: the first ``left`` columns to the left, the others, which hold numbers, to the right."""
    ruler = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(markdown_row([cell.replace("|", "\\|") for cell in row]) for row in (head, ruler, *rows))
