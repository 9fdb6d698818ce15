"""The figures, drawn from records alone."""

from collections.abc import Sequence
from itertools import cycle, pairwise, product
from math import ceil, inf, log10
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from tunalab.errors import UserError
from tunalab.files import write_atomically
from tunalab.results.analysis.axes import DURATIONS, Axis, axis_named, short
from tunalab.results.analysis.crossing import Crossing, crossings
from tunalab.results.analysis.curves import align_tokens, curves, last_common_tokens, usable
from tunalab.results.analysis.effects import effects_table
from tunalab.results.analysis.resampling import Band, Curve, Draws, Line, band, benchmarks, covers, learning_curves, lines
from tunalab.results.analysis.statistics import pooled
from tunalab.results.figures.forest import forest
from tunalab.results.figures.styles import Style, named, styles
from tunalab.results.labels import (
    FIGURE_NAMES,
    MASK_RATIO,
    benchmark_label,
    colours,
    ordered_benchmarks,
    ordered_variants,
)
from tunalab.results.records import Record
from tunalab.results.settings import Setting, told_apart

INK, FAINT = "#333333", "#8A8A8A"
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))


def draw(name: str, records: Sequence[Record], folder: Path, command: str, x: str = "tokens") -> list[Path]:
    """Draw a figure of ``FIGURE_NAMES`` into ``folder`` and return its files; the command stands in each of them.

    Curves of several variants, each at several settings, are one file a variant. Figure 6 is also a page that opens from disk.

    Raises:
        UserError: unknown figure or axis, or records that cannot stand in one picture.
    """
    if name not in FIGURE_NAMES:
        raise UserError(f"unknown figure {name!r}, choices: {', '.join(FIGURE_NAMES)}")
    axis, whole = axis_named(x), {"mask_ratio": mask_ratio, "effects": _effects}
    if name in whole and x != "tokens":
        raise UserError(f"figure {name} has its own x axis, not {x!r}")
    written = []
    for variant, part in ({"": records} if name in whole else _pictures(records)).items():
        stem = "-".join(word for word in (name, variant, "" if x == "tokens" else x) if word)
        path = folder / f"{stem}.png"
        figure = whole[name](part) if name in whole else figure6(part, axis)
        folder.mkdir(parents=True, exist_ok=True)
        # No software version in the file: the same records give the same bytes until the picture itself changes.
        figure.savefig(path, dpi=160, metadata={"Software": None, "Description": f"made by: {command}"})
        written.append(path)
        if name == "figure6" and x == "tokens":  # the page has all axes
            from tunalab.results.figures.interactive import page

            write_atomically(path.with_suffix(".html"), page(part, command))
            written.append(path.with_suffix(".html"))
    return written


def _effects(records: Sequence[Record]) -> Figure:
    return forest(effects_table(records))


