"""The figures, drawn from records alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise, product
from math import ceil, log10
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from tunalab.errors import UserError
from tunalab.results.curves import align_tokens, curves, last_common_tokens, usable
from tunalab.results.labels import (
    FIGURE_NAMES,
    MASK_RATIO,
    benchmark_label,
    colours,
    ordered_benchmarks,
    ordered_variants,
    variant_label,
)
from tunalab.results.records import Record
from tunalab.results.settings import Setting, told_apart
from tunalab.results.statistics import pooled

INK, FAINT = "#333333", "#8A8A8A"
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))


@dataclass(frozen=True)
class Series:
    """One line of a figure: which rows of the table it shows, and how."""

    label: str
    colour: str
    rows: pd.DataFrame
    style: Any = "-"


def draw(name: str, records: Sequence[Record], folder: Path, command: str) -> list[Path]:
    """Draw a figure of ``FIGURES`` into ``folder`` and return its files; the command stands in each PNG's description.

    Curves of several variants, each at several settings, are one file a variant.

    Raises:
        UserError: unknown figure, or records that cannot stand in one picture.
    """
    if name not in FIGURES:
        raise UserError(f"unknown figure {name!r}, choices: {', '.join(FIGURES)}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for variant, part in ({"": records} if name == "mask_ratio" else _pictures(records)).items():
        path = folder / (f"{name}-{variant}.png" if variant else f"{name}.png")
        # No software version in the file: the same records give the same bytes until the picture itself changes.
        FIGURES[name](part).savefig(path, dpi=160, metadata={"Software": None, "Description": f"made by: {command}"})
        written.append(path)
    return written


def _pictures(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by variant where a common picture would need colours for variants and for settings at once; else all under ''."""
    shown = usable(records)
    lines = {(record.run.variant, setting) for record, setting in zip(shown, told_apart(shown), strict=True)}
    variants = ordered_variants(name for name, _ in lines)
    if len(variants) == 1 or len(lines) == len(variants):
        return {"": shown}
    return {name: [record for record in shown if record.run.variant == name] for name in variants}


def figure6(records: Sequence[Record]) -> Figure:
    """Accuracy against tokens consumed, a panel a benchmark, a line a variant (or, for one variant, a line a setting).

    Raises:
        UserError: nothing was evaluated.
    """
    table = align_tokens(_table(records))
    lines = _series(table, _ordered_settings(records))
    means = [pooled(line.rows) for line in lines]
    figure, panels = _grid(ordered_benchmarks(table["benchmark"]), lines, "tokens consumed")
    for benchmark, axes in panels.items():
        for line, mean in zip(lines, means, strict=True):
            seeds = line.rows[line.rows["benchmark"] == benchmark]
            mean = mean[mean["benchmark"] == benchmark].sort_values("tokens")
            axes.fill_between(mean["tokens"], mean["low"], mean["high"], color=line.colour, alpha=0.16, linewidth=0)
            mark = "o" if len(mean) == 1 else ""  # a line of one point would not be seen
            axes.plot(mean["tokens"], mean["accuracy"], mark + "-", color=line.colour, linewidth=1.8, label=line.label)
            axes.plot(seeds["tokens"], seeds["accuracy"], ".", color=line.colour, markersize=4, alpha=0.7, markeredgewidth=0)
        _finish(axes, benchmark, table)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=_subs(table), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    _caption(figure, "Line: mean over seeds. Shade: 95% interval, questions and seeds. Dots: single seeds.")
    return figure


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
    lines = []
    for name, (style, other) in product(ordered_variants(table["variant"]), zip(cycle(_DASHES), others)):
        rows = table[(table["variant"] == name) & (table["setting"].map(rest) == other)]
        if not rows.empty:
            lines.append(Series(_named(name, other), palette[name], rows, style))
    ratio_of = dict(zip(table["setting"], table["mask_ratio"], strict=True))
    ratios = sorted(set(ratio_of.values()))
    gap = min((b - a for a, b in pairwise(ratios)), default=1.0)
    figure, panels = _grid(ordered_benchmarks(table["benchmark"]), lines, "mask ratio")
    for benchmark, axes in panels.items():
        for index, line in enumerate(lines):
            shift = (index - (len(lines) - 1) / 2) * 0.1 * gap  # side by side, or the bars of three variants cover each other
            seeds = line.rows[line.rows["benchmark"] == benchmark]
            mean = pooled(seeds)
            mean = mean.assign(mask_ratio=mean["setting"].map(ratio_of)).sort_values("mask_ratio")
            bars = [mean["accuracy"] - mean["low"], mean["high"] - mean["accuracy"]]
            bar: dict[str, Any] = {"linestyle": line.style, "linewidth": 1.6, "elinewidth": 1.1, "marker": "o", "markersize": 4}
            axes.errorbar(mean["mask_ratio"] + shift, mean["accuracy"], bars, color=line.colour, label=line.label, **bar)
            circle: dict[str, Any] = {"mfc": "white", "mec": line.colour, "ms": 2.6, "mew": 0.8}
            axes.plot(seeds["mask_ratio"] + shift, seeds["accuracy"], "o", **circle)
        _finish(axes, benchmark, table)
        axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    _caption(
        figure,
        f"At {_short(tokens)} tokens. Dot: mean over seeds. Bar: 95% interval, questions and seeds. Circles: single seeds.",
    )
    return figure


