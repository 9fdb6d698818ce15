"""Figure 6 as one page that opens from disk: every axis, benchmark and crossing of the records, drawn by the script inside it.

The page asks nothing of the network, and all of it is ours: `interactive.html` is its text, `DATA` the place of the numbers.
"""

import json
from functools import cache
from importlib.resources import files
from math import isinf
from typing import Any

import numpy as np

from tunalab.results.analysis.axes import Axis
from tunalab.results.analysis.crossing import Crossing, passing
from tunalab.results.analysis.lines import Line
from tunalab.results.analysis.panels import Drawn, Panel, Panels
from tunalab.results.analysis.resampling import covers
from tunalab.results.figures.styles import Style, styles
from tunalab.results.labels import benchmark_label

_DATA = '"DATA"'
_DOTS = 20  # seeds of a line: more dots hide the band they scatter about, and are most of the page


def page(found: Panels, command: str) -> str:
    """The page as text."""
    text = json.dumps(figure_data(found, command), separators=(",", ":"), allow_nan=False)
    # A name with "</script>" in it would end the script, one with "<!--<script>" would keep it from ending.
    return _template().replace(_DATA, text.replace("<", "\\u003c"))


@cache
def _template() -> str:
    return files("tunalab.results.figures").joinpath("interactive.html").read_text(encoding="utf-8")


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
        "lines": [_line(looks[line]) for line in found.lines],
        "axes": [{"name": axis.name, "label": axis.label, "note": axis.note} for axis in found.axes],
        "panels": panels,
    }


def _line(look: Style) -> dict[str, str]:
    return {"label": look.label, "colour": look.colour}


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
