"""The sections of a report, before they are Markdown or HTML."""

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from tunalab.analysis.claims import claims_markdown, papers_variants
from tunalab.analysis.crossing import Crossing, passing
from tunalab.analysis.curves import AXES, benchmarks, lines
from tunalab.analysis.dynamics import Dynamics, areas_markdown, crossings_markdown, dynamics, laws_markdown
from tunalab.analysis.effects import effects_markdown, effects_table
from tunalab.analysis.evaluations import (
    counterpart,
    differences_table,
    evaluated,
    evaluation_markdown,
    means_table,
    read_published,
    sides,
    unequal_settings,
)
from tunalab.analysis.fairness import TOLERANCE, Unequal, machine, precision, revision, unequal, used_components, versions
from tunalab.analysis.figures import draw
from tunalab.analysis.tables import accuracy_markdown, accuracy_table, markdown_row
from tunalab.errors import UserError
from tunalab.records.labels import (
    MASK_RATIO,
    Legend,
    benchmark_label,
    flat_settings,
    flat_texts,
    key_labels,
    told_apart,
    value_label,
)
from tunalab.records.record import Point, Record, usable
from tunalab.records.samples import Samples
from tunalab.settings.layers import own_or_shipped
from tunalab.settings.loading import NOT_IDENTITY, NOT_IDENTITY_INSIDE, config_hash, from_plain, load_config, to_plain


@dataclass(frozen=True)
class Picture:
    """``png``: the file's bytes; ``caption``: what to see in it, and how it is made."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """``text``: Markdown. ``samples``: by the name of a column, in the order of the columns."""

    title: str
    text: str
    pictures: Sequence[Picture] = ()
    samples: dict[str, Samples] = field(default_factory=dict)
    folded: bool = False  # in HTML: shown when asked for

    @property
    def anchor(self) -> str:
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.title.lower()).split())


@dataclass(frozen=True)
class Report:
    """``level`` of the verdict: broken | asked | doubt | equal."""

    title: str
    command: str
    level: str
    verdict: str
    sections: Sequence[Section]


def demoted(text: str) -> str:
    """Markdown whose headings of the second level are of the third: to stand inside a section."""
    return re.sub(r"^## ", "### ", text, flags=re.MULTILINE)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table: the first ``left`` columns to the left, the others, which hold numbers, to the right."""
    ruler = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(markdown_row([cell.replace("|", "\\|") for cell in row]) for row in (head, ruler, *rows))


SHARED = "tokens, seeds, data order, components, code, versions, precision, machine and threads"


def verdict(records: Sequence[Record], planned: Mapping[str, Sequence[str]] | None = None) -> tuple[str, str]:
    """The level (broken | asked | doubt | equal) and the Markdown that says why. ``planned``: sweep -> names of all its runs."""
    found = unequal(records)
    broken = [one for one in found if one.breaks and not one.asked]
    asked = [one for one in found if one.breaks and one.asked]
    doubts = [one for one in found if not one.breaks]
    part = [share(records, sweep, names) for sweep, names in (planned or {}).items() if missing(records, names)]
    level = "broken" if broken else "asked" if asked else "doubt" if doubts or part else "equal"
    head = {
        "broken": f"**NOT EQUAL: {_count(broken)} that results depend on differ between runs.** Differences below may be theirs.",
        "asked": f"**{_count(asked).capitalize()} change with the settings that are varied**: part of the question, or not?",
        "doubt": "**Equal in all that decides a result, but not beyond doubt.**",
        "equal": f"**Equal**: all runs share {SHARED}.",
    }[level]
    rows = [["**breaks**", *_row(one, records)] for one in broken]
    rows += [["varied", *_row(one, records)] for one in asked] + [["doubt", *_row(one, records)] for one in doubts]
    told = f"\n\n{table(['', 'what', 'which runs have what', 'why it matters'], rows, left=4)}" if rows else ""
    incomplete = f"**INCOMPLETE: {'; '.join(part)}.** The others may change what is said here.\n\n" if part else ""
    return level, f"{incomplete}{head}{told}\n\n{_by_front_end(records)}"


def missing(records: Sequence[Record], planned: Sequence[str]) -> list[str]:
    """Runs of a sweep that have no finished record."""
    finished = {record.run.name for record in records if record.run.finished}
    return [name for name in planned if name not in finished]


