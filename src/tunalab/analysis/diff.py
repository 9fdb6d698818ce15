"""How two runs differ: in what they are, in what they consumed, and in what came out."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from tunalab.analysis.curves import TOLERANCE
from tunalab.analysis.fairness import (
    Unequal,
    counts_agree,
    data_order,
    machine,
    precision,
    revision,
    unequal,
    used_components,
    versions,
)
from tunalab.analysis.statistics import Estimate, of_two_runs
from tunalab.analysis.written import percent, with_interval
from tunalab.records.labels import (
    Value,
    benchmark_label,
    changes_results,
    flat_settings,
    flat_texts,
    front_end_keys,
    ordered_benchmarks,
    value_label,
)
from tunalab.records.record import Point, Record, questions_of
from tunalab.terminal import columns

FRONT_END, NO_RESULT, FILLED = "front-end", "changes no result", "today's default"


@dataclass(frozen=True)
class SettingRow:
    """A setting in which two runs differ; ``mark``: what to think of it, empty where it decides what is computed."""

    key: str
    a: Value
    b: Value
    mark: str


@dataclass(frozen=True)
class Compared:
    """A number of both runs at the last point that they share, and, for accuracies, a minus b with its interval."""

    name: str
    a: float
    b: float
    gap: Estimate | None = None


@dataclass(frozen=True)
class Diff:
    """``equal``: how many settings are equal; ``tokens``: of the last common point, None where there is none."""

    names: tuple[str, str]
    records: tuple[Record, Record]
    settings: list[SettingRow]
    equal: int
    unequal: list[Unequal]
    tokens: int | None
    accuracies: list[Compared]
    others: list[Compared]

    @property
    def same_variant(self) -> bool:
        return self.records[0].run.variant == self.records[1].run.variant

    @property
    def varied(self) -> list[str]:
        """Settings besides the front-end's that decide a result."""
        return [row.key for row in self.settings if row.mark in ("", FILLED)]

    @property
    def breaks(self) -> list[Unequal]:
        """What makes it more than a comparison of one thing; of one variant, one setting may be that thing."""
        alone = self.same_variant and len(self.varied) == 1
        return [one for one in self.unequal if one.breaks and not (alone and one.varied)]

    def verdict(self) -> str:
        if self.same_variant and not self.varied:
            if self.records[0].run.seed == self.records[1].run.seed:
                return "SAME SETTINGS: the same run twice: nothing differs in what decides it"
            return "SAME SETTINGS: one run under two seeds: what differs is luck"
        if self.breaks or (self.same_variant and len(self.varied) > 1):
            return f"NOT FAIR: the runs are not equal but for {'one setting' if self.same_variant else 'the front-end'}"
        doubts = ", ".join(one.what for one in self.unequal if not one.breaks)
        alone = self.varied[0] if self.same_variant else "the front-end"
        return f"FAIR: the runs are equal but for {alone}" + (f"; doubts: {doubts}" if doubts else "")


def diff(names: tuple[str, str], a: Record, b: Record) -> Diff:
    """Compare two records; defaults of today's code stand in for settings that a record is too old to have."""
    if names[0] == names[1]:  # one run, in two folders
        names = f"{names[0]} (a)", f"{names[1]} (b)"
    flat_a, flat_b = flat_settings(a), flat_settings(b)
    keys = list(dict.fromkeys([*flat_a, *flat_b]))
    differ = [key for key in keys if flat_a.get(key) != flat_b.get(key)]
    own = front_end_keys([flat_a, flat_b])
    rows = [SettingRow(key, flat_a.get(key), flat_b.get(key), _mark(key, a, b, own)) for key in differ]
    all_a, all_b = flat_texts(a.config), flat_texts(b.config)
    for key in all_a:
        if key in all_b and all_a[key] != all_b[key] and not changes_results(key) and not key.startswith("tracking."):
            rows.append(SettingRow(key, all_a[key], all_b[key], NO_RESULT))
    common = _last_common(a, b)
    unlike = {name for name, asked in questions_of([a, b]).items() if len(asked) > 1}
    accuracies, others = ([], []) if common is None else (_accuracies(*common, unlike), _others(*common))
    tokens = None if common is None else max(point.tokens for point in common)
    # A name may be the same in two folders: inequalities name the runs as they were called.
    called = [replace(record, run=replace(record.run, name=name)) for name, record in zip(names, (a, b), strict=True)]
    return Diff(names, (a, b), rows, len(keys) - len(differ), unequal(called), tokens, accuracies, others)


