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
from tunalab.analysis.learning import SCALES, Area, area, covers, learning_curves
from tunalab.analysis.power_law import ABOVE, FORECAST, RESIDUAL, WIDEST, PowerLaw, power_laws
from tunalab.analysis.statistics import ALPHA, benjamini_hochberg
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
    shown = lines(records)
    on = [axis for axis in AXES.values() if moves(shown, axis)]
    found = Dynamics(
        names_of(shown), {axis.name: [] for axis in on}, {axis.name: [] for axis in on}, {axis.name: [] for axis in on}, []
    )
    names = ordered_benchmarks(benchmarks(records))
    for name in names:
        learning = learning_curves(shown, name)
        found.laws.extend(power_laws(learning, _TOKENS))
        for axis in on:
            found.crossings[axis.name] += crossings(learning, axis)
            found.areas[axis.name] += [one for curve in learning for one in area(curve, axis)]
            found.differences[axis.name] += [one for b, a in pairs(learning) for one in area(a, axis, less=b)]
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
        "lead at the end",
        *(axis.label for axis in others),
    ]
    rows = []
    elsewhere = [{_of(one): one for one in found.crossings[axis.name]} for axis in others]
    for one in found.crossings["tokens"]:
        label, leader, other = benchmark_label(one.benchmark), found.names[one.leader], found.names[one.other]
        if one.level:
            rows.append([label, f"{leader}, {other}: level", *[""] * (3 + len(others))])
            continue
        ahead = with_interval(one.end.bounds, partial(percent, sign="+"))
        there = [_elsewhere(found, one, on, axis) for on, axis in zip(elsewhere, others, strict=True)]
        rows.append([label, leader, other, _passing(one, _TOKENS), ahead, *there])
    count = sum(one.clear for one in found.crossings["tokens"])
    note = (
        f"Of {len(found.crossings['tokens'])} pairs of curves {count} cross clearly (bold): at some place before it the other "
        "leads, and at some place behind it the leader, by a difference whose 95% interval excludes 0, both curves above "
        "chance there. Any other crossing may be two curves that touch by chance. Leader: ahead at the end. At tokens: where "
        "its mean curve passed the other's for the last time, straight over the logarithm between evaluations; in brackets "
        "the places at which no lead is certain, open (<, >) where there is no certain lead on that side. Intervals: "
        f"{found.seeds}, in points. No correction for the number of pairs. Other axes: crossings.csv."
    )
    return f"{markdown_table(head, rows, left=3)}\n\n{note}\n"


def crossings_table(found: Dynamics) -> pd.DataFrame:
    """A row an axis, benchmark and pair. ``low`` is -inf and ``high`` is inf where the interval is open."""
    rows = [
        {"axis": name, "benchmark": one.benchmark, **dict(one.leader.setting.items)}
        | {"leader": one.leader.variant, "other": one.other.variant, "at": one.at, "low": one.low, "high": one.high}
        | {"lead": one.end.value, "lead_low": one.end.low, "lead_high": one.end.high, "p": one.end.p}
        | {"changes": one.changes, "clear": one.clear, "first": one.first, "last": one.last, "seeds": one.end.seeds, "n": one.end.n}
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
        adjusted = benjamini_hochberg([None if one.less is None else one.estimate.p for one in every])
        for one, q in zip(every, adjusted, strict=True):
            text = with_interval(one.estimate.bounds, partial(percent, sign="+" if one.less else ""), q is not None and q < ALPHA)
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
        f"Mean accuracy in percent from {short(first)} to {short(last)} tokens (the area under the mean curve over the length "
        f"of the axis) and differences, with 95% intervals of the areas by seed ({found.seeds}). Bold: 0 is excluded after "
        f"Benjamini and Hochberg's correction for the differences of a table (q < {ALPHA}). Other axes: areas.csv; curves end "
        "at different places there, and only differences, over what they share, compare."
    )
    return "\n".join([*parts, note]) + "\n"


def areas_table(found: Dynamics) -> pd.DataFrame:
    """A row an axis, scale, benchmark and line, or two lines (``less`` is subtracted)."""
    rows = [
        {"axis": name, "scale": one.scale, "benchmark": one.curve.benchmark, **dict(one.curve.line.setting.items)}
        | {"variant": one.curve.line.variant, "less": None if one.less is None else one.less.line.variant}
        | {key: getattr(one.estimate, key) for key in ("value", "low", "high", "p", "seeds")}
        | {"first": one.first, "last": one.last}
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
        errors = [
            f"{'-' if one.error is None else percent(one.error, '+')} / "
            f"{'-' if one.logistic is None else percent(one.logistic, '+')}"
            for one in law.held_out
        ]
        errors += [""] * (3 - len(errors))
        rows.append([benchmark_label(law.curve.benchmark), found.names[law.curve.line], *cells, percent(law.residual), *errors])
    identified = sum(not law.unknown for law in found.laws)
    note = (
        f"accuracy(N) = a - b N^-c, never below chance and a at most 100%, least squares on the mean over seeds; {identified} "
        f"of {len(found.laws)} curves have such a law. In percent, with 95% intervals of Student's t over the laws of single "
        f"seeds. Not identifiable: its interval ends at chance, fewer than {ABOVE} points follow its take-off, it does not "
        "predict points that it was not fitted to better than a logistic curve over log N does (paired by seed, one-sided at "
        f"5%), the residual (root mean square) is above {100 * RESIDUAL:g} points, the asymptote sits at 100% while the curve "
        f"is not there, or its interval is wider than {100 * WIDEST:g} points. The last columns fit without the last one, two "
        "or three points and predict the last: predicted minus measured, points, by the law / by the logistic curve (- where "
        "too few are left)."
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
        for count, one in enumerate(law.held_out, start=1):
            row |= {f"error_without_{count}": one.error, f"logistic_without_{count}": one.logistic}
        rows.append(row | {"last": law.last, "seeds": law.seeds, "unknown": law.unknown})
    return pd.DataFrame(rows)


def _of(one: Crossing) -> tuple[str, frozenset[Line]]:
    return one.benchmark, frozenset({one.leader, one.other})


def _elsewhere(found: Dynamics, here: Crossing, on: dict[tuple[str, frozenset[Line]], Crossing], axis: Axis) -> str:
    """The crossing of the same pair on another axis, with the leader there where it is the other one."""
    there = on.get(_of(here))
    if there is None or there.level:
        return ""
    text = _passing(there, axis)
    return text if there.leader is here.leader else f"{found.names[there.leader]} leads: {text}"


def _passing(one: Crossing, axis: Axis) -> str:
    return f"**{passing(one, axis)}**" if one.clear else passing(one, axis)


def _column(one: Area) -> str:
    name = one.curve.line.label
    return name if one.less is None else f"{name} - {one.less.line.label}"


WRITTEN = (
    ("crossings", crossings_markdown, crossings_table),
    ("areas", areas_markdown, areas_table),
    ("power_laws", laws_markdown, laws_table),
)
