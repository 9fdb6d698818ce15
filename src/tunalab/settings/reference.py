"""What settings there are: those in force with their sources (`tunalab settings`), and the reference page of docs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tunalab.errors import UserError
from tunalab.settings.declaration import NAME, Setting, members_of, settings_of
from tunalab.settings.layers import Layer, replaced_mappings, settings_layers
from tunalab.settings.loading import load_config, to_plain
from tunalab.settings.schema import SETTINGS, RunConfig
from tunalab.settings.values import hints

WHEN = {"start": "start", "masking": "first masked step", "stage": "its stage", "never": "never"}
_WIDEST = 36  # of a column: a longer cell moves what stands behind it
Place = tuple[str, ...]


@dataclass(frozen=True)
class InForce:
    """A setting of one run. ``source``: default, command line, or "experiment" or "variant" with the file."""

    name: str
    setting: Setting
    value: Any
    source: str


def in_force(experiment: Path, variant: Path, overrides: Sequence[str]) -> list[InForce]:
    """Every setting of the run that these files and settings describe, credentials left out.

    Where a user names members and this run has none, the settings of one stand under NAME.
    Raises UserError as :func:`load_config`.
    """
    plain = to_plain(load_config(experiment, variant, list(overrides)))
    layers = settings_layers(experiment, variant, overrides)[::-1]
    found = []
    for path, key, value in _leaves(plain, RunConfig, (), ""):
        source = next((text for layer in layers if (text := _source(layer, path, variant))), "default")
        found.append(InForce(".".join(path), SETTINGS[key], value, source))
    return found


def _leaves(plain: dict[str, Any], cls: Any, path: Place, key: str) -> Iterator[tuple[Place, str, Any]]:
    for name, hint in hints(cls).items():
        inner = members_of(hint)
        if f"{key}{name}" in SETTINGS:
            yield (*path, name), f"{key}{name}", plain[name]
        elif inner is None:
            yield from _leaves(plain[name], hint, (*path, name), f"{key}{name}.")
        else:
            for one, inside in (plain[name] or {NAME: to_plain(inner())}).items():
                yield from _leaves(inside, inner, (*path, name, one), f"{key}{name}.{NAME}.")


def _source(layer: Layer, path: Place, variant: Path) -> str:
    """What to call the layer, if it decides the setting: it holds it, or replaces a mapping around it."""
    node: Any = layer.settings
    for name in path:
        if not isinstance(node, dict) or name not in node:
            around = (path[: len(place)] == place for place in replaced_mappings(layer, RunConfig))
            return "default" if any(around) else ""
        node = node[name]
    if layer.given is not None:
        return "command line"
    return f"{'variant' if layer.source == str(variant) else 'experiment'} {layer.source}"


def matching(patterns: Sequence[str], rows: Sequence[InForce]) -> list[InForce]:
    """Those whose name holds one of the patterns, or fits it where it has a ``*``; without patterns all.

    Raises UserError: a pattern fits none.
    """
    for pattern in patterns:
        if not any(_fits(pattern, row) for row in rows):
            raise UserError(f"no setting matches '{pattern}' ({_near(pattern, rows)})")
    return [row for row in rows if not patterns or any(_fits(one, row) for one in patterns)]


def _near(pattern: str, rows: Sequence[InForce]) -> str:
    last = {row.name.rpartition(".")[2]: row.name for row in rows}
    close = get_close_matches(pattern, [*last, *(row.name for row in rows)], n=3)
    if close:
        return f"close: {', '.join(dict.fromkeys(last.get(word, word) for word in close))}"
    groups = dict.fromkeys(row.name.partition(".")[0] for row in rows if "." in row.name)
    return f"groups: {', '.join(groups)}"


def _fits(pattern: str, row: InForce) -> bool:
    names = (row.name, row.setting.key)
    return any(fnmatchcase(name, pattern) if "*" in pattern else pattern.lower() in name.lower() for name in names)


def table(rows: Sequence[InForce]) -> str:
    """Name, type, value, source, range or choices in columns, the help below each."""
    cells = [("setting", "type", "value", "source", "range or choices")]
    cells += [(row.name, type_text(row.setting), text(row.value), row.source, row.setting.declared.allowed) for row in rows]
    widths = [min(_WIDEST, max(map(len, column))) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    helps = [f"    {row.setting.declared.help}" for row in rows]
    return "\n".join([lines[0], *(line for pair in zip(lines[1:], helps, strict=True) for line in pair)])


def type_text(setting: Setting) -> str:
    named = isinstance(setting.type, type) and setting.type in (int, float, bool, str)
    return setting.type.__name__ if named else str(setting.type).replace("typing.", "")


def text(value: Any) -> str:
    """As it may be given on the command line."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def markdown(evaluation: Any) -> str:
    """The reference page. ``evaluation``: the dataclass of an evaluation's settings."""
    lines = [
        "# Settings",
        "",
        "Written by `tunalab settings --markdown > docs/settings.md` from the declarations in the code: edit those.",
        "",
        "A run's settings come from the defaults below, the experiment file, the variant file and `key=value` on the command",
        "line; what comes later wins. `tunalab settings [PATTERN] --experiment E --variant V key=value` shows the values in",
        f"force and where each comes from. {NAME} stands for names of your own.",
        "",
        "*acts*: when in training a setting first has an effect; *never*: it is about evaluation, reports or checks.",
        "*changes*: what another value can change: results, only rounding, or nothing. *run*: whether it is part of what a",
        "run is (its hash): two runs that differ in it are different runs.",
        "",
        "## Settings of a run",
    ]
    lines += _tables(SETTINGS, run=True)
    lines += ["", "## Settings of an evaluation", "", "`tunalab evaluate RUN part.key=value`; none of them changes the run."]
    return "\n".join([*lines, *_tables(settings_of(evaluation), run=False)]) + "\n"


def _tables(settings: dict[str, Setting], run: bool) -> Iterator[str]:
    """A heading and a table for every group."""
    columns = ["setting", "type", "default", "range or choices", *(["acts", "changes", "run"] if run else []), "what it is"]
    before = None
    for key, one in settings.items():
        group = key.rpartition(".")[0]
        if group != before:
            about = (one.group.__doc__ or "").split("\n\n")[0].replace("``", "`").split()
            yield from ("", f"### {group or 'The run itself'}", "", " ".join(about), "")
            yield from (f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")
            before = group
        more = [WHEN[one.acts], one.changes, "yes" if one.identity else "no"] if run else []
        cells = [f"`{key}`", type_text(one), f"`{text(one.default)}`", one.declared.allowed, *more, one.declared.help]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
