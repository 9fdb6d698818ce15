"""What figure 6 shows, worked out once for the picture and the page: bands, crossings, names, colours.

A benchmark at a time, and no resamples are kept: of a thousand runs they are a hundred megabytes
a benchmark.

    P  evaluations of a run
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tunalab.analysis.crossing import Crossing, crossings
from tunalab.analysis.curves import Axis, Line, Places, benchmarks
from tunalab.analysis.resampling import Band, Curve, Draws, band, learning_curves
from tunalab.errors import UserError
from tunalab.records.labels import Legend, benchmark_label, ordered_benchmarks


@dataclass(frozen=True)
class Drawn:
    """A line in a panel: where and how well its runs did, by seed, and its band on each axis that has one."""

    line: Line
    n: int
    chance: float
    places: Places
    accuracy_P: dict[int, np.ndarray]
    bands: dict[str, Band | None]


@dataclass(frozen=True)
class Panel:
    """A benchmark; bands and crossings by axis."""

    benchmark: str
    drawn: list[Drawn]
    crossings: dict[str, list[Crossing]]

    @property
    def chance(self) -> float:
        return max(one.chance for one in self.drawn)


@dataclass(frozen=True)
class Panels:
    lines: list[Line]
    axes: list[Axis]
    panels: list[Panel]


def learned(shown: Sequence[Line], axes: Sequence[Axis]) -> Panels:
    """Everything figure 6 shows of some lines on the ``axes``.

    Raises:
        UserError: nothing was evaluated, or a run does not move along an axis.
    """
    names, draws = ordered_benchmarks(benchmarks(record for line in shown for record in line.records)), Draws()
    if not names:
        raise UserError("no evaluated benchmark in these records")
    return Panels(list(shown), list(axes), [_panel(learning_curves(shown, name, draws), name, axes, draws) for name in names])


def _panel(learning: Sequence[Curve], benchmark: str, axes: Sequence[Axis], draws: Draws) -> Panel:
    drawn = [
        Drawn(
            curve.line,
            curve.n,
            curve.chance,
            curve.places,
            curve.accuracy_P,
            {axis.name: band(curve, axis, draws) for axis in axes},
        )
        for curve in learning
    ]
    return Panel(benchmark, drawn, {axis.name: crossings(learning, axis, draws) for axis in axes})


@dataclass(frozen=True)
class Style:
    """How a line of a figure is named and drawn."""

    label: str
    colour: str
    dashes: Any = "-"


def styles(shown: Sequence[Line]) -> dict[Line, Style]:
    """In the variants' colours where each has one setting, else in shades along the settings."""
    legend = Legend(record for line in shown for record in line.records)
    if len(shown) == len(legend.looks):
        palette = [legend.colours()[line.variant] for line in shown]
    else:
        palette = [_shade(i / (len(shown) - 1)) for i in range(len(shown))]
    return {
        line: Style(named(legend.label(line.variant), line.setting.label), colour)
        for line, colour in zip(shown, palette, strict=True)
    }


def named(label: str, setting: str) -> str:
    return f"{label}, {setting}" if setting else label


def _shade(share: float) -> str:
    from matplotlib import colormaps  # here: tables take names from this file, and no colours
    from matplotlib.colors import to_hex

    return to_hex(colormaps["viridis"](0.1 + 0.75 * share))


INK, FAINT = "#333333", "#8A8A8A"
# Inches, set by hand: panels are all alike, and measuring every tick takes longer than drawing them.
LEFT, RIGHT, BETWEEN, ABOVE, BELOW, TITLE, XLABEL, LEGEND_ROW, CAPTION_LINE = 0.66, 0.18, 0.48, 0.1, 0.06, 0.28, 0.44, 0.26, 0.15


def grid(names: list[str], looks: Sequence[Style], xlabel: str) -> tuple[Figure, dict[str, Axes]]:
    """Small multiples with one legend above them."""
    columns = min(4, len(names)) if len(names) != 6 else 3
    rows = ceil(len(names) / columns)
    width, height = max(3.0 * columns, 6.0), 2.55 * rows + 0.9
    figure = Figure(figsize=(width, height))
    panels = {name: figure.add_subplot(rows, columns, index + 1) for index, name in enumerate(names)}
    for index, axes in enumerate(panels.values()):
        if index + columns >= len(names):  # nothing below it
            axes.set_xlabel(xlabel, color=INK, fontsize=9)
        if index % columns == 0:
            axes.set_ylabel("accuracy", color=INK, fontsize=9)
    handles = [Line2D([], [], color=look.colour, linestyle=look.dashes, linewidth=2.4, label=look.label) for look in looks]
    handles.append(Line2D([], [], color=FAINT, linewidth=1.1, linestyle=(0, (4, 3)), label="chance"))
    style: dict[str, Any] = {"frameon": False, "fontsize": 10, "labelcolor": INK, "handlelength": 1.8, "columnspacing": 1.8}
    across = min(len(handles), 3 if len(panels) < 3 else 6)
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 1 - ABOVE / 2 / height), ncols=across, **style)
    top = height - ABOVE - LEGEND_ROW * ceil(len(handles) / across) - TITLE
    bottom, right = XLABEL + BELOW, width - RIGHT
    panel_width = (right - LEFT - BETWEEN * (columns - 1)) / columns
    panel_height = (top - bottom - (TITLE + XLABEL) * (rows - 1)) / rows
    figure.subplots_adjust(
        LEFT / width, bottom / height, right / width, top / height, BETWEEN / panel_width, (TITLE + XLABEL) / panel_height
    )
    return figure, panels


def finish(axes: Axes, benchmark: str, chance: float) -> None:
    """Title, chance line, quiet frame. Each panel has its own range: benchmarks differ more than variants do."""
    axes.axhline(chance, color=FAINT, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_title(benchmark_label(benchmark), fontsize=10.5, color=INK, loc="left")
    low, high = axes.get_ylim()
    if high - low < 0.1:  # or noise would fill the panel
        low, high = (low + high) / 2 - 0.05, (low + high) / 2 + 0.05
    axes.set_ylim(max(-0.04 * (high - low), low), min(1.02, high))  # a little room for a line at 0, no tick below it
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))  # no steps of 2.5: ticks are whole percents
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")
    axes.grid(axis="y", color="#EBEBEB", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=8.5, colors=INK, color="#BBBBBB", length=3)
    axes.tick_params(which="minor", length=1.8)


def caption(figure: Figure, text: str) -> None:
    """Below the panels, for which the figure grows."""
    told = fill(text, int(14 * figure.get_figwidth()))
    height, more = figure.get_figheight(), CAPTION_LINE * (told.count("\n") + 1)
    at = figure.subplotpars
    (legend,) = figure.legends
    figure.set_figheight(height + more)
    figure.subplots_adjust(bottom=(at.bottom * height + more) / (height + more), top=(at.top * height + more) / (height + more))
    legend.set_bbox_to_anchor((0.5, 1 - ABOVE / 2 / (height + more)))
    figure.text(0.5, BELOW / (height + more), told, ha="center", va="bottom", fontsize=8, color=FAINT)
