"""What the runs consumed, where they were interrupted, and with which versions they were made."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tunalab.results.analysis.fairness import machine, precision, revision, used_components, versions
from tunalab.results.labels import ordered_variants, variant_label
from tunalab.results.records import Record, usable
from tunalab.results.report.document import Section, table
from tunalab.results.report.equality import missing, share
from tunalab.results.settings import told_apart


def budget(records: Sequence[Record]) -> Section:
    """A row a line, means over seeds; shares of the least where lines differ, so that nobody has to divide."""
    finished = usable(records)
    arms: dict[tuple[str, str], list[Record]] = {}
    for record, setting in zip(finished, told_apart(finished), strict=True):
        arms.setdefault((record.run.variant, setting.label), []).append(record)
    order = ordered_variants(variant for variant, _ in arms)
    columns: dict[str, Callable[[Record], float]] = {
        "tokens": lambda r: r.totals.tokens,
        "steps": lambda r: r.totals.steps,
        "images": lambda r: r.totals.images,
        "training FLOPs": lambda r: r.totals.flops,
        "trainable parameters": lambda r: r.parameters.get("trainable", 0),
        "all parameters": lambda r: sum(count for part, count in r.parameters.items() if part != "trainable"),
    }
    held = {name: {arm: _mean([of(record) for record in group]) for arm, group in arms.items()} for name, of in columns.items()}
    rows = []
    for arm in sorted(arms, key=lambda arm: order.index(arm[0])):
        name = f"{variant_label(arm[0])}{f', {arm[1]}' if arm[1] else ''}"
        rows.append([name, str(len(arms[arm])), *(_beside_least(values[arm], values.values()) for values in held.values())])
    note = "Means over seeds of finished runs; in brackets: times the least. Padding is no token; all parameters: with frozen ones."
    return Section("Budget", f"{table(['', 'seeds', *columns], rows)}\n\n{note}")


def _beside_least(value: float, values: Iterable[float]) -> str:
    least = min(values)
    shown = f"{value:.2e}" if value >= 1e12 else f"{value:,.0f}"
    return f"{shown} (x {value / least:.2f})" if least and value > 1.005 * least else shown


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def cost(records: Sequence[Record]) -> Section:
    """A row a run; hours of cores or GPUs add up by machine, as hours of different machines do not."""
    head = ["run", "on", "training FLOPs", "minutes", "core- or GPU-minutes", "tokens/s", "GFLOP/s", "peak memory, GB"]
    rows: list[list[str]] = []
    sums: dict[str, list[float]] = {}
    for record in records:
        totals, units = record.totals, _units(record)
        minutes = totals.seconds / 60
        held = sums.setdefault(machine(record), [0.0, 0.0, 0.0])
        for index, value in enumerate((totals.flops, minutes, minutes * units)):
            held[index] += value
        rate = (
            [f"{totals.tokens / totals.seconds:,.0f}", f"{totals.flops / totals.seconds / 1e9:,.1f}"]
            if totals.seconds
            else ["", ""]
        )
        rows.append(
            [
                record.run.name,
                f"{units} x {machine(record)}",
                f"{totals.flops:.2e}",
                f"{minutes:.1f}",
                f"{minutes * units:.1f}",
                *rate,
            ]
            + [f"{totals.peak_memory_bytes / 1e9:.2f}"]
        )
    for name, (flops, minutes, together) in sums.items():
        rows.append([f"**all on {name}**", "", f"{flops:.2e}", f"{minutes:.1f}", f"{together:.1f}", "", "", ""])
    note = "Training alone, without evaluation; seconds add up over interruptions. FLOPs are the model's, without recomputation."
    return Section("Cost", f"{table(head, rows, left=2)}\n\n{note}")


def _units(record: Record) -> int:
    """GPUs, or CPU threads."""
    made = record.environment
    processes = int(made.get("processes", 1))
    return processes if made.get("accelerator") else processes * int(made.get("threads") or 1)


def failures(records: Sequence[Record], planned: Mapping[str, Sequence[str]] | None = None) -> Section:
    """Runs that are unfinished or, of ``planned`` (sweep -> names of all its runs), not here; and those that were started more than
    once, with how that ended.
    """
    unfinished = [record for record in records if not record.run.finished]
    shares = [share(records, sweep, names) for sweep, names in (planned or {}).items()]
    lines = [
        f"{len(records) - len(unfinished)} of {len(records)} runs on record are finished{''.join(f'; {one}' for one in shares)}."
    ]
    away = dict.fromkeys(name for names in (planned or {}).values() for name in missing(records, names))
    if away:
        lines.append(f"**Not here, or not finished:** {', '.join(away)}.")
    if unfinished:
        lines.append("**Not finished, and left out of means and curves:**")
        lines.append("\n".join(f"- {record.run.name}: stands at {record.totals.tokens:,} tokens" for record in unfinished))
    known = [record for record in records if record.attempts]
    again = [record for record in known if record.attempts.get("starts", 1) > 1 or len(record.attempts) > 1]
    if again:
        kinds = list(dict.fromkeys(kind for record in again for kind in record.attempts))
        rows = [[record.run.name, *(str(record.attempts.get(kind, 0)) for kind in kinds)] for record in again]
        lines.append(table(["run", *kinds], rows))
    if known and not again:
        lines.append(f"{len(known)} of {len(records)} runs were started once and went through.")
    if len(known) < len(records):
        lines.append(f"No history of starts is on record for {len(records) - len(known)} of {len(records)} runs.")
    return Section("Failures and interruptions", "\n\n".join(lines))


def made(records: Sequence[Record]) -> Section:
    """Code, versions, machines and components, a row for each that occurs."""
    rows: dict[tuple[str, str], list[str]] = {}

    def note(what: str, value: str, record: Record) -> None:
        rows.setdefault((what, value), []).append(record.run.name)

    for record in records:
        environment = record.environment
        note("code", revision(record), record)
        note("settings revision", str(record.config.get("revision", 1)), record)
        note("versions", ", ".join(f"{name} {version}" for name, version in versions(record).items()), record)
        note("machine", f"{machine(record)}, {environment.get('cores')} cores seen, {environment.get('threads')} thread(s)", record)
        note("precision", precision(record), record)
        for part, folder in used_components(record).items():
            note(f"component {part}", f"{folder}{_quality(record.components[part])}", record)
    shown = [
        [
            what,
            value,
            "all" if len(names) == len(records) else f"{len(names)}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}",
        ]
        for (what, value), names in rows.items()
    ]
    return Section("Versions", table(["what", "which", "runs"], shown, left=3), folded=True)


def _quality(component: Mapping[str, Any]) -> str:
    """The held-out measures of a component that are numbers of quality."""
    quality = component.get("quality")
    held = {name: value for name, value in (quality or {}).items() if isinstance(value, float) and name != "seconds"}
    return f" ({', '.join(f'{name} {value:g}' for name, value in held.items())})" if held else ""