def _mark(key: str, a: Record, b: Record, of_front_end: set[str]) -> str:
    if key in of_front_end:
        return FRONT_END if a.run.variant != b.run.variant else ""
    return "" if key == "stages" or all(_holds(record.config, key) for record in (a, b)) else FILLED


def _holds(config: Any, key: str) -> bool:
    word, _, rest = key.partition(".")
    return isinstance(config, dict) and word in config and (not rest or _holds(config[word], rest))


def _last_common(a: Record, b: Record) -> tuple[Point, Point] | None:
    """The last pair of points at equal tokens, or nearly."""
    pairs = [(p, q) for p in a.points for q in b.points if abs(p.tokens - q.tokens) <= TOLERANCE * max(p.tokens, q.tokens)]
    return max(pairs, key=lambda pair: (min(point.tokens for point in pair), -abs(pair[0].tokens - pair[1].tokens)), default=None)


def _accuracies(at_a: Point, at_b: Point, unlike: set[str]) -> list[Compared]:
    # All runs answer the same questions, so runs of two seeds are paired by question too.
    rows = []
    for name in ordered_benchmarks((at_a.benchmarks.keys() & at_b.benchmarks.keys()) - unlike):
        one, other = at_a.benchmarks[name], at_b.benchmarks[name]
        rows.append(Compared(benchmark_label(name), one.accuracy, other.accuracy, of_two_runs((one, other))))
    return rows


def _others(at_a: Point, at_b: Point) -> list[Compared]:
    losses = [Compared(f"loss {name}", at_a.losses[name], at_b.losses[name]) for name in at_a.losses if name in at_b.losses]
    psnr = at_a.one_step_psnr
    return losses + [
        Compared(f"one-step PSNR at t={t}, dB", psnr[t], at_b.one_step_psnr[t]) for t in psnr if t in at_b.one_step_psnr
    ]


def to_plain(found: Diff) -> dict[str, Any]:
    """For programs: everything but the records themselves."""
    plain = {item: value for item, value in asdict(replace(found, records=())).items() if item != "records"}  # type: ignore[arg-type]
    return {"verdict": found.verdict(), **plain}


def to_text(found: Diff) -> str:
    sections = [_head(found), _settings_text(found), _made_text(found), _budget_text(found), _results_text(found)]
    return "\n\n".join(section for section in sections if section)


def _head(found: Diff) -> str:
    lines = []
    for letter, name, record in zip("ab", found.names, found.records, strict=True):
        run = record.run
        state = "finished" if run.finished else "NOT FINISHED"
        lines.append(f"{letter}  {name}: {record.look.label}, seed {run.seed}, experiment {run.experiment}, {state}")
    lines += ["", found.verdict()]
    rows = [
        [
            f"  {'breaks' if one.breaks else 'doubt'}",
            one.what,
            " | ".join(_value(one, name, found) for name in found.names),
            one.why,
        ]
        for one in found.unequal
        if not one.breaks or one in found.breaks
    ]
    return "\n".join(lines) + (f"\n{columns(rows, left=4)}" if rows else "")


def _value(one: Unequal, name: str, found: Diff) -> str:
    """What a run has; settings and seeds stand by variant."""
    record = found.records[found.names.index(name)]
    for value, holders in one.values.items():
        if name in holders or any(holder.split(" ")[0] == record.run.variant for holder in holders):
            return value
    return "-"


