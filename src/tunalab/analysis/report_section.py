"""What a report consists of, before it is Markdown or HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tunalab.records.samples import Samples


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
    folded: bool = False  # in HTML: shown on a click

    @property
    def anchor(self) -> str:
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.title.lower()).split())


@dataclass(frozen=True)
class Report:
    """``level`` of the verdict: broken | varied | doubt | equal."""

    title: str
    command: str
    level: str
    verdict: str
    sections: Sequence[Section]
