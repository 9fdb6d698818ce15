"""Figure 6: accuracy against what a run consumes, as a picture and as a page that opens from disk.

What both show (bands, crossings, names, colours) is worked out once, a benchmark at a time, and no
answers by question are kept: of a thousand runs they are megabytes per benchmark. The page loads
nothing from the network; templates/figure6.html.j2 is its text, "DATA" the place of the numbers.

    P  evaluations of a run    G  places of a common grid
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from math import ceil, isinf, log10
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from tunalab.analysis.crossing import Crossing, crossings, passing
from tunalab.analysis.curves import DURATIONS, Axis, Line, benchmarks, names_of
from tunalab.analysis.learning import Band, Curve, band, covers, learning_curves
from tunalab.errors import UserError
from tunalab.records.labels import Legend, benchmark_label, ordered_benchmarks


@dataclass(frozen=True)
class Drawn:
    """A curve in a panel and its band on each axis that has one."""

    curve: Curve
    bands: dict[str, Band | None]


@dataclass(frozen=True)
class Panel:
    """A benchmark; bands and crossings by axis."""

    benchmark: str
    drawn: list[Drawn]
    crossings: dict[str, list[Crossing]]

    @property
    def chance(self) -> float:
        return max(one.curve.chance for one in self.drawn)


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
    names = ordered_benchmarks(benchmarks(record for line in shown for record in line.records))
    if not names:
        raise UserError("no evaluated benchmark in these records")
    panels = []
    for name in names:
        curves = learning_curves(shown, name)
        bands = [{axis.name: band(curve, axis) for axis in axes} for curve in curves]
        crossed = {axis.name: crossings(curves, axis) for axis in axes}
        bare = (replace(curve) for curve in curves)
        panels.append(Panel(name, [Drawn(curve, of) for curve, of in zip(bare, bands, strict=True)], crossed))
    return Panels(list(shown), list(axes), panels)


# So that one line shows through another on which it lies.
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass(frozen=True)
class Style:
    """How a line of a figure is named and drawn."""

    label: str
    colour: str
    dashes: Any = "-"


def styles(shown: Sequence[Line]) -> dict[Line, Style]:
    """In the variants' colours where each has one setting, else in shades along the settings."""
    legend, names = Legend(record for line in shown for record in line.records), names_of(shown)
    if len(shown) == len(legend.looks):
        palette = [legend.colours()[line.variant] for line in shown]
    else:
        palette = [_shade(i / (len(shown) - 1)) for i in range(len(shown))]
    looks = zip(shown, palette, cycle(DASHES), strict=False)  # the last has no end
    return {line: Style(names[line], colour, dashes) for line, colour, dashes in looks}


def _shade(share: float) -> str:
    from matplotlib import colormaps  # here: tables take names from this file, and no colours
    from matplotlib.colors import to_hex

    return to_hex(colormaps["viridis"](0.1 + 0.75 * share))


UNSHADED = 2  # seeds: Student's t of one degree of freedom would shade whole panels; the dots show both

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
    handles = [Line2D([], [], color=look.colour, linestyle=look.dashes, linewidth=2.0, label=look.label) for look in looks]
    handles.append(Line2D([], [], color=FAINT, linewidth=1.1, linestyle=(0, (4, 3)), label="chance"))
    style: dict[str, Any] = {"frameon": False, "fontsize": 10, "labelcolor": INK, "handlelength": 3.2, "columnspacing": 1.8}
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
    lines = fill(text, int(14 * figure.get_figwidth()))
    height, more = figure.get_figheight(), CAPTION_LINE * (lines.count("\n") + 1)
    at = figure.subplotpars
    (legend,) = figure.legends
    figure.set_figheight(height + more)
    figure.subplots_adjust(bottom=(at.bottom * height + more) / (height + more), top=(at.top * height + more) / (height + more))
    legend.set_bbox_to_anchor((0.5, 1 - ABOVE / 2 / (height + more)))
    figure.text(0.5, BELOW / (height + more), lines, ha="center", va="bottom", fontsize=8, color=FAINT)


