"""The sections of a report on what was run: do the runs compare, what do they ask, settings, budget, cost, failures, commands."""

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunalab.analysis.curves import arms, names_of
from tunalab.analysis.fairness import Unequal, machine, precision, revision, unequal, used_components, versions
from tunalab.analysis.report_section import Section
from tunalab.analysis.written import markdown_table
from tunalab.errors import UserError
from tunalab.records.labels import (
    Legend,
    changes_results,
    flat_settings,
    flat_texts,
    front_end_keys,
    value_label,
)
from tunalab.records.record import Record, usable
from tunalab.settings.layers import own_or_shipped
from tunalab.settings.loading import config_hash, from_plain, load_config, to_plain

SHARED = "tokens, seeds, data order, components, code, versions, precision, machine and threads"


def verdict(records: Sequence[Record], planned: Mapping[str, Sequence[str]] | None = None) -> tuple[str, str]:
    """The level (broken | varied | doubt | equal) and the Markdown that says why. ``planned``: sweep -> names of all its runs."""
    differences = unequal(records)
    kinds: dict[str, list[Unequal]] = {"broken": [], "varied": [], "doubt": []}
    for one in differences:
        kinds["doubt" if not one.breaks else "varied" if one.varied else "broken"].append(one)
    part = [share(records, sweep, names) for sweep, names in (planned or {}).items() if missing(records, names)]
    level = next((name for name, inside in kinds.items() if inside), "doubt" if part else "equal")
    count = "one thing" if len(kinds.get(level, ())) == 1 else f"{len(kinds.get(level, ()))} things"
    head = {
        "broken": f"**NOT EQUAL: {count} that results depend on differ between runs.** Differences below may be theirs.",
        "varied": f"**{count.capitalize()} change with the settings that are varied**: part of the question, or not?",
        "doubt": "**Equal in all that decides a result, but not beyond doubt.**",
        "equal": f"**Equal**: all runs share {SHARED}.",
    }[level]
    marks = {"broken": "**breaks**", "varied": "varied", "doubt": "doubt"}
    rows = [[marks[kind], one.what, one.text(records), one.why] for kind, inside in kinds.items() for one in inside]
    table = f"\n\n{markdown_table(['', 'what', 'which runs have what', 'why it matters'], rows, left=4)}" if rows else ""
    incomplete = f"**INCOMPLETE: {'; '.join(part)}.** The others may change the results below.\n\n" if part else ""
    return level, f"{incomplete}{head}{table}\n\n{_by_front_end(records)}"


def missing(records: Sequence[Record], planned: Sequence[str]) -> list[str]:
    """Runs of a sweep that have no finished record."""
    finished = {record.run.name for record in records if record.run.finished}
    return [name for name in planned if name not in finished]


def share(records: Sequence[Record], sweep: str, planned: Sequence[str]) -> str:
    return f"{len(planned) - len(missing(records, planned))} of {len(planned)} runs of the sweep {sweep}"


def _by_front_end(records: Sequence[Record]) -> str:
    """What equal tokens do not equalise, always: no table of accuracies shows it."""
    parts = []
    for words, of in (
        ("training FLOPs", lambda r: r.totals.flops / max(1, r.totals.tokens)),
        ("trained parameters", lambda r: float(r.parameters.get("trainable", 0))),
        ("minutes", lambda r: r.totals.seconds),
    ):
        least, most = min(map(of, records)), max(map(of, records))
        if least > 0 and most > 1.02 * least:
            parts.append(f"{words} up to {most / least:.2f} times the least" + (" (a token)" if "FLOPs" in words else ""))
    return f"Runs are compared at equal tokens. Not equal at equal tokens: {', '.join(parts)}." if parts else ""


COMMAND = "Command"
CODE = f"**{COMMAND}:**\n\n```\n"


