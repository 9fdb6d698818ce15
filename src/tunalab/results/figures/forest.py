"""The effects of a sweep as a picture: a row a contrast, a panel an outcome, a dot with its 95% interval."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tunalab.errors import UserError
from tunalab.results.analysis.effects import ordered_outcomes, outcome_label, unit

INK, FAINT, CLEAR = "#333333", "#B0B0B0", "#D55E00"
MAIN = "main"


def forest(table: pd.DataFrame) -> Figure:
    """Main effects of a table from ``effects_table``: mean accuracy, loss and PSNR first, then each benchmark.

    Coloured where the interval excludes 0; a dot without a bar has one seed and nothing to be an interval of.

    Raises UserError: no two runs of the records differ in one choice alone.
    """
    main = table[table["effect"] == MAIN]
    if main.empty:
        raise UserError("no effects to draw: no two runs of these records differ in one choice alone")
    outcomes = ordered_outcomes(main)
    rows = list(dict.fromkeys(zip(main["factor"], main["level"], main["reference"], strict=True)))
    columns = 4
    lines = -(-len(outcomes) // columns)
    size = (13.0, lines * (0.26 * len(rows) + 0.75) + 0.5)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(hspace=0.05, wspace=0.02))
    for index, outcome in enumerate(outcomes):
        axes = figure.add_subplot(lines, columns, index + 1)
        _panel(axes, main[main["outcome"] == outcome], outcome, rows, named=index % columns == 0)
    text = "Dot: mean over pairs of runs that differ in this choice alone. Bar: 95% interval. Orange: 0 is outside."
    figure.supxlabel(text, fontsize=8, color="#8A8A8A")
    return figure


def _panel(axes: Axes, part: pd.DataFrame, outcome: str, rows: list[tuple[str, str, str]], named: bool) -> None:
    scale = unit(outcome)
    axes.axvline(0, color=FAINT, linewidth=1)
    for row in part.to_dict("records"):
        place = len(rows) - 1 - rows.index((row["factor"], row["level"], row["reference"]))
        known = not pd.isna(row["low"])
        colour = CLEAR if known and (row["low"] > 0 or row["high"] < 0) else INK
        if known:
            axes.plot([scale * row["low"], scale * row["high"]], [place, place], color=colour, linewidth=1.4)
        axes.plot([scale * row["value"]], [place], "o", color=colour, markersize=4.5)
    names = [f"{factor}: {level} - {reference}" for factor, level, reference in reversed(rows)]
    axes.set_yticks(range(len(rows)), names if named else [""] * len(rows), fontsize=8)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    title = outcome_label(outcome)
    axes.set_title(f"{title}, points" if scale != 1 else title, fontsize=9.5, color=INK, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")
    axes.tick_params(labelsize=8, colors=INK, color="#BBBBBB", length=3)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#EBEBEB", linewidth=0.8)
    axes.set_axisbelow(True)
