"""The figures, drawn from records alone: curves, the mask ratio, learning rates, the effects of a sweep."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import cycle, pairwise, product
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tunalab.analysis.curves import (
    AXES,
    Line,
    align_tokens,
    arms,
    axis_named,
    curves,
    last_common_tokens,
    lines,
    moves,
    named,
    short,
)
from tunalab.analysis.effects import effects_table, ordered_outcomes, outcome_label, unit
from tunalab.analysis.figure6 import Style, caption, figure6, finish, grid, learned, page
from tunalab.analysis.statistics import pooled
from tunalab.analysis.tuning import learning_rate
from tunalab.errors import UserError
from tunalab.files import write_atomically
from tunalab.records.labels import FIGURE_NAMES, MASK_RATIO, Legend, ordered_benchmarks
from tunalab.records.record import Record, usable

_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))


def mask_ratio(records: Sequence[Record]) -> Figure:
    """Accuracy at the last point that all runs share, against mask ratio, a panel for each benchmark, a line for each variant.

    Where more than the mask ratio differs, a line for each variant and setting: a colour a variant, dashes a setting.

    Raises UserError: nothing is evaluated, or there is one mask ratio only.
    """
    table = align_tokens(_table(records))
    tokens = last_common_tokens(table)
    table = table[table["tokens"] == tokens]
    settings = [line.setting for line in arms(usable(records))]
    rest = {setting.label: setting.without(MASK_RATIO).label for setting in sorted(settings, key=lambda setting: setting.place)}
    others = list(dict.fromkeys(rest.values()))
    legend = Legend(records)
    palette = legend.colours()
    shown: list[tuple[Style, pd.DataFrame]] = []
    for name, (style, other) in product(legend.ordered(table["variant"]), zip(cycle(_DASHES), others)):
        rows = table[(table["variant"] == name) & (table["setting"].map(rest) == other)]
        if not rows.empty:
            shown.append((Style(named(legend.label(name), other), palette[name], style), rows))
    ratio_of = dict(zip(table["setting"], table["mask_ratio"], strict=True))
    ratios = sorted(set(ratio_of.values()))
    if len(ratios) < 2:
        raise UserError(f"mask_ratio needs records of at least two mask ratios, these have {ratios[0]:g} alone")
    gap = min(b - a for a, b in pairwise(ratios))
    figure, panels = grid(ordered_benchmarks(table["benchmark"]), [look for look, _ in shown], "mask ratio")
    for benchmark, axes in panels.items():
        for index, (look, rows) in enumerate(shown):
            shift = (index - (len(shown) - 1) / 2) * 0.1 * gap  # side by side, or the bars of three variants cover each other
            seeds = rows[rows["benchmark"] == benchmark]
            mean = pooled(seeds)
            mean = mean.assign(mask_ratio=mean["setting"].map(ratio_of)).sort_values("mask_ratio")
            bars = [mean["accuracy"] - mean["low"], mean["high"] - mean["accuracy"]]
            bar: dict[str, Any] = {"linestyle": look.dashes, "linewidth": 1.6, "elinewidth": 1.1, "marker": "o", "markersize": 4}
            axes.errorbar(mean["mask_ratio"] + shift, mean["accuracy"], bars, color=look.colour, label=look.label, **bar)
            circle: dict[str, Any] = {"mfc": "white", "mec": look.colour, "ms": 2.6, "mew": 0.8}
            axes.plot(seeds["mask_ratio"] + shift, seeds["accuracy"], "o", **circle)
        finish(axes, benchmark, float(table.loc[table["benchmark"] == benchmark, "chance"].mean()))
        axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    caption(
        figure,
        f"At {short(tokens)} tokens. Dot: mean over seeds. Bar: 95% interval, questions and seeds. Circles: single seeds.",
    )
    return figure


def _table(records: Sequence[Record]) -> pd.DataFrame:
    table = curves(usable(records))
    if table.empty:
        raise UserError("no evaluated benchmark in these records")
    return table


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
        bar = not pd.isna(row["low"])
        colour = CLEAR if bar and (row["low"] > 0 or row["high"] < 0) else INK
        if bar:
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


DPI = 160


def draw(name: str, records: Sequence[Record], folder: Path, command: str, x: str = "tokens") -> list[Path]:
    """Draw a figure of ``FIGURE_NAMES`` into ``folder`` and return its files; the command stands in each of them.

    Curves of several variants, each at several settings, are one file per variant. Figure 6 is also a page that opens from disk.
    Raises UserError as :func:`drawn`.
    """
    written = []
    for stem, figure, panels in drawn(name, records, x):
        written.append(folder / f"{stem}.png")
        folder.mkdir(parents=True, exist_ok=True)
        save(figure, written[-1], command)
        if panels:
            written.append(folder / f"{stem}.html")
            write_atomically(written[-1], page(panels, command))
    return written


def drawn(name: str, records: Sequence[Record], x: str = "tokens") -> Iterator[tuple[str, Figure, Any]]:
    """The pictures of a figure of ``FIGURE_NAMES``: name of the file, figure, and, where it also is a page, what that shows.

    Raises:
        UserError: unknown figure or axis, or records that cannot stand in one picture.
    """
    if name not in FIGURE_NAMES:
        raise UserError(f"unknown figure {name!r}, choices: {', '.join(FIGURE_NAMES)}")
    axis = axis_named(x)
    of_settings = {"mask_ratio": mask_ratio, "learning_rate": learning_rate, "effects": lambda found: forest(effects_table(found))}
    if name in of_settings:
        if x != "tokens":
            raise UserError(f"figure {name} has its own x axis, not {x!r}")
        yield name, of_settings[name](records), None
        return
    for variant, shown in _pictures(records).items():
        stem = "-".join(word for word in (name, variant, "" if x == "tokens" else x) if word)
        paged = name == "figure6" and x == "tokens"  # the page has all axes
        every = [one for one in AXES.values() if moves(shown, one)] if paged else []
        found = learned(shown, list(dict.fromkeys([axis, *every])))
        yield stem, figure6(found, axis), found if paged else None


def _pictures(records: Sequence[Record]) -> dict[str, list[Line]]:
    """Lines by variant where a common picture would need colours for variants and for settings at once; else all under ''."""
    shown = lines(records)
    variants = list(dict.fromkeys(line.variant for line in shown))
    if len(variants) == 1 or len(shown) == len(variants):
        return {"": shown}
    return {name: lines([one for line in shown if line.variant == name for one in line.records]) for name in variants}


def save(figure: Figure, file: Path | BytesIO, command: str = "") -> None:
    """As PNG; not by `savefig`, which draws a figure with a layout twice."""
    figure.set_dpi(DPI)
    # No software version in the file: the same records give the same bytes until the picture itself changes.
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None, "Description": f"made by: {command}"})