def question(records: Sequence[Record], sweeps: Sequence[str]) -> Section:
    """The headers of the sweeps' files, where none has one that of the experiment."""
    names = dict.fromkeys(record.run.experiment for record in records)
    of_sweeps, of_experiments = (
        [f"{folder}/{name}.yaml" for name in of] for folder, of in (("sweeps", sweeps), ("experiments", names))
    )
    found = {name: file for name in [*of_sweeps, *of_experiments] if (file := own_or_shipped(name))}
    files = [name for name in of_sweeps if name in found] or [name for name in of_experiments if name in found][:1]
    if not files:
        tried = ", ".join(f"`{name}`" for name in [*of_sweeps, *of_experiments])
        return Section("Question", f"No file says it (looked for: {tried}).")
    return Section("Question", "\n\n".join(f"{header(found[name])}\n\nFrom the header of `{name}`." for name in files))


def header(file: Path) -> str:
    """The comment at the top of a YAML file as Markdown: ``Key: text`` are paragraphs, an empty line begins another, commands stand
    line by line.
    """
    paragraphs: list[str] = [""]
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.startswith("# Plan: "):
            break
        text = line.removeprefix("#").strip()
        named = re.match(r"([A-Z][a-z]+(?: [a-z]+)?): +(.*)", text)
        if named and named[1] == COMMAND:
            paragraphs.append(CODE + _pasted(named[2]))
        elif named:
            paragraphs.append(f"**{named[1]}:** {named[2]}")
        elif text and paragraphs[-1].startswith(CODE):
            paragraphs[-1] += f"\n{_pasted(text)}"
        elif text:
            paragraphs[-1] = f"{paragraphs[-1]} {text}".strip()
        else:
            paragraphs.append("")
    return "\n\n".join(f"{one}\n```" if one.startswith(CODE) else _plain(one) for one in paragraphs if one)


def _pasted(command: str) -> str:
    """A remark in brackets behind a command becomes a shell's comment, so that the line can be pasted as it stands."""
    return re.sub(r"\s{2,}\((.*)\)$", r"    # \1", command)


def _plain(text: str) -> str:
    """Brackets of a comment are no Markdown; what stands between backticks and our own bold stays."""
    return text.replace("<", "\\<").replace("[", "\\[")


def settings(records: Sequence[Record]) -> Section:
    """The arms with the settings that set them apart; the front-ends' own settings; how many settings are equal."""
    legend, shown = Legend(records), arms(records)
    keys = [key for key, _ in shown[0].setting.items]
    rows = [
        [
            legend.label(line.variant),
            *(value_label(value) for _, value in line.setting.items),
            ", ".join(str(record.run.seed) for record in line.records),
        ]
        for line in shown
    ]
    parts = [markdown_table(["front-end", *(f"`{key}`" for key in keys), "seeds"], rows, left=len(keys) + 2)]
    flats = [flat_settings(record) for record in records]
    by_variant = {line.variant: flat_settings(line.records[-1]) for line in shown}
    parts_of = front_end_keys(by_variant.values())
    own = dict.fromkeys(
        key for flat in by_variant.values() for key in flat if key in parts_of and not key.startswith("components.")
    )
    differ = [key for key in own if _several(key, by_variant.values())]
    if differ:
        cells = {name: [value_label(flat.get(key)) or "-" for key in differ] for name, flat in by_variant.items()}
        rows = [[legend.label(name), *values] for name, values in cells.items()]
        parts.append("What the variants set of the front-end:")
        parts.append(markdown_table(["front-end", *(f"`{key}`" for key in differ)], rows, left=len(differ) + 1))
    same = [key for key in {key for flat in flats for key in flat} if not _several(key, flats)]
    parts.append(f"{len(same)} settings are equal in all {len(records)} runs; every record holds them all.")
    return Section("Settings that differ", "\n\n".join(parts))


def _several(key: str, flats: Iterable[Mapping[str, object]]) -> bool:
    return len({value_label(flat.get(key)) for flat in flats}) > 1


