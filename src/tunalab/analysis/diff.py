"""How two runs differ: in what they are, in what they consumed, and in what came out."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tunalab.analysis.fairness import (
    TOLERANCE,
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
from tunalab.analysis.statistics import Difference, paired_difference
from tunalab.records.labels import OF_VARIANT, Value, benchmark_label, flat_settings, ordered_benchmarks, value_label
from tunalab.records.record import Point, Record
from tunalab.settings.loading import NOT_IDENTITY
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
    gap: Difference | None = None


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
    def asked(self) -> list[SettingRow]:
        """Settings besides the front-end's that decide a result."""
        return [row for row in self.settings if row.mark in ("", FILLED)]

    @property
    def breaks(self) -> list[Unequal]:
        """What makes it more than a comparison of one thing; of one variant, one setting may be that thing."""
        return [one for one in self.unequal if one.breaks and not (self._one_setting and one.asked)]

    @property
    def _same_variant(self) -> bool:
        return self.records[0].run.variant == self.records[1].run.variant

    @property
    def _one_setting(self) -> bool:
        return self._same_variant and len(self.asked) == 1

    def verdict(self) -> str:
        seeds = self.records[0].run.seed != self.records[1].run.seed
        many = self._same_variant and len(self.asked) > 1
        if self._same_variant and not self.asked:
            what = (
                "one run under two seeds: what differs is luck"
                if seeds
                else "the same run twice: nothing differs in what decides it"
            )
            return f"SAME SETTINGS: {what}"
        alone = f"but for {self.asked[0].key}" if self._one_setting else "but for the front-end"
        if self.breaks or many:
            return "NOT FAIR: the runs are not equal " + ("but for one setting" if self._same_variant else alone)
        doubts = [one.what for one in self.unequal if not one.breaks]
        return f"FAIR: the runs are equal {alone}" + (f"; doubts: {', '.join(doubts)}" if doubts else "")


def diff(names: tuple[str, str], a: Record, b: Record) -> Diff:
    """Compare two records; defaults of today's code stand in for settings that a record is too old to have."""
    flat_a, flat_b = flat_settings(a), flat_settings(b)
    keys = list(dict.fromkeys([*flat_a, *flat_b]))
    rows = [_setting(key, flat_a.get(key), flat_b.get(key), a, b) for key in keys if flat_a.get(key) != flat_b.get(key)]
    for key in NOT_IDENTITY:
        if key != "tracking" and key in a.config and key in b.config and a.config[key] != b.config[key]:
            rows.append(SettingRow(key, json.dumps(a.config[key]), json.dumps(b.config[key]), NO_RESULT))
    common = _last_common(a, b)
    accuracies, others = ([], []) if common is None else (_accuracies(a, b, *common), _others(*common))
    tokens = None if common is None else max(point.tokens for point in common)
    # A name may be the same in two folders: inequalities name the runs as they were called.
    called = [replace(record, run=replace(record.run, name=name)) for name, record in zip(names, (a, b), strict=True)]
    return Diff(names, (a, b), rows, len(keys) - len(rows), unequal(called), tokens, accuracies, others)


def _setting(key: str, a: Value, b: Value, first: Record, second: Record) -> SettingRow:
    if key.startswith(OF_VARIANT):
        return SettingRow(key, a, b, FRONT_END if first.run.variant != second.run.variant else "")
    old = any(not _holds(record.config, key) for record in (first, second))
    return SettingRow(key, a, b, FILLED if old else "")


def _holds(config: dict[str, Any], key: str) -> bool:
    node: Any = config
    for word in key.split("."):
        if not isinstance(node, dict) or word not in node:
            return key == "stages"
        node = node[word]
    return True