def share(records: Sequence[Record], sweep: str, planned: Sequence[str]) -> str:
    return f"{len(planned) - len(missing(records, planned))} of {len(planned)} runs of the sweep {sweep}"


def _count(found: Sequence[Unequal]) -> str:
    return "one thing" if len(found) == 1 else f"{len(found)} things"


def _row(one: Unequal, records: Sequence[Record]) -> list[str]:
    return [one.what, one.told(records), one.why]


def _by_front_end(records: Sequence[Record]) -> str:
    """What equal tokens do not equalise: said always, as no table of accuracies shows it."""
    parts = []
    for words, of in (
        ("training FLOPs", lambda r: r.totals.flops / max(1, r.totals.tokens)),
        ("trained parameters", lambda r: float(r.parameters.get("trainable", 0))),
        ("minutes", lambda r: r.totals.seconds),
    ):
        values = [of(record) for record in records]
        if min(values) > 0 and max(values) > 1.02 * min(values):
            parts.append(
                f"{words} up to {max(values) / min(values):.2f} times the least" + (" (a token)" if "FLOPs" in words else "")
            )
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
    if files:
        told = [f"{header(found[name])}\n\nFrom the header of `{name}`." for name in files]
        return Section("Question", "\n\n".join(told))
    looked = ", ".join(f"`{name}`" for name in [*of_sweeps, *of_experiments])
    return Section("Question", f"No file says it (looked for: {looked}).")


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
    """Brackets and stars of a comment are no Markdown; what stands between backticks and our own bold stays."""
    return text.replace("<", "\\<").replace("[", "\\[")


def settings(records: Sequence[Record]) -> Section:
    """Arms with what they are told apart by; the front-ends' own settings; how many settings are equal."""
    legend = Legend(records)
    order = legend.ordered(legend.looks)
    records = sorted(records, key=lambda record: order.index(record.run.variant))
    told = told_apart(records)
    seeds: dict[tuple[str, tuple[tuple[str, object], ...]], list[int]] = {}
    for record, setting in zip(records, told, strict=True):
        seeds.setdefault((record.run.variant, setting.items), []).append(record.run.seed)
    keys = [key for key, _ in told[0].items]
    rows = [
        [legend.label(variant), *(value_label(value) for _, value in items), ", ".join(map(str, sorted(had)))]
        for (variant, items), had in seeds.items()
    ]
    parts = [table(["front-end", *(f"`{key}`" for key in keys), "seeds"], rows, left=len(keys) + 2)]
    flat = {record.run.variant: flat_settings(record) for record in records}
    own = [key for key in dict.fromkeys(key for held in flat.values() for key in held) if key.startswith("frontend.")]
    differ = [key for key in own if len({held.get(key) for held in flat.values()}) > 1]
    if differ:
        rows = [[legend.label(name), *(_shown(held.get(key)) for key in differ)] for name, held in flat.items()]
        parts.append("What the variants set of the front-end:")
        parts.append(table(["front-end", *(f"`{key}`" for key in differ)], rows, left=len(differ) + 1))
    every = {key for held in map(flat_settings, records) for key in held}
    same = [key for key in every if len({value_label(flat_settings(record).get(key)) for record in records}) == 1]
    parts.append(f"{len(same)} settings are equal in all {len(records)} runs; every record holds them all.")
    return Section("Settings that differ", "\n\n".join(parts))


def _shown(value: object) -> str:
    return value_label(value) if value != "" else "-"


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
        wanted = from_plain(record.config)
        words = _settings(to_plain(load_config(*files, [])), to_plain(wanted))
        if config_hash(load_config(*files, words)) == config_hash(wanted):
            call = ["tunalab", "train", "--experiment", run.experiment, "--variant", run.variant, *words]
            return " ".join(shlex.quote(word) for word in call)
    except UserError as error:
        return f"# {run.name}: today's settings refuse its configuration ({error})"
    return f"# {run.name}: no settings over {run.experiment} and {run.variant} give its configuration, which its record holds"


