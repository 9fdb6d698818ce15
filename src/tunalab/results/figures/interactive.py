"""Figure 6 as one page that opens from disk: every axis, benchmark and crossing of the records, drawn by the script inside it.

The page asks nothing of the network, and all of it is ours: `interactive.html` is its text, `DATA` the place of the numbers.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from math import isinf
from typing import Any

import numpy as np

from tunalab.errors import UserError
from tunalab.results.analysis.axes import AXES, Axis
from tunalab.results.analysis.crossing import Crossing, crossings, passing
from tunalab.results.analysis.resampling import Asked, Curve, Draws, Line, band, benchmarks, covers, learning_curves, lines, moves
from tunalab.results.figures.styles import Style, styles
from tunalab.results.labels import benchmark_label, ordered_benchmarks
from tunalab.results.records import Record

_DATA = '"DATA"'
_DOTS = 20  # seeds of a line: more dots hide the band they scatter about, and are most of the page


def page(records: Sequence[Record], command: str) -> str:
    """The page as text.

    Raises:
        UserError: nothing was evaluated.
    """
    text = json.dumps(figure_data(records, command), separators=(",", ":"), allow_nan=False)
    # A name with "</script>" in it would end the script.
    return _template().replace(_DATA, text.replace("</", "<\\/"))


@cache
def _template() -> str:
    return files("tunalab.results.figures").joinpath("interactive.html").read_text(encoding="utf-8")


def figure_data(records: Sequence[Record], command: str) -> dict[str, Any]:
    """Everything the page shows, as plain values. Axes on which some run does not move are left out."""
    shown, draws = lines(records), Draws()
    names = ordered_benchmarks(benchmarks(records))
    if not names:
        raise UserError("no evaluated benchmark in these records")
    looks = styles(shown)
    axes = [axis for axis in AXES.values() if moves(shown, axis)]
    panels = []
    for name in names:
        learning = learning_curves(shown, name, draws)
        panels.append(
            {
                "name": name,
                "label": benchmark_label(name),
                "chance": _round(max(curve.chance for curve in learning)),
                "n": max(curve.n for curve in learning),
                "seeds": [_seeds(shown.index(curve.line), curve) for curve in learning],
                "axes": {axis.name: _on(axis, learning, shown, draws) for axis in axes},
            }
        )
    numbers = {len(line.records) for line in shown}
    return {
        "command": command,
        "covers": covers(numbers),
        "lines": [_line(looks[line]) for line in shown],
        "axes": [{"name": axis.name, "label": axis.label, "note": axis.note} for axis in axes],
        "panels": panels,
    }


def _line(look: Style) -> dict[str, str]:
    return {"label": look.label, "colour": look.colour}


def _seeds(index: int, curve: Curve) -> dict[str, Any]:
    runs = [{"seed": seed, "y": _rounded(run.accuracy_P)} for seed, run in _dots(curve).items()]
    return {"line": index, "n": curve.n, "count": len(curve.runs), "runs": runs}


def _dots(curve: Curve) -> dict[int, Asked]:
    return curve.runs if len(curve.runs) <= _DOTS else {}


def _on(axis: Axis, learning: Sequence[Curve], shown: Sequence[Line], draws: Draws) -> dict[str, Any]:
    bands = []
    for curve in learning:
        found = band(curve, axis, draws)
        if found is not None:
            values = {"y": found.mean_G, "low": found.low_G, "high": found.high_G}
            rounded = {name: _rounded(value) for name, value in values.items()}
            bands.append({"line": shown.index(curve.line), "x": _places(found.x_G), **rounded})
    places = [_places(run.places(axis)) for curve in learning for run in _dots(curve).values()]
    return {
        "bands": bands,
        "places": places,
        "crossings": [_crossing(one, axis, shown) for one in crossings(learning, axis, draws)],
    }


def _crossing(found: Crossing, axis: Axis, shown: Sequence[Line]) -> dict[str, Any]:
    return {
        "leader": shown.index(found.leader.line),
        "other": shown.index(found.other.line),
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
