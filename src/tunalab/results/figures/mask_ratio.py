"""Accuracy against the mask ratio."""

from collections.abc import Sequence
from itertools import cycle, pairwise, product
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tunalab.errors import UserError
from tunalab.results.analysis.axes import short
from tunalab.results.analysis.curves import align_tokens, curves, last_common_tokens
from tunalab.results.analysis.statistics import pooled
from tunalab.results.figures.panel import caption, finish, grid
from tunalab.results.figures.styles import Style, named
from tunalab.results.labels import MASK_RATIO, colours, ordered_benchmarks, ordered_variants
from tunalab.results.records import Record, usable
from tunalab.results.settings import Setting, told_apart

_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))


def mask_ratio(records: Sequence[Record]) -> Figure:
    """Accuracy at the last point that all runs share, against mask ratio, a panel a benchmark, a line a variant.

    Where more than the mask ratio differs, a line a variant and setting: a colour a variant, dashes a setting.

    Raises UserError: nothing is evaluated, or there is one mask ratio only.
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


def _ordered_settings(records: Sequence[Record]) -> list[Setting]:
    return sorted(set(told_apart(usable(records))), key=lambda setting: setting.place)
