"""In which settings records differ: what a picture has to tell apart, and what no mean may mix.

Taken from the configurations inside the records, so that a sweep over any setting, or a folder that holds two sweeps, is
told apart without anybody saying by what.
"""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from tunalab.records.labels import key_labels, value_label
from tunalab.records.record import Mismatch, Record, build
from tunalab.settings.layers import leaves
from tunalab.settings.loading import NOT_IDENTITY, digest
from tunalab.settings.schema import RunConfig

# Means are taken over seeds; a variant has a place of its own in every table; the others change no result.
_NOT_TOLD = ("seed", "variant", *NOT_IDENTITY)
_START = "start.checkpoint"
OF_VARIANT = ("frontend.", "components.")
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Setting:
    """What tells a record from the others of a comparison: (dotted key, value), in the order of the configuration.

    ``usual``: keys whose value here is that of most of the others. A name need not say them, and tells settings apart all the same.
    """

    items: tuple[tuple[str, Value], ...] = ()
    usual: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def label(self) -> str:
        """``mask ratio 0.25, lr 0.001``; empty where nothing differs, or nothing from most."""
        names = key_labels([key for key, _ in self.items])
        return ", ".join(f"{names[key]} {value_label(value)}" for key, value in self.items if key not in self.usual)

    @property
    def place(self) -> tuple[tuple[bool, float, str], ...]:
        """Sorts numbers by size and before words."""
        return tuple(
            (False, float(value), "") if isinstance(value, int | float) else (True, 0.0, str(value)) for _, value in self.items
        )

    def without(self, key: str) -> "Setting":
        return Setting(tuple(item for item in self.items if item[0] != key), self.usual)


def told_apart(records: Sequence[Record]) -> list[Setting]:
    """The setting of each record: all that differs between the records except seed, front-end and where a run reports.

    Settings and components of the front-end are part of what a variant is, and told only where they differ within one. Of
    settings that change together (one learning rate in three stages, all that another experiment file changes) the first is told.
    """
    described = [(record.run.variant, flat_settings(record)) for record in records]
    runs = [json.dumps(one) for one in described]
    kinds = dict(zip(runs, described, strict=True))  # a thousand records are of a few kinds, and differ in the seed
    variants, flats = [variant for variant, _ in kinds.values()], [flat for _, flat in kinds.values()]
    sizes = Counter(runs)
    told: list[str] = []
    seen: list[object] = [()] * len(kinds)
    for key in dict.fromkeys(key for flat in flats for key in flat):
        column = [json.dumps(flat.get(key)) for flat in flats]
        if _follows(column, seen) or (key.startswith(OF_VARIANT) and _follows(column, variants)):
            continue
        told.append(key)
        seen = list(zip(seen, column, strict=True))
    common: dict[str, Value] = {}
    for key in told:
        counts: Counter[Value] = Counter()
        for kind, (_, flat) in kinds.items():
            counts[flat.get(key)] += sizes[kind]
        value, most = counts.most_common(1)[0]
        if 2 * most > len(runs):
            common[key] = value
    settings = {
        kind: Setting(
            tuple((key, flat.get(key)) for key in told),
            frozenset(key for key in common if flat.get(key) == common[key]),
        )
        for kind, (_, flat) in kinds.items()
    }
    return [settings[kind] for kind in runs]


def identity(record: Record) -> str:
    """Twelve hex digits of everything but the seed that decides what a run computes: equal for runs that differ in luck alone."""
    return digest([record.run.variant, flat_settings(record)])


def flat_settings(record: Record) -> dict[str, Value]:
    """Dotted key -> value of a record's configuration, as today's code reads it. Lists are one value, written as JSON.

    Beside the settings: the order of the stages, and the folders of the components (their names are hashes of how they were made).
    """
    flat = _flat(json.dumps({key: value for key, value in record.config.items() if key not in _NOT_TOLD}))
    if flat.get(_START):  # a checkpoint of the run's own variant and seed, by one pattern for all
        own = f"{record.run.variant}-seed{record.run.seed}"
        flat = flat | {_START: str(flat[_START]).replace(own, "${variant}-seed${seed}")}
    folders = {name: part.get("folder") for name, part in record.components.items() if isinstance(part, dict)}
    return flat | {f"components.{name}": folder for name, folder in folders.items()}


@cache
def _flat(config: str) -> dict[str, Value]:
    plain = {"revision": 1} | json.loads(config)
    with suppress(Mismatch):  # of an earlier revision, whose settings are others: told apart by its revision, a result all the same
        plain = asdict(build(RunConfig, plain))
    return flat_texts({key: value for key, value in plain.items() if key not in _NOT_TOLD}) | {
        "stages": " ".join(plain.get("stages", {}))
    }


def _follows(column: Sequence[object], from_: Sequence[object]) -> bool:
    """Whether ``column`` is a function of ``from_``."""
    return len(set(zip(from_, column, strict=True))) == len(set(from_))


def flat_texts(plain: dict[str, Any]) -> dict[str, Value]:
    """Dotted key -> value of nested settings; lists as JSON, without mappings that hold nothing."""
    return {key: json.dumps(value) if isinstance(value, list) else value for key, value in leaves(plain) if value != {}}
