"""How the lines of a figure are named and coloured, on paper and on the page alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunalab.results.analysis.lines import Line
from tunalab.results.labels import colours, variant_label


@dataclass(frozen=True)
class Style:
    """How a line of a figure is named and drawn."""

    label: str
    colour: str
    dashes: Any = "-"


def styles(shown: Sequence[Line]) -> dict[Line, Style]:
    """In the variants' colours where each has one setting, else in shades along the settings."""
    variants = {line.variant for line in shown}
    if len(shown) == len(variants):
        palette = [colours(variants)[line.variant] for line in shown]
    else:
        palette = [_shade(i / (len(shown) - 1)) for i in range(len(shown))]
    return {line: Style(named(line.variant, line.setting.label), colour) for line, colour in zip(shown, palette, strict=True)}


def named(variant: str, setting: str) -> str:
    return f"{variant_label(variant)}, {setting}" if setting else variant_label(variant)


def _shade(share: float) -> str:
    from matplotlib import colormaps  # here: tables take names from this file, and no colours
    from matplotlib.colors import to_hex

    return to_hex(colormaps["viridis"](0.1 + 0.75 * share))
