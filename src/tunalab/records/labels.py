"""What variants and benchmarks are called and coloured, the same in every figure and table."""

from collections import Counter
from collections.abc import Iterable

from tunalab.frontends.looks import Look
from tunalab.records.record import Record

# Names of the figures that exist; analysis/figures/draw.py draws them. Here, because checking a sweep file needs no matplotlib.
FIGURE_NAMES = ("figure6", "curves", "mask_ratio", "effects")

MASK_RATIO = "objective.masking.ratio"

# For variants that state no colour.
_SPARE = ("#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#4D4D4D")


def benchmark_label(name: str) -> str:
    """``count (CountBench)``, ``count, level 3 (CountBench)``; a benchmark without a counterpart keeps its name."""
    kind, _, level = name.partition("@")
    published = _published()
    label = f"{kind}, level {level}" if level else kind
    return f"{label} ({published[kind]})" if kind in published else label


def _published() -> dict[str, str]:
    from tunalab.data.scenes.vocabulary import BENCHMARKS

    return BENCHMARKS


def last_words(keys: Iterable[str]) -> dict[str, str]:
    """The last word of each key, or the whole key where two of them end in the same word."""
    last = {key: key.rsplit(".", 1)[-1] for key in keys}
    return {key: word if list(last.values()).count(word) == 1 else key for key, word in last.items()}


def key_labels(keys: Iterable[str]) -> dict[str, str]:
    """What settings are called in figures and tables."""
    return {key: "mask ratio" if key == MASK_RATIO else word for key, word in last_words(keys).items()}


def value_label(value: object) -> str:
    """A setting's value, numbers as short as they can be without becoming another number."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return "none" if value is None else str(value)


class Legend:
    """Labels, order and colours of the variants of some records, as the records state them."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.looks: dict[str, Look] = {}
        for record in records:
            self.looks.setdefault(record.run.variant, record.look)
        self._labels = Counter(look.label for look in self.looks.values())

    def label(self, variant: str) -> str:
        """With the variant's name behind it where two variants have the same label."""
        label = self.looks[variant].label
        return label if self._labels[label] == 1 else f"{label} ({variant})"

    def ordered(self, variants: Iterable[str]) -> list[str]:
        """Each once, in the order that their front-ends state, then by name."""
        return sorted(set(variants), key=lambda name: (self.looks[name].order, name))

    def colours(self) -> dict[str, str]:
        """A colour per variant: its own, whatever else is in the picture, or one that no other has."""
        found: dict[str, str] = {}
        for name in self.ordered(self.looks):
            if (own := self.looks[name].colour) and own not in found.values():
                found[name] = own
        free = [colour for colour in _SPARE if colour not in found.values()] or list(_SPARE)
        others = [name for name in self.ordered(self.looks) if name not in found]
        return found | {name: free[index % len(free)] for index, name in enumerate(others)}


def ordered_benchmarks(names: Iterable[str]) -> list[str]:
    """Benchmarks with a published counterpart in a fixed order, then others by name, then the same at higher levels."""
    kinds = list(_published())

    def place(name: str) -> tuple[str, int, str]:
        kind, _, level = name.partition("@")
        return level, kinds.index(kind) if kind in kinds else len(kinds), name

    return sorted(set(names), key=place)
