"""Figure 6: accuracy against what a run consumes."""

from math import ceil, inf, log10
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, NullFormatter

from tunalab.results.analysis.axes import DURATIONS, Axis
from tunalab.results.analysis.crossing import Crossing
from tunalab.results.analysis.lines import Line
from tunalab.results.analysis.panels import Drawn, Panels
from tunalab.results.analysis.resampling import covers
from tunalab.results.figures.panel import caption, finish, grid
from tunalab.results.figures.styles import Style, styles


def figure6(found: Panels, axis: Axis) -> Figure:
    """Accuracy against tokens consumed or another axis, a panel a benchmark, a line a variant (or, of one variant, a setting)."""
    looks = styles(found.lines)
    of_panel = {panel.benchmark: panel for panel in found.panels}
    figure, panels = grid(list(of_panel), list(looks.values()), axis.label)
    numbers, passed = set(), False
    for name, axes in panels.items():
        panel = of_panel[name]
        for one in panel.drawn:
            _draw_curve(axes, one, axis, looks[one.line])
            numbers.add(len(one.accuracy_P))
        finish(axes, name, panel.chance)
        axes.set_xscale("log")
        places = np.concatenate([x_P for one in panel.drawn for x_P in one.places.on(axis).values()])
        axes.xaxis.set_major_locator(_locator(axis, places.min(), places.max()))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: axis.text(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        for crossing in panel.crossings[axis.name]:
            if crossing.seen and crossing.at is not None:
                _draw_crossing(axes, crossing, crossing.at, looks)
                passed = True
    mark = (
        " Diamond: its colour passes its edge's for good, bar: 95% interval; only where both leads exclude zero." if passed else ""
    )
    shade = f"Line: mean over seeds. Shade: 95% bootstrap interval ({covers(numbers)}). Dots: single seeds."
    caption(figure, " ".join(part for part in (shade + mark, axis.note) if part))
    return figure


def _draw_curve(axes: Axes, one: Drawn, axis: Axis, look: Style) -> None:
    found = one.bands[axis.name]
    if found is not None:
        axes.fill_between(found.x_G, found.low_G, found.high_G, color=look.colour, alpha=0.16, linewidth=0)
        mark = "o" if len(found.x_G) == 1 else ""  # a line of one point would not be seen
        axes.plot(found.x_G, found.mean_G, mark + "-", color=look.colour, linewidth=1.8, label=look.label)
    dot: dict[str, Any] = {"color": look.colour, "markersize": 4, "alpha": 0.7, "markeredgewidth": 0}
    dots = [(x_P, one.accuracy_P[seed]) for seed, x_P in one.places.on(axis).items()]
    axes.plot(*(np.concatenate(values) for values in zip(*dots, strict=True)), ".", **dot)


def _draw_crossing(axes: Axes, found: Crossing, at: float, looks: dict[Line, Style]) -> None:
    """At the bottom of the panel: where, and the interval; arrowheads where it is open."""
    leader, other = looks[found.leader], looks[found.other]
    bottom: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "color": leader.colour, "zorder": 4}
    low, high = -inf if found.low is None else found.low, inf if found.high is None else found.high
    ends = max(low, found.first), min(high, found.last)
    axes.plot(ends, [0.03, 0.03], linewidth=1.4, alpha=0.8, **bottom)
    for end, arrow, is_open in zip(ends, "<>", (low == -inf, high == inf), strict=True):
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