def reproduce(records: Sequence[Record], sweeps: Sequence[str], folder: Path) -> Section:
    """By what each part of the report is made again: tables and figures from the records, the records by training."""
    steps = {
        "This report": f"tunalab report --records {folder}",
        "Figures": f"tunalab figure curves --records {folder}",
        "Tables of accuracy, cost and evaluations": f"tunalab table --records {folder}",
    }
    if len(records) > 1:
        steps["How two runs differ"] = f"tunalab diff {folder / records[0].run.name}.json {folder / records[1].run.name}.json"
    if any(record.evaluation for record in records):
        steps["Evaluations of a finished model, after training"] = (
            f"tunalab evaluate runs/{sweeps[0] if len(sweeps) == 1 else records[0].run.experiment}/NAME"
        )
    here = [name for name in sweeps if own_or_shipped(f"sweeps/{name}.yaml")]
    if here:
        steps["All runs that have no record here"] = "\n".join(f"tunalab sweep {name}" for name in here)
    blocks = [f"{what}:\n\n```\n{command}\n```" for what, command in steps.items()]
    code = "; ".join(dict.fromkeys(revision(record) for record in records))
    lines = "\n".join(run_command(record) for record in records)
    made = f"The records were made at commit {code}. `git checkout` it for the code of that day"
    made += ", without what was modified, which is not on record." if any(r.environment.get("dirty") for r in records) else "."
    blocks.append(f"{made} Each run alone:\n\n```\n{lines}\n```")
    return Section("Commands", "\n\n".join(blocks))


def run_command(record: Record) -> str:
    """A call of `tunalab train` that resolves to the record's configuration under today's files; a comment where none does."""
    run = record.run
    named = own_or_shipped(f"experiments/{run.experiment}.yaml"), own_or_shipped(f"variants/{run.variant}.yaml")
    files = named[0] or Path(), named[1] or Path()  # no file: refused below
    try:
        config = from_plain(record.config)
        words = _settings(to_plain(load_config(*files, [])), to_plain(config))
        if config_hash(load_config(*files, words)) == config_hash(config):
            call = ["tunalab", "train", "--experiment", run.experiment, "--variant", run.variant, *words]
            return " ".join(shlex.quote(word) for word in call)
    except UserError as error:
        return f"# {run.name}: today's settings refuse its configuration ({error})"
    return f"# {run.name}: no settings over {run.experiment} and {run.variant} give its configuration, which its record holds"


def _settings(base: dict[str, object], config: dict[str, object]) -> list[str]:
    """``key=value`` for all in which two configurations differ, the seed always; what changes no result is left out."""
    old, new = flat_texts(base), flat_texts(config)
    differ = [key for key in new if new[key] != old.get(key) and changes_results(key) and key != "seed"]
    return [*(f"{key}={_written(new[key])}" for key in differ), f"seed={new['seed']}"]


def _written(value: object) -> str:
    """As the command line reads it back: lists are JSON already."""
    return value if isinstance(value, str) and value else json.dumps(value)


def budget(records: Sequence[Record]) -> Section:
    """A row a line, means over seeds; shares of the least where lines differ, so that nobody has to divide."""
    shown = arms(usable(records))
    columns: dict[str, Callable[[Record], float]] = {
        "tokens": lambda r: r.totals.tokens,
        "steps": lambda r: r.totals.steps,
        "images": lambda r: r.totals.images,
        "training FLOPs": lambda r: r.totals.flops,
        "trainable parameters": lambda r: r.parameters.get("trainable", 0),
        "all parameters": lambda r: sum(count for part, count in r.parameters.items() if part != "trainable"),
    }
    means = {name: [sum(map(of, line.records)) / len(line.records) for line in shown] for name, of in columns.items()}
    rows = [
        [name, str(len(line.records)), *(_beside_least(values[number], min(values)) for values in means.values())]
        for number, (line, name) in enumerate(names_of(shown).items())
    ]
    note = "Means over seeds of finished runs; in brackets: times the least. Padding is no token; all parameters: with frozen ones."
    return Section("Budget", f"{markdown_table(['', 'seeds', *columns], rows)}\n\n{note}")


