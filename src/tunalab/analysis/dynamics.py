"""Tables of how front-ends learn: who passes whom and when, areas under the curves, power laws.

Markdown against tokens, CSV against every axis.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from tunalab.analysis.crossing import Crossing, crossings, pairs, passing
from tunalab.analysis.curves import AXES, Axis, Line, axis_named, benchmarks, lines, moves, names_of, short
from tunalab.analysis.power_law import ABOVE, FORECAST, RESIDUAL, WIDEST, PowerLaw, power_laws
from tunalab.analysis.resampling import SCALES, Area, Draws, area, covers, learning_curves
from tunalab.analysis.written import markdown_table, percent, with_interval, write_tables_to
from tunalab.records.labels import benchmark_label, ordered_benchmarks
from tunalab.records.record import Record

_TOKENS = axis_named("tokens")


@dataclass(frozen=True)
class Dynamics:
    """All that was found, by axis. ``differences`` are areas of two curves; ``laws`` are over tokens."""

    names: dict[Line, str]
    crossings: dict[str, list[Crossing]]
    areas: dict[str, list[Area]]
    differences: dict[str, list[Area]]
    laws: list[PowerLaw]

    @property
    def seeds(self) -> str:
        return covers(len(line.records) for line in self.names)


def dynamics(records: Sequence[Record]) -> Dynamics | None:
    """None where the runs answered no questions."""
    shown, draws = lines(records), Draws()
    on = [axis for axis in AXES.values() if moves(shown, axis)]
    found = Dynamics(
        names_of(shown), {axis.name: [] for axis in on}, {axis.name: [] for axis in on}, {axis.name: [] for axis in on}, []
    )
    names = ordered_benchmarks(benchmarks(records))
    for name in names:
        learning = learning_curves(shown, name, draws)
        found.laws.extend(power_laws(learning, _TOKENS, draws))
        for axis in on:
            found.crossings[axis.name] += crossings(learning, axis, draws)
            found.areas[axis.name] += [one for curve in learning for one in area(curve, axis, draws)]
            found.differences[axis.name] += [one for b, a in pairs(learning) for one in area(a, axis, draws, less=b)]
    return found if names else None


def write_dynamics(records: Sequence[Record], folder: Path, command: str) -> list[Path]:
    """Write ``crossings``, ``areas`` and ``power_laws``, as ``.md`` and ``.csv``.

    Nothing where the runs answered no questions, and no crossings of one variant alone.
    """
    found = dynamics(records)
    tables: dict[str, str | pd.DataFrame] = {}
    if found is None:
        return []
    for name, markdown, table in WRITTEN:
        if not (frame := table(found)).empty:
            tables |= {f"{name}.md": markdown(found), f"{name}.csv": frame}
    return write_tables_to(folder, command, tables, digits=4)


def crossings_markdown(found: Dynamics) -> str:
    """A row a benchmark and pair, on tokens; the last columns say the same of other axes."""
    others = [axis for axis in (AXES["flops"], AXES["parameters"]) if axis.name in found.crossings]
    head = [
        "benchmark",
        "leader",
        "passes",
        "at tokens",
        "share of resamples",
        "ahead at the end",
        *(axis.label for axis in others),
    ]
    rows = []
    elsewhere = [{_of(one): one for one in found.crossings[axis.name]} for axis in others]
    for one in found.crossings["tokens"]:
        label, leader, other = benchmark_label(one.benchmark), found.names[one.leader], found.names[one.other]
        if one.low is None:
            rows.append([label, f"{leader}, {other}: level", *[""] * (4 + len(others))])
            continue
        level = 1 - one.ahead - one.behind
        ahead = f"{one.ahead:.2f}" + (f" + {level:.2f}" if level >= 0.005 else "")
        there = [_elsewhere(found, one, on, axis) for on, axis in zip(elsewhere, others, strict=True)]
        rows.append([label, leader, other, _passing(one, _TOKENS), f"{one.within:.2f}", ahead, *there])
    count = sum(one.clear for one in found.crossings["tokens"])
    note = (
        f"Of {len(found.crossings['tokens'])} pairs of curves {count} cross clearly (bold): the interval is closed, "
        "the earlier lead and the later one are both outside a band that holds the whole difference curve in 95% of resamples. "
        "Any other crossing may be two curves that touch by chance, most of all where both are near chance. Leader: ahead at the "
        "end. At tokens: where its "
        "mean curve passed the other's for the last time, straight over the logarithm between evaluations, with the 95% bootstrap "
        f"interval ({found.seeds}). Share of resamples: that cross so; the others count as before the first evaluation (<, the "
        "leader leads throughout) or after the last (>, it is behind at the end), none is dropped. Ahead at the end: share of "
        "resamples in which the leader is ahead at the last point that both have, + those level there. No correction for the "
        "number of pairs. Other axes: crossings.csv."
    )
    return f"{markdown_table(head, rows, left=3)}\n\n{note}\n"


def crossings_table(found: Dynamics) -> pd.DataFrame:
    """A row an axis, benchmark and pair. ``low`` is -inf and ``high`` is inf where the interval is open."""
    same = ("at", "low", "high"), ("ahead", "behind", "changes", "clear", "first", "last", "seeds", "n", "by_item")
    rows = [
        {"axis": name, "benchmark": one.benchmark, **dict(one.leader.setting.items)}
        | {"leader": one.leader.variant, "other": one.other.variant, **{key: getattr(one, key) for key in same[0]}}
        | {"leads_throughout": one.before, "passes": one.within, "behind_at_the_end": one.after}
        | {key: getattr(one, key) for key in same[1]}
        for name, of_axis in found.crossings.items()
        for one in of_axis
    ]
    return pd.DataFrame(rows)


def areas_markdown(found: Dynamics) -> str:
    """A table a scale: a row a benchmark and setting, a column a line, then one a difference."""
    parts = []
    for scale in SCALES:
        every = [one for one in [*found.areas["tokens"], *found.differences["tokens"]] if one.scale == scale]
        columns = list(dict.fromkeys(map(_column, every)))
        cells: dict[tuple[str, str], dict[str, str]] = {}
        for one in every:
            sign, bold = ("", False) if one.less is None else ("+", one.excludes_zero)
            text = with_interval((one.value, one.low, one.high), partial(percent, sign=sign), bold)
            cells.setdefault((one.curve.benchmark, one.curve.line.setting.label), {})[_column(one)] = text
        several = len({setting for _, setting in cells}) > 1
        head = ["benchmark", *(["setting"] if several else [])]
        rows = [
            [benchmark_label(name), *([setting] if several else []), *(of_row.get(column, "") for column in columns)]
            for (name, setting), of_row in cells.items()
        ]
        title = "Over log tokens: every doubling counts the same" if scale == "log" else "Over tokens: the late part decides"
        parts += [f"### {title}", "", markdown_table([*head, *columns], rows, left=len(head)), ""]
    first, last = min(one.first for one in found.areas["tokens"]), max(one.last for one in found.areas["tokens"])
    note = (
        f"Mean accuracy in percent from {short(first)} to {short(last)} tokens (the area under the mean curve over the length of "
        f"the axis) and differences, with 95% bootstrap intervals ({found.seeds}). Bold: zero is excluded, by four seeds or more. "
        "No correction for their number. Other axes: areas.csv; curves end at different places there, and only differences, over "
        "what they share, compare."
    )
    return "\n".join([*parts, note]) + "\n"


def areas_table(found: Dynamics) -> pd.DataFrame:
    """A row an axis, scale, benchmark and line, or two lines (``less`` is subtracted)."""
    rows = [
        {"axis": name, "scale": one.scale, "benchmark": one.curve.benchmark, **dict(one.curve.line.setting.items)}
        | {"variant": one.curve.line.variant, "less": None if one.less is None else one.less.line.variant}
        | {key: getattr(one, key) for key in ("value", "low", "high", "first", "last", "seeds")}
        for name in found.areas
        for one in [*found.areas[name], *found.differences[name]]
    ]
    return pd.DataFrame(rows)


def laws_markdown(found: Dynamics) -> str:
    """A row a benchmark and line; in place of numbers, why there is no law."""
    head = ["benchmark", "front-end", "asymptote a", "exponent c", "leaves chance at", f"at {FORECAST:g}x tokens", "residual"]
    head += ["the last point from the others", "without two", "without three"]
    rows = []
    for law in found.laws:
        cells = [f"not identifiable: {law.unknown}", "", "", ""]
        if not law.unknown:
            forms: tuple[Callable[[Any], str], ...] = (percent, "{:.2g}".format, short, percent)
            values = (law.asymptote, law.exponent, law.start, law.forecast)
            cells = [with_interval(value, form) for value, form in zip(values, forms, strict=True)]
        errors = ["-" if one.error is None else percent(one.error, "+") for one in law.held_out]
        errors += [""] * (3 - len(errors))
        rows.append([benchmark_label(law.curve.benchmark), found.names[law.curve.line], *cells, percent(law.residual), *errors])
    identified = sum(not law.unknown for law in found.laws)
    errors_of = [abs(law.held_out[0].error) for law in found.laws if law.held_out and law.held_out[0].error is not None]
    near = sum(error < RESIDUAL for error in errors_of)
    note = (
        f"accuracy(N) = a - b N^-c, never below chance and a at most 100%, least squares on the mean over seeds; {identified} of "
        f"{len(found.laws)} curves have such a law. In percent, with 95% bootstrap intervals ({found.seeds}). Not identifiable: "
        f"its interval ends at chance, fewer than {ABOVE} points follow its take-off, the residual (root mean square) is above "
        f"{100 * RESIDUAL:g} points, the asymptote sits at 100% while the curve is not there, or its interval is wider than "
        f"{100 * WIDEST:g} points. How far laws extrapolate: the last columns fit without the last one, two or three points and "
        "predict the last (predicted minus measured, points; - where too few are left). Without the last, "
        f"{near} of {len(errors_of)} predictions are within {100 * RESIDUAL:g} points."
    )
    return f"{markdown_table(head, rows, left=2)}\n\n{note}\n"


def laws_table(found: Dynamics) -> pd.DataFrame:
    """A row a benchmark and line, with the numbers of fits that are not identifiable too: ``unknown`` says so."""
    rows = []
    for law in found.laws:
        row: dict[str, Any] = {
            "benchmark": law.curve.benchmark,
            **dict(law.curve.line.setting.items),
            "variant": law.curve.line.variant,
        }
        for name in ("asymptote", "exponent", "start", "forecast"):
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), getattr(law, name), strict=True))
        row |= {"factor": law.factor, "residual": law.residual}
        row |= {f"error_without_{count}": one.error for count, one in enumerate(law.held_out, start=1)}
        rows.append(row | {"last": law.last, "seeds": law.seeds, "unknown": law.unknown})
    return pd.DataFrame(rows)


def _of(one: Crossing) -> tuple[str, frozenset[Line]]:
    return one.benchmark, frozenset({one.leader, one.other})


def _elsewhere(found: Dynamics, here: Crossing, on: dict[tuple[str, frozenset[Line]], Crossing], axis: Axis) -> str:
    """The crossing of the same pair on another axis, with the leader there where it is the other one."""
    there = on.get(_of(here))
    if there is None or there.low is None:
        return ""
    text = _passing(there, axis)
    return text if there.leader is here.leader else f"{found.names[there.leader]} leads: {text}"


def _passing(one: Crossing, axis: Axis) -> str:
    return f"**{passing(one, axis)}**" if one.clear else passing(one, axis)


def _column(one: Area) -> str:
    name = one.curve.line.look.label
    return name if one.less is None else f"{name} - {one.less.line.look.label}"


WRITTEN = (
    ("crossings", crossings_markdown, crossings_table),
    ("areas", areas_markdown, areas_table),
    ("power_laws", laws_markdown, laws_table),
)