def _pictures(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by variant where a common picture would need colours for variants and for settings at once; else all under ''."""
    shown = usable(records)
    lines = {(record.run.variant, setting) for record, setting in zip(shown, told_apart(shown), strict=True)}
    variants = ordered_variants(name for name, _ in lines)
    if len(variants) == 1 or len(lines) == len(variants):
        return {"": shown}
    return {name: [record for record in shown if record.run.variant == name] for name in variants}


def figure6(records: Sequence[Record], axis: Axis | None = None) -> Figure:
    """Accuracy against tokens consumed or another axis, a panel a benchmark, a line a variant (or, of one variant, a setting).

    Raises:
        UserError: nothing was evaluated, or a run does not move along the axis.
    """
    axis, draws, shown = axis or axis_named("tokens"), Draws(), lines(records)
    names = ordered_benchmarks(benchmarks(records))
    if not names:
        raise UserError("no evaluated benchmark in these records")
    looks = styles(shown)
    figure, panels = _grid(names, list(looks.values()), axis.label)
    numbers, passed = set(), False
    for name, axes in panels.items():
        learning = learning_curves(shown, name, draws)
        for curve in learning:
            found = band(curve, axis, draws)
            _draw_curve(axes, curve, found, axis, looks[curve.line])
            numbers.add(len(curve.runs))
        _finish(axes, name, max(curve.chance for curve in learning))
        axes.set_xscale("log")
        places = [x for curve in learning for run in curve.runs.values() for x in run.places(axis).tolist()]
        axes.xaxis.set_major_locator(_locator(axis, min(places), max(places)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: axis.text(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        for one in crossings(learning, axis, draws):
            if one.seen and one.at is not None:
                _draw_crossing(axes, one, one.at, looks)
                passed = True
    mark = (
        " Diamond: its colour passes its edge's for good, bar: 95% interval; only where both leads exclude zero." if passed else ""
    )
    shade = f"Line: mean over seeds. Shade: 95% bootstrap interval ({covers(numbers)}). Dots: single seeds."
    _caption(figure, " ".join(part for part in (shade + mark, axis.note) if part))
    return figure


def _draw_curve(axes: Axes, curve: Curve, found: Band | None, axis: Axis, look: Style) -> None:
    if found is not None:
        axes.fill_between(found.x_G, found.low_G, found.high_G, color=look.colour, alpha=0.16, linewidth=0)
        mark = "o" if len(found.x_G) == 1 else ""  # a line of one point would not be seen
        axes.plot(found.x_G, found.mean_G, mark + "-", color=look.colour, linewidth=1.8, label=look.label)
    dot: dict[str, Any] = {"color": look.colour, "markersize": 4, "alpha": 0.7, "markeredgewidth": 0}
    dots = [(run.places(axis), run.accuracy_P) for run in curve.runs.values()]
    axes.plot(*(np.concatenate(values) for values in zip(*dots, strict=True)), ".", **dot)


def _draw_crossing(axes: Axes, found: Crossing, at: float, looks: dict[Line, Style]) -> None:
    """At the bottom of the panel: where, and the interval; arrowheads where it is open."""
    leader, other = looks[found.leader.line], looks[found.other.line]
    bottom: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "color": leader.colour, "zorder": 4}
    low, high = -inf if found.low is None else found.low, inf if found.high is None else found.high
    ends = max(low, found.first), min(high, found.last)
    axes.plot(ends, [0.03, 0.03], linewidth=1.4, alpha=0.8, **bottom)
    for end, arrow, is_open in zip(ends, "<>", (low == -inf, high == inf), strict=True):
        if is_open:
            axes.plot([end], [0.03], arrow, markersize=4, markeredgewidth=0, **bottom)
    axes.plot([at], [0.03], "D", mec=other.colour, mew=1.4, ms=6, **bottom | {"zorder": 5})


def mask_ratio(records: Sequence[Record]) -> Figure:
    """Accuracy at the last point that all runs share, against mask ratio, a panel a benchmark, a line a variant.

    Where more than the mask ratio differs, a line a variant and setting: a colour a variant, dashes a setting.
    """
    table = align_tokens(_table(records))
    tokens = last_common_tokens(table)
    table = table[table["tokens"] == tokens]
    rest = {setting.label: setting.without(MASK_RATIO).label for setting in _ordered_settings(records)}
    others = list(dict.fromkeys(rest.values()))
    palette = colours(table["variant"])
    shown: list[tuple[Style, pd.DataFrame]] = []
    for name, (style, other) in product(ordered_variants(table["variant"]), zip(cycle(_DASHES), others)):
        rows = table[(table["variant"] == name) & (table["setting"].map(rest) == other)]
        if not rows.empty:
            shown.append((Style(named(name, other), palette[name], style), rows))
    ratio_of = dict(zip(table["setting"], table["mask_ratio"], strict=True))
    ratios = sorted(set(ratio_of.values()))
    gap = min((b - a for a, b in pairwise(ratios)), default=1.0)
    figure, panels = _grid(ordered_benchmarks(table["benchmark"]), [look for look, _ in shown], "mask ratio")
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
        _finish(axes, benchmark, float(table.loc[table["benchmark"] == benchmark, "chance"].mean()))
        axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    _caption(
        figure,
        f"At {short(tokens)} tokens. Dot: mean over seeds. Bar: 95% interval, questions and seeds. Circles: single seeds.",
    )
    return figure


def _table(records: Sequence[Record]) -> pd.DataFrame:
    table = curves(usable(records))
    if table.empty:
        raise UserError("no evaluated benchmark in these records")
    return table


def _ordered_settings(records: Sequence[Record]) -> list[Setting]:
    return sorted(set(told_apart(usable(records))), key=lambda setting: setting.place)


def _grid(names: list[str], looks: Sequence[Style], xlabel: str) -> tuple[Figure, dict[str, Axes]]:
    """Small multiples with one legend above them."""
    columns = min(4, len(names)) if len(names) != 6 else 3
    rows = ceil(len(names) / columns)
    layout = ConstrainedLayoutEngine(hspace=0.06, wspace=0.04)
    figure = Figure(figsize=(max(3.0 * columns, 6.0), 2.55 * rows + 0.9), layout=layout)
    panels = {name: figure.add_subplot(rows, columns, index + 1) for index, name in enumerate(names)}
    for index, axes in enumerate(panels.values()):
        if index + columns >= len(names):  # nothing below it
            axes.set_xlabel(xlabel, color=INK, fontsize=9)
        if index % columns == 0:
            axes.set_ylabel("accuracy", color=INK, fontsize=9)
    handles = [Line2D([], [], color=look.colour, linestyle=look.dashes, linewidth=2.4, label=look.label) for look in looks]
    handles.append(Line2D([], [], color=FAINT, linewidth=1.1, linestyle=(0, (4, 3)), label="chance"))
    style: dict[str, Any] = {"frameon": False, "fontsize": 10, "labelcolor": INK, "handlelength": 1.8, "columnspacing": 1.8}
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 3 if len(panels) < 3 else 6), **style)
    return figure, panels


def _finish(axes: Axes, benchmark: str, chance: float) -> None:
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


def _caption(figure: Figure, text: str) -> None:
    figure.supxlabel(fill(text, int(14 * figure.get_figwidth())), fontsize=8, color=FAINT)


def _locator(axis: Axis, low: float, high: float) -> Locator:
    """Few decades need more ticks within each. Time has units of its own."""
    if axis.name == "wall_clock":
        inside = [value for value in DURATIONS if low * 0.95 <= value <= high * 1.05]
        return FixedLocator(inside[:: ceil(len(inside) / 4) or 1])
    decades = log10(high / low)
    return LogLocator(subs=(1, 2, 5) if decades < 1.3 else (1, 3) if decades < 2.5 else (1,), numticks=12)