def _beside_least(value: float, least: float) -> str:
    shown = f"{value:.2e}" if value >= 1e12 else f"{value:,.0f}"
    return f"{shown} (x {value / least:.2f})" if least and value > 1.005 * least else shown


def cost(records: Sequence[Record]) -> Section:
    """A row a run; hours of cores or GPUs add up by machine, as hours of different machines do not."""
    head = ["run", "on", "training FLOPs", "minutes", "core- or GPU-minutes", "tokens/s", "GFLOP/s", "peak memory, GB"]
    rows: list[list[str]] = []
    sums: dict[str, list[float]] = {}
    for record in records:
        totals, units, on = record.totals, record.units, machine(record)
        minutes = totals.seconds / 60
        sums[on] = [a + b for a, b in zip(sums.get(on, [0, 0, 0]), (totals.flops, minutes, minutes * units), strict=True)]
        rates = (totals.tokens / totals.seconds, totals.flops / totals.seconds / 1e9) if totals.seconds else ()
        rate = [f"{rates[0]:,.0f}", f"{rates[1]:,.1f}"] if rates else ["", ""]
        consumed = [f"{totals.flops:.2e}", f"{minutes:.1f}", f"{minutes * units:.1f}"]
        rows.append([record.run.name, f"{units} x {on}", *consumed, *rate, f"{totals.peak_memory_bytes / 1e9:.2f}"])
    for name, (flops, minutes, together) in sums.items():
        rows.append([f"**all on {name}**", "", f"{flops:.2e}", f"{minutes:.1f}", f"{together:.1f}", "", "", ""])
    note = "Training alone, without evaluation; seconds add up over interruptions. FLOPs are the model's, without recomputation."
    return Section("Cost", f"{markdown_table(head, rows, left=2)}\n\n{note}")


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
    recorded = [record for record in records if record.attempts]
    again = [record for record in recorded if record.attempts.get("starts", 1) > 1 or len(record.attempts) > 1]
    if again:
        kinds = list(dict.fromkeys(kind for record in again for kind in record.attempts))
        rows = [[record.run.name, *(str(record.attempts.get(kind, 0)) for kind in kinds)] for record in again]
        lines.append(markdown_table(["run", *kinds], rows))
    if recorded and not again:
        lines.append(f"{len(recorded)} of {len(records)} runs were started once and went through.")
    if len(recorded) < len(records):
        lines.append(f"No history of starts is on record for {len(records) - len(recorded)} of {len(records)} runs.")
    return Section("Failures and interruptions", "\n\n".join(lines))


def made(records: Sequence[Record]) -> Section:
    """Code, versions, machines and components, a row for each that occurs."""
    runs: dict[tuple[str, str], list[str]] = {}
    for record in records:
        environment = record.environment
        rows = {
            "code": revision(record),
            "settings revision": str(record.config.get("revision", 1)),
            "versions": ", ".join(f"{name} {version}" for name, version in versions(record).items()),
            "machine": f"{machine(record)}, {environment.get('cores')} cores, {environment.get('threads')} thread(s)",
            "precision": precision(record),
        }
        parts = used_components(record)
        rows |= {f"component {part}": f"{folder}{_quality(record.components[part])}" for part, folder in parts.items()}
        for row in rows.items():
            runs.setdefault(row, []).append(record.run.name)
    shown = [
        [*row, "all" if len(names) == len(records) else f"{len(names)}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"]
        for row, names in runs.items()
    ]
    return Section("Versions", markdown_table(["what", "which", "runs"], shown, left=3), folded=True)


def _quality(component: Mapping[str, Any]) -> str:
    """The held-out measures of a component that are numbers of quality."""
    quality = component.get("quality")
    held = {name: value for name, value in (quality or {}).items() if isinstance(value, float) and name != "seconds"}
    return f" ({', '.join(f'{name} {value:g}' for name, value in held.items())})" if held else ""