def _settings(base: dict[str, object], wanted: dict[str, object]) -> list[str]:
    """``key=value`` for all in which two configurations differ, the seed always; what changes no result is left out."""
    old, new = flat_texts(base), flat_texts(wanted)
    left_out = {*NOT_IDENTITY_INSIDE, "seed"}
    differ = [key for key in new if new[key] != old.get(key) and key.split(".")[0] not in NOT_IDENTITY and key not in left_out]
    return [*(f"{key}={_written(new[key])}" for key in differ), f"seed={new['seed']}"]


def _written(value: object) -> str:
    """As the command line reads it back: lists are JSON already."""
    return value if isinstance(value, str) and value else json.dumps(value)


def budget(records: Sequence[Record]) -> Section:
    """A row a line, means over seeds; shares of the least where lines differ, so that nobody has to divide."""
    finished = usable(records)
    arms: dict[tuple[str, str], list[Record]] = {}
    for record, setting in zip(finished, told_apart(finished), strict=True):
        arms.setdefault((record.run.variant, setting.label), []).append(record)
    legend = Legend(finished)
    order = legend.ordered(variant for variant, _ in arms)
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
        name = f"{legend.label(arm[0])}{f', {arm[1]}' if arm[1] else ''}"
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


def measure(records: Sequence[Record]) -> Dynamics | None:
    """None where nothing was asked, or no evaluations can be compared: the section on curves says why."""
    try:
        return dynamics(records)
    except UserError:
        return None


def passes(found: Dynamics | None) -> str:
    """The crossings that are seen, in one sentence; empty where no two front-ends were compared."""
    every = [] if found is None else found.crossings["tokens"]
    said = [_sentence(one) for one in every if one.seen]
    return f"Crossings that are seen, {len(said)} of {len(every)} pairs of curves: {'; '.join(said) or 'none'}." if every else ""


def sections(found: Dynamics | None) -> list[Section]:
    if found is None:
        return []
    texts = {
        "Crossings": crossings_markdown(found) if found.crossings["tokens"] else "",
        "Areas under the curves": areas_markdown(found),
        "Power laws": laws_markdown(found) if found.laws else "",
    }
    return [
        Section(title, demoted(text).rstrip(), folded=title != "Areas under the curves") for title, text in texts.items() if text
    ]


def _sentence(one: Crossing) -> str:
    leader, other = (line.look.label for line in (one.leader, one.other))
    setting = one.leader.setting.label
    where = benchmark_label(one.benchmark) + (f" ({setting})" if setting else "")
    return f"{leader} passes {other} on {where} at {passing(one, AXES['tokens'])} tokens"


COLOURS = 256  # of an embedded figure: flat areas and thin lines need no more, and the file has a third of the size


def undrawable(records: Sequence[Record]) -> str:
    """Why there are no curves of these records, empty where there are."""
    if not benchmarks(records):
        return "these runs asked no questions while they trained"
    try:
        lines(records)
    except UserError as error:
        return str(error)
    return ""


def curves(why_none: str, drawn: Sequence[Picture]) -> Section:
    what = "Accuracy against tokens consumed, a panel a benchmark. In the page; alone: `tunalab figure curves --records FOLDER`."
    return Section("Curves", f"None: {why_none}." if why_none else what, drawn)


def pictures(records: Sequence[Record], command: str) -> list[Picture]:
    """The curves, and accuracy by mask ratio where the runs vary that alone, as the program draws them."""
    varied = {key for setting in told_apart(usable(records)) for key, _ in setting.items}
    with TemporaryDirectory() as folder:
        names = ["curves", *(["mask_ratio"] if varied == {MASK_RATIO} else [])]
        drawn = [path for name in names for path in draw(name, records, Path(folder), command) if path.suffix == ".png"]
        return [Picture(path.stem, _smaller(path)) for path in drawn]


def _smaller(path: Path) -> bytes:
    buffer = BytesIO()
    with Image.open(path) as figure:
        palette = figure.convert("RGB").quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        palette.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def accuracies(records: Sequence[Record]) -> Section:
    if not benchmarks(records):
        return Section("Final accuracies", "None: these runs asked no questions while they trained.")
    finished = usable(records)
    try:
        final = accuracy_table(records)
    except UserError as error:
        return Section("Final accuracies", f"None: {error}.")
    return Section("Final accuracies", accuracy_markdown(final, Legend(records), len(records) - len(finished)).rstrip())