def _settings_text(found: Diff) -> str:
    rows = [["settings that differ", "a", "b", ""]]
    rows += [[row.key, _shown(row.a), _shown(row.b), row.mark] for row in found.settings]
    table = columns(rows, left=4) if found.settings else "settings: none differs"
    return f"{table}\n{found.equal} settings are equal"


def _made_text(found: Diff) -> str:
    a, b = found.records
    rows = [["made by", "a", "b"]]
    components = [used_components(record) for record in (a, b)]
    for part in components[0] | components[1]:
        rows.append([f"component {part}", *(used.get(part, "not used") for used in components)])
    rows += [["code", revision(a), revision(b)], ["machine", machine(a), machine(b)], ["precision", precision(a), precision(b)]]
    rows.append(["threads", *(str(record.environment.get("threads")) for record in (a, b))])
    held = [versions(record) for record in (a, b)]
    differ = [name for name in dict.fromkeys([*held[0], *held[1]]) if held[0].get(name) != held[1].get(name)]
    rows += [[name, *(str(one.get(name)) for one in held)] for name in differ]
    order = data_order(a), data_order(b)
    rows.append(["data order", *order])
    table = columns(rows, left=3)
    if not differ:
        table += "\nthe same versions: " + ", ".join(f"{name} {version}" for name, version in held[0].items())
    if order[0] == order[1]:
        counts = "steps and images agree at equal tokens" if counts_agree([a, b]) else "BUT steps or images differ at equal tokens"
        table += f"\nthe same documents in the same order, by the settings; {counts}"
    return table


def _budget_text(found: Diff) -> str:
    a, b = found.records
    rows = [["consumed", "a", "b", "b / a"]]
    for name, label, scale in (
        ("tokens", "tokens", 1),
        ("steps", "steps", 1),
        ("images", "images", 1),
        ("flops", "training TFLOPs", 1e-12),
        ("seconds", "minutes of training", 1 / 60),
        ("peak_memory_bytes", "peak memory, GB", 1e-9),
    ):
        values = [getattr(record.totals, name) * scale for record in (a, b)]
        rows.append([label, *(f"{value:,.0f}" if scale == 1 else f"{value:,.2f}" for value in values), _ratio(*values)])
    for part in a.parameters | b.parameters:
        counts = [record.parameters.get(part, 0) for record in (a, b)]
        rows.append([f"parameters: {part.replace('_', ' ')}", *(f"{count:,}" for count in counts), _ratio(*counts)])
    return columns(rows)


def _results_text(found: Diff) -> str:
    if found.tokens is None:
        return "results: no point at equal tokens"
    text = []
    if found.accuracies:
        rows = [["accuracy, %", "a", "b", "a - b", "95% interval", ""]]
        for row in found.accuracies:
            interval, ahead = ["", ""], ""
            if gap := row.gap:
                interval = with_interval(gap.bounds, partial(percent, sign="+")).split(" ", 1)
                ahead = "" if not gap.excludes_zero else "a ahead" if gap.value > 0 else "b ahead"
            rows.append([row.name, percent(row.a), percent(row.b), *interval, ahead])
        paired = all(row.gap is None or row.gap.by_item for row in found.accuracies)
        how = "paired question by question" if paired else "from counts, not paired (outcomes are not on record)"
        text.append(f"at {found.tokens:,} tokens\n{columns(rows)}")
        text.append(
            f"Intervals: 1.96 standard errors over questions, {how}; they say nothing of other seeds. "
            "Of twenty ties one leads by luck."
        )
    if found.others:
        rows = [["held out", "a", "b", "a - b"]]
        rows += [[row.name, f"{row.a:.4g}", f"{row.b:.4g}", f"{row.a - row.b:+.4g}"] for row in found.others]
        text.append(columns(rows))
        if len({record.config["frontend"].get("vae") for record in found.records}) > 1:
            text.append("Flow losses are of other target spaces and do not compare; PSNR is measured in pixels and does.")
    return "\n".join(text)


def _ratio(a: float, b: float) -> str:
    return f"{b / a:.3g}" if a else ""


def _shown(value: Value) -> str:
    return "''" if value == "" else value_label(value)
