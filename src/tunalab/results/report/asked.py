"""What was asked: the header of the sweep or experiment, and the settings that differ between the runs."""

import re
from collections.abc import Sequence
from pathlib import Path

from tunalab.files import below
from tunalab.results.labels import ordered_variants, value_label, variant_label
from tunalab.results.records import Record
from tunalab.results.report.document import Section, table
from tunalab.results.settings import flat_settings, told_apart

COMMAND = "Command"
CODE = f"**{COMMAND}:**\n\n```\n"


def question(records: Sequence[Record], sweeps: Sequence[str], root: Path) -> Section:
    """The headers of the sweeps' files, where none has one that of the experiment."""
    names = dict.fromkeys(record.run.experiment for record in records)
    of_sweeps, of_experiments = (
        [file for name in of if (file := below(root / folder, f"{name}.yaml", links=True))]
        for folder, of in (("sweeps", sweeps), ("experiments", names))
    )
    files = [file for file in of_sweeps if file.is_file()] or [file for file in of_experiments if file.is_file()][:1]
    if files:
        told = [f"{header(file)}\n\nFrom the header of `{file.relative_to(root)}`." for file in files]
        return Section("Question", "\n\n".join(told))
    looked = ", ".join(f"`{file.relative_to(root)}`" for file in [*of_sweeps, *of_experiments])
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
    order = ordered_variants(record.run.variant for record in records)
    records = sorted(records, key=lambda record: order.index(record.run.variant))
    told = told_apart(records)
    seeds: dict[tuple[str, tuple[tuple[str, object], ...]], list[int]] = {}
    for record, setting in zip(records, told, strict=True):
        seeds.setdefault((record.run.variant, setting.items), []).append(record.run.seed)
    keys = [key for key, _ in told[0].items]
    rows = [
        [variant_label(variant), *(value_label(value) for _, value in items), ", ".join(map(str, sorted(had)))]
        for (variant, items), had in seeds.items()
    ]
    parts = [table(["front-end", *(f"`{key}`" for key in keys), "seeds"], rows, left=len(keys) + 2)]
    flat = {record.run.variant: flat_settings(record) for record in records}
    own = [key for key in dict.fromkeys(key for held in flat.values() for key in held) if key.startswith("frontend.")]
    differ = [key for key in own if len({held.get(key) for held in flat.values()}) > 1]
    if differ:
        rows = [[variant_label(name), *(_shown(held.get(key)) for key in differ)] for name, held in flat.items()]
        parts.append("What the variants set of the front-end:")
        parts.append(table(["front-end", *(f"`{key}`" for key in differ)], rows, left=len(differ) + 1))
    every = {key for held in map(flat_settings, records) for key in held}
    same = [key for key in every if len({value_label(flat_settings(record).get(key)) for record in records}) == 1]
    parts.append(f"{len(same)} settings are equal in all {len(records)} runs; every record holds them all.")
    return Section("Settings that differ", "\n\n".join(parts))


def _shown(value: object) -> str:
    return value_label(value) if value != "" else "-"