FIGURES: dict[str, Callable[[Sequence[Record]], Figure]] = dict(zip(FIGURE_NAMES, (figure6, figure6, mask_ratio), strict=True))


def _table(records: Sequence[Record]) -> pd.DataFrame:
    table = curves(usable(records))
    if table.empty:
        raise UserError("no evaluated benchmark in these records")
    return table


def _ordered_settings(records: Sequence[Record]) -> list[Setting]:
    return sorted(set(told_apart(usable(records))), key=lambda setting: setting.place)


def _series(table: pd.DataFrame, settings: list[Setting]) -> list[Series]:
    """A line a variant and setting: in the variants' colours where each has one setting, else in shades along the settings."""
    present = set(zip(table["variant"], table["setting"], strict=True))
    pairs = [(name, s.label) for s in settings for name in ordered_variants(table["variant"]) if (name, s.label) in present]
    variants = ordered_variants(name for name, _ in pairs)
    pairs.sort(key=lambda pair: variants.index(pair[0]))
    if len(pairs) == len(variants):
        palette = [colours(variants)[name] for name, _ in pairs]
    else:
        palette = [to_hex(colormaps["viridis"](0.1 + 0.75 * i / (len(pairs) - 1))) for i in range(len(pairs))]
    return [
        Series(_named(name, setting), colour, table[(table["variant"] == name) & (table["setting"] == setting)])
        for (name, setting), colour in zip(pairs, palette, strict=True)
    ]


def _named(variant: str, setting: str) -> str:
    return f"{variant_label(variant)}, {setting}" if setting else variant_label(variant)


def _grid(benchmarks: list[str], lines: list[Series], xlabel: str) -> tuple[Figure, dict[str, Axes]]:
    """Small multiples with one legend above them."""
    columns = min(4, len(benchmarks)) if len(benchmarks) != 6 else 3
    rows = ceil(len(benchmarks) / columns)
    layout = ConstrainedLayoutEngine(hspace=0.06, wspace=0.04)
    figure = Figure(figsize=(max(3.0 * columns, 6.0), 2.55 * rows + 0.9), layout=layout)
    panels = {name: figure.add_subplot(rows, columns, index + 1) for index, name in enumerate(benchmarks)}
    for index, axes in enumerate(panels.values()):
        if index + columns >= len(benchmarks):  # nothing below it
            axes.set_xlabel(xlabel, color=INK, fontsize=9)
        if index % columns == 0:
            axes.set_ylabel("accuracy", color=INK, fontsize=9)
    handles = [Line2D([], [], color=line.colour, linestyle=line.style, linewidth=2.4, label=line.label) for line in lines]
    handles.append(Line2D([], [], color=FAINT, linewidth=1.1, linestyle=(0, (4, 3)), label="chance"))
    style: dict[str, Any] = {"frameon": False, "fontsize": 10, "labelcolor": INK, "handlelength": 1.8, "columnspacing": 1.8}
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 3 if len(panels) < 3 else 6), **style)
    return figure, panels


def _finish(axes: Axes, benchmark: str, table: pd.DataFrame) -> None:
    """Title, chance line, quiet frame. Each panel has its own range: benchmarks differ more than variants do."""
    chance = float(table.loc[table["benchmark"] == benchmark, "chance"].mean())
    axes.axhline(chance, color=FAINT, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_title(benchmark_label(benchmark), fontsize=10.5, color=INK, loc="left")
    low, high = axes.get_ylim()
    if high - low < 0.1:  # or noise would fill the panel
        low, high = (low + high) / 2 - 0.05, (low + high) / 2 + 0.05
    axes.set_ylim(max(-0.02, low), min(1.02, high))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))  # no steps of 2.5: ticks are whole percents
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")
    axes.grid(axis="y", color="#EBEBEB", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=8.5, colors=INK, color="#BBBBBB", length=3)
    axes.tick_params(which="minor", length=1.8)


def _caption(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=8, color=FAINT)


def _subs(table: pd.DataFrame) -> tuple[float, ...]:
    """Ticks within a decade of tokens: few decades need more of them."""
    decades = log10(table["tokens"].max() / max(table["tokens"].min(), 1))
    return (1, 2, 5) if decades < 1.3 else (1, 3) if decades < 2.5 else (1,)


def _short(value: float) -> str:
    """1500 -> 1.5k: ticks and captions without zeros to count."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