def ahead(records: Sequence[Record]) -> str:
    """Who is ahead at the end by a difference whose interval excludes 0, in one sentence; empty where no two front-ends compare."""
    try:
        final = accuracy_table(records) if benchmarks(records) else None
    except UserError:
        return ""
    if final is None or final["variant"].nunique() < 2:
        return ""
    keys = list(final.columns[1 : final.columns.get_loc("variant")])
    said, legend = [], Legend(records)
    for row in final[final["leads"].astype(bool)].to_dict("records"):
        setting = ", ".join(f"{name} {value_label(row[key])}" for key, name in key_labels(keys).items())
        said.append(f"{legend.label(row['variant'])} on {benchmark_label(row['benchmark'])}{f' ({setting})' if setting else ''}")
    return f"Ahead of the next best at the end, 0 excluded: {'; '.join(said) or 'nobody on any benchmark'}."


def effects(records: Sequence[Record]) -> Section | None:
    """Main effects and interactions of what the runs vary, None where no two of them differ in one thing alone."""
    found = effects_table(records)
    return None if found.empty else Section("Effects", demoted(effects_markdown(found).rstrip()))


def held_out(records: Sequence[Record]) -> Section:
    """Losses and one-step PSNR at the last point that all finished runs share: means over seeds, with the least and the most."""
    finished = usable(records)
    arms: dict[tuple[str, str], list[Point]] = {}
    last = min(record.points[-1].tokens for record in finished if record.points)
    for record, setting in zip(finished, told_apart(finished), strict=True):
        near = [point for point in record.points if abs(point.tokens - last) <= TOLERANCE * last]
        if near:
            arms.setdefault((record.run.variant, setting.label), []).append(near[-1])
    legend = Legend(finished)
    order = legend.ordered(variant for variant, _ in arms)
    ordered = sorted(arms, key=lambda arm: order.index(arm[0]))
    rows = []
    for name, values in (
        *((f"loss {key}", [[p.losses.get(key) for p in arms[arm]] for arm in ordered]) for key in _keys(arms.values(), "losses")),
        *(
            (f"one-step PSNR at t = {key}, dB", [[p.one_step_psnr.get(key) for p in arms[arm]] for arm in ordered])
            for key in _keys(arms.values(), "one_step_psnr")
        ),
    ):
        rows.append([name, *(_spread([value for value in of_arm if value is not None]) for of_arm in values)])
    if not rows:
        return Section("Held-out losses and PSNR", "None on record.", folded=True)
    head = ["", *(f"{legend.label(variant)}{f', {label}' if label else ''}" for variant, label in ordered)]
    note = (
        f"At {last:,} tokens, mean over seeds [least, most]. Flow losses of pixels and of latents do not compare; PSNR is measured "
        "in pixels and does."
    )
    return Section("Held-out losses and PSNR", f"{table(head, rows)}\n\n{note}", folded=True)


def _keys(arms: Iterable[Sequence[Point]], name: str) -> list[str]:
    return list(dict.fromkeys(key for points in arms for point in points for key in getattr(point, name)))


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{float(np.mean(values)):.3g}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.3g}, {max(values):.3g}]"


def evaluations(records: Sequence[Record], published: Path) -> Section | None:
    """What `tunalab evaluate` measured of the finished models beside what was published; None where nothing was."""
    found = evaluated(records)
    if not found:
        return None
    try:
        compared = {key: held for key, held in sides(found).items() if counterpart(*key)}
        means, differences = means_table(compared), differences_table(compared)
        text = evaluation_markdown(means, differences, read_published(published), Legend(found), unequal_settings(found))
    except UserError as error:
        return Section("Evaluations of the finished models", f"Cannot be compared: {error}.")
    what = "What has a published counterpart; all that was measured stands in the tables of `tunalab table`."
    return Section("Evaluations of the finished models", f"{what}\n\n{demoted(text).rstrip()}", folded=True)


def claims(records: Sequence[Record]) -> Section | None:
    """The paper's claims with the differences that could show them, where its three front-ends were evaluated."""
    found = evaluated(records)
    if not papers_variants(found):
        return None
    return Section("Claims of the paper", claims_markdown(found).rstrip())