def _last_common(a: Record, b: Record) -> tuple[Point, Point] | None:
    """The last pair of points at equal tokens, or nearly."""
    pairs = [(p, q) for p in a.points for q in b.points if abs(p.tokens - q.tokens) <= TOLERANCE * max(p.tokens, q.tokens)]
    return max(pairs, key=lambda pair: (min(point.tokens for point in pair), -abs(pair[0].tokens - pair[1].tokens)), default=None)


def _accuracies(a: Record, b: Record, at_a: Point, at_b: Point) -> list[Compared]:
    # All runs are asked the same questions, so runs of two seeds are paired by question too.
    other = replace(b, run=replace(b.run, seed=a.run.seed))
    rows = []
    for name in ordered_benchmarks(at_a.benchmarks.keys() & at_b.benchmarks.keys()):
        gap = paired_difference([a], [other], name, at_a.tokens)
        rows.append(Compared(benchmark_label(name), at_a.benchmarks[name].accuracy, at_b.benchmarks[name].accuracy, gap))
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
    told = [one for one in found.unequal if not one.breaks or one in found.breaks]
    rows = [
        [
            f"  {'breaks' if one.breaks else 'doubt'}",
            one.what,
            " | ".join(_value(one, name, found) for name in found.names),
            one.why,
        ]
        for one in told
    ]
    return "\n".join(lines) + (f"\n{columns(rows, left=4)}" if rows else "")


def _value(one: Unequal, name: str, found: Diff) -> str:
    """What a run has; settings and seeds are told by variant."""
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
    parts = used_components(a) | used_components(b)
    for part in parts:
        rows.append([f"component {part}", *(used_components(record).get(part, "not used") for record in (a, b))])
    code = [revision(record) for record in (a, b)]
    rows += [["code", *code], ["machine", machine(a), machine(b)], ["precision", precision(a), precision(b)]]
    rows.append(["threads", *(str(record.environment.get("threads")) for record in (a, b))])
    rows += [
        [name, str(versions(a).get(name)), str(versions(b).get(name))]
        for name in dict.fromkeys([*versions(a), *versions(b)])
        if versions(a).get(name) != versions(b).get(name)
    ]
    order = data_order(a), data_order(b)
    rows.append(["data order", *order])
    table = columns(rows, left=3)
    if versions(a) == versions(b):
        table += "\nthe same versions: " + ", ".join(f"{name} {version}" for name, version in versions(a).items())
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
            gap = row.gap
            told = (
                ["", "", ""] if gap is None else [_percent(gap.mean, "+"), f"[{_percent(gap.low, '+')}, {_percent(gap.high, '+')}]"]
            )
            sign = "" if gap is None or not gap.excludes_zero else "a ahead" if gap.mean > 0 else "b ahead"
            rows.append([row.name, _percent(row.a), _percent(row.b), *told[:2], sign])
        paired = all(row.gap is None or row.gap.by_item for row in found.accuracies)
        how = "paired question by question" if paired else "from counts, not paired (outcomes are not on record)"
        text.append(f"at {found.tokens:,} tokens\n{columns(rows)}")
        text.append(
            f"Intervals: bootstrap over questions, {how}; they know nothing of other seeds. Of twenty ties one leads by luck."
        )
    if found.others:
        rows = [["held out", "a", "b", "a - b"]]
        rows += [[row.name, f"{row.a:.4g}", f"{row.b:.4g}", f"{row.a - row.b:+.4g}"] for row in found.others]
        text.append(columns(rows))
        if _spaces(found.records):
            text.append("Flow losses are of other target spaces and do not compare; PSNR is measured in pixels and does.")
    return "\n".join(text)


def _spaces(records: Sequence[Record]) -> bool:
    """Whether the runs generate in different spaces: pixels, or the latents of one VAE or another."""
    return len({record.config["frontend"].get("vae") for record in records}) > 1


def _ratio(a: float, b: float) -> str:
    return f"{b / a:.3g}" if a else ""


def _percent(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.1f}"


def _shown(value: Value) -> str:
    return "''" if value == "" else value_label(value)