def figure6(found: Panels, axis: Axis) -> Figure:
    """Accuracy against tokens or another axis: a panel for each benchmark, a line for each variant (of one: for each setting)."""
    looks = styles(found.lines)
    of_panel = {panel.benchmark: panel for panel in found.panels}
    figure, panels = grid(list(of_panel), list(looks.values()), axis.label)
    numbers, passed = set(), False
    for name, axes in panels.items():
        panel = of_panel[name]
        for one in panel.drawn:
            _draw_curve(axes, one, axis, looks[one.curve.line])
            numbers.add(len(one.curve.accuracy_P))
        finish(axes, name, panel.chance)
        axes.set_xscale("log")
        places = np.concatenate([x_P for one in panel.drawn for x_P in one.curve.places.on(axis).values()])
        axes.xaxis.set_major_locator(_locator(axis, places.min(), places.max()))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: axis.text(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        for crossing in panel.crossings[axis.name]:
            if crossing.clear and crossing.at is not None:
                _draw_crossing(axes, crossing, crossing.at, looks)
                passed = True
    mark = (
        " Diamond: its colour passes its edge's for good, bar: where no lead is certain; only where both leads are."
        if passed
        else ""
    )
    shade = (
        f"Line: mean over seeds. Shade: 95% interval ({covers(numbers - {UNSHADED})}). "
        if numbers - {UNSHADED}
        else "Line: mean over seeds. "
    )
    shade = shade.replace("mean over seeds", "a single run") if numbers == {1} else shade + "Dots: single seeds."
    shade += " Of two seeds the interval says too little to be drawn." if UNSHADED in numbers else ""
    caption(figure, " ".join(part for part in (shade + mark, axis.note) if part))
    return figure


def _draw_curve(axes: Axes, one: Drawn, axis: Axis, look: Style) -> None:
    found = one.bands[axis.name]
    if found is not None:
        if len(one.curve.scores) != UNSHADED:
            axes.fill_between(found.x_G, found.low_G, found.high_G, color=look.colour, alpha=0.16, linewidth=0)
        mark = "o" if len(found.x_G) == 1 else ""  # a line of one point would not be seen
        axes.plot(found.x_G, found.mean_G, marker=mark, linestyle=look.dashes, color=look.colour, linewidth=1.8, label=look.label)
    dot: dict[str, Any] = {"color": look.colour, "markersize": 4, "alpha": 0.7, "markeredgewidth": 0}
    dots = [(x_P, one.curve.accuracy_P[seed]) for seed, x_P in one.curve.places.on(axis).items()]
    axes.plot(*(np.concatenate(values) for values in zip(*dots, strict=True)), ".", **dot)


def _draw_crossing(axes: Axes, found: Crossing, at: float, looks: dict[Line, Style]) -> None:
    """At the bottom of the panel: where, and the interval; arrowheads where it is open."""
    leader, other = looks[found.leader], looks[found.other]
    bottom: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "color": leader.colour, "zorder": 4}
    ends = max(found.low, found.first), min(found.high, found.last)
    axes.plot(ends, [0.03, 0.03], linewidth=1.4, alpha=0.8, **bottom)
    for end, arrow, is_open in zip(ends, "<>", (isinf(found.low), isinf(found.high)), strict=True):
        if is_open:
            axes.plot([end], [0.03], arrow, markersize=4, markeredgewidth=0, **bottom)
    axes.plot([at], [0.03], "D", mec=other.colour, mew=1.4, ms=6, **bottom | {"zorder": 5})


def _locator(axis: Axis, low: float, high: float) -> Locator:
    """Few decades need more ticks within each. Time has units of its own."""
    if axis.name == "wall_clock":
        inside = [value for value in DURATIONS if low * 0.95 <= value <= high * 1.05]
        return FixedLocator(inside[:: ceil(len(inside) / 4) or 1])
    decades = log10(high / low)
    return LogLocator(subs=(1, 2, 5) if decades < 1.3 else (1, 3) if decades < 2.5 else (1,), numticks=12)


_DOTS = 20  # seeds of a line: more dots hide the band they scatter about, and are most of the page


def page(found: Panels, command: str) -> str:
    """The page as text."""
    text = json.dumps(figure_data(found, command), separators=(",", ":"), allow_nan=False)
    template = Path(__file__).with_name("templates") / "figure6.html.j2"
    # A name with "</script>" in it would end the script, one with "<!--<script>" would keep it from ending.
    return template.read_text(encoding="utf-8").replace('"DATA"', text.replace("<", "\\u003c"))


def figure_data(found: Panels, command: str) -> dict[str, Any]:
    """Everything the page shows, as plain values."""
    looks, index = styles(found.lines), {line: number for number, line in enumerate(found.lines)}
    return {
        "command": command,
        "unshaded": UNSHADED,
        "covers": covers({len(line.records) for line in found.lines}),
        "lines": [{"label": looks[line].label, "colour": looks[line].colour} for line in found.lines],
        "axes": [{"name": axis.name, "label": axis.label, "note": axis.note} for axis in found.axes],
        "panels": [_panel(panel, found.axes, index) for panel in found.panels],
    }


def _panel(panel: Panel, axes: Sequence[Axis], index: dict[Line, int]) -> dict[str, Any]:
    curves = [one.curve for one in panel.drawn]
    dots = [list(curve.accuracy_P) if len(curve.accuracy_P) <= _DOTS else [] for curve in curves]
    on = {}
    for axis in axes:
        bands = [(index[one.curve.line], of) for one in panel.drawn if (of := one.bands[axis.name]) is not None]
        on[axis.name] = {
            "bands": [
                {"line": line, "x": _places(of.x_G), "y": _shares(of.mean_G), "low": _shares(of.low_G), "high": _shares(of.high_G)}
                for line, of in bands
            ],
            "places": [_places(curve.places.on(axis)[seed]) for curve, seeds in zip(curves, dots, strict=True) for seed in seeds],
            "crossings": [_crossing(one, axis, index) for one in panel.crossings[axis.name]],
        }
    seeds = [
        {
            "line": index[curve.line],
            "n": curve.n,
            "count": len(curve.accuracy_P),
            "runs": [{"seed": seed, "y": _shares(curve.accuracy_P[seed])} for seed in shown],
        }
        for curve, shown in zip(curves, dots, strict=True)
    ]
    n, label = max(curve.n for curve in curves), benchmark_label(panel.benchmark)
    return {"name": panel.benchmark, "label": label, "chance": round(panel.chance, 4), "n": n, "seeds": seeds, "axes": on}


def _crossing(found: Crossing, axis: Axis, index: dict[Line, int]) -> dict[str, Any]:
    ends = {"at": found.at, "low": found.low, "high": found.high, "first": found.first, "last": found.last}
    return {
        "leader": index[found.leader],
        "other": index[found.other],
        **{name: None if end is None or isinf(end) else float(f"{end:.4g}") for name, end in ends.items()},
        "text": passing(found, axis),
        "lead": [None if bound is None else round(bound, 4) for bound in found.end.bounds],
        "level": found.level,
        "changes": found.changes,
        "clear": found.clear,
    }


def _places(x_G: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in x_G.tolist()]


def _shares(value_G: np.ndarray) -> list[float]:
    return [round(value, 4) for value in value_G.tolist()]
