"""Figure 6: accuracy against what a run consumes, as a picture and as a page that opens from disk.

The page asks nothing of the network, and all of it is ours: `figure6.html` is its text,
`DATA` the place of the numbers.
"""

import json
from functools import cache
from importlib.resources import files
from math import ceil, inf, isinf, log10
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, NullFormatter

from tunalab.analysis.crossing import Crossing, passing
from tunalab.analysis.curves import DURATIONS, Axis, Line
from tunalab.analysis.figures.panels import Drawn, Panel, Panels, Style, caption, finish, grid, styles
from tunalab.analysis.resampling import covers
from tunalab.records.labels import benchmark_label


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


_DATA = '"DATA"'
_DOTS = 20  # seeds of a line: more dots hide the band they scatter about, and are most of the page


def page(found: Panels, command: str) -> str:
    """The page as text."""
    text = json.dumps(figure_data(found, command), separators=(",", ":"), allow_nan=False)
    # A name with "</script>" in it would end the script, one with "<!--<script>" would keep it from ending.
    return _template().replace(_DATA, text.replace("<", "\\u003c"))


@cache
def _template() -> str:
    return files("tunalab.analysis.figures").joinpath("figure6.html").read_text(encoding="utf-8")


def figure_data(found: Panels, command: str) -> dict[str, Any]:
    """Everything the page shows, as plain values."""
    looks, index = styles(found.lines), {line: number for number, line in enumerate(found.lines)}
    panels = [
        {
            "name": panel.benchmark,
            "label": benchmark_label(panel.benchmark),
            "chance": _round(panel.chance),
            "n": max(one.n for one in panel.drawn),
            "seeds": [_seeds(index[one.line], one) for one in panel.drawn],
            "axes": {axis.name: _on(axis, panel, index) for axis in found.axes},
        }
        for panel in found.panels
    ]
    return {
        "command": command,
        "covers": covers({len(line.records) for line in found.lines}),
        "lines": [{"label": looks[line].label, "colour": looks[line].colour} for line in found.lines],
        "axes": [{"name": axis.name, "label": axis.label, "note": axis.note} for axis in found.axes],
        "panels": panels,
    }


def _seeds(index: int, one: Drawn) -> dict[str, Any]:
    runs = [{"seed": seed, "y": _rounded(one.accuracy_P[seed])} for seed in _dots(one)]
    return {"line": index, "n": one.n, "count": len(one.accuracy_P), "runs": runs}


def _dots(one: Drawn) -> list[int]:
    return list(one.accuracy_P) if len(one.accuracy_P) <= _DOTS else []


def _on(axis: Axis, panel: Panel, index: dict[Line, int]) -> dict[str, Any]:
    bands = []
    for one in panel.drawn:
        found = one.bands[axis.name]
        if found is not None:
            values = {"y": found.mean_G, "low": found.low_G, "high": found.high_G}
            rounded = {name: _rounded(value) for name, value in values.items()}
            bands.append({"line": index[one.line], "x": _places(found.x_G), **rounded})
    return {
        "bands": bands,
        "places": [_places(one.places.on(axis)[seed]) for one in panel.drawn for seed in _dots(one)],
        "crossings": [_crossing(one, axis, index) for one in panel.crossings[axis.name]],
    }


def _crossing(found: Crossing, axis: Axis, index: dict[Line, int]) -> dict[str, Any]:
    return {
        "leader": index[found.leader],
        "other": index[found.other],
        "at": None if found.at is None else _place(found.at),
        "low": None if found.low is None or isinf(found.low) else _place(found.low),
        "high": None if found.high is None or isinf(found.high) else _place(found.high),
        "first": _place(found.first),
        "last": _place(found.last),
        "text": passing(found, axis),
        "shares": [_round(share) for share in (found.before, found.within, found.after)],
        "ahead": _round(found.ahead),
        "behind": _round(found.behind),
        "changes": found.changes,
        "seen": found.seen,
    }


def _place(value: float) -> float:
    return float(f"{value:.4g}")


def _places(x_G: np.ndarray) -> list[float]:
    return [_place(value) for value in x_G.tolist()]


def _round(value: float) -> float:
    return round(value, 4)


def _rounded(value_G: np.ndarray) -> list[float]:
    return [_round(value) for value in value_G.tolist()]
