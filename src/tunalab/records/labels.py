"""In which settings records differ, and what settings, variants and benchmarks are called and coloured, everywhere the same.

Settings come from the configurations inside the records, so that a sweep over any setting, or a folder that holds two sweeps, has
its lines and columns without anybody naming them.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from tunalab.frontends.looks import Look
from tunalab.records.record import Record, build
from tunalab.settings.layers import leaves
from tunalab.settings.loading import NOT_IDENTITY, NOT_IDENTITY_INSIDE, digest
from tunalab.settings.schema import RunConfig

# Names of the figures that exist; analysis/figures.py draws them. Here, because checking a sweep file needs no matplotlib.
FIGURE_NAMES = ("figure6", "curves", "mask_ratio", "learning_rate", "effects")

MASK_RATIO = "objective.masking.ratio"
START = "start.checkpoint"
COMPONENTS_SEED = "components_seed"
OF_VARIANT = ("frontend.", "components.", "optimizer.lr_factor")  # every front-end may have its own best rate
_OWN_RATE = re.compile(r"optimizer\.groups\.([^.]+)\.")
Value = str | int | float | bool | None

# For variants that state no colour.
_SPARE = ("#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#4D4D4D")


@dataclass(frozen=True)
class Setting:
    """What sets a record apart from the others of a comparison: (dotted key, value), in the order of the configuration.

    ``usual``: keys whose value here is that of most of the others. A name leaves them out, and settings stay distinct.
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


def changes_results(key: str) -> bool:
    """Whether a setting belongs to the identity of a run: where it reports and how it is scheduled does not."""
    return key.split(".")[0] not in NOT_IDENTITY and key not in NOT_IDENTITY_INSIDE


def differing_settings(records: Sequence[Record]) -> list[Setting]:
    """The setting of each record: all that differs between the records except seed, variant and what changes no result.

    Settings and components of the front-end, and a rate of its own for one of its parts, are what a variant is, and count only
    where they differ within one. Which components a run took counts only where runs of one seed differ in it (``compared``). Of
    settings that change together (one learning rate in three stages, all that another experiment file changes) the first counts.
    """
    described = list(zip((record.run.variant for record in records), compared(records), strict=True))
    runs = [json.dumps(one) for one in described]
    kinds = dict(zip(runs, described, strict=True))  # a thousand records are of a few kinds, and differ in the seed
    variants, flats = [variant for variant, _ in kinds.values()], [flat for _, flat in kinds.values()]
    sizes = Counter(runs)
    of_front_end = front_end_keys(flats)
    keys: list[str] = []
    before: list[object] = [()] * len(kinds)
    for key in dict.fromkeys(key for flat in flats for key in flat):
        column = [json.dumps(flat.get(key)) for flat in flats]
        if not _follows(column, before) and not (key in of_front_end and _follows(column, variants)):
            keys.append(key)
            before = list(zip(before, column, strict=True))
    common: dict[str, Value] = {}
    for key in keys:
        counts: Counter[Value] = Counter()
        for kind, (_, flat) in kinds.items():
            counts[flat.get(key)] += sizes[kind]
        value, most = counts.most_common(1)[0]
        if 2 * most > len(runs):
            common[key] = value
    settings = {
        kind: Setting(
            tuple((key, flat.get(key)) for key in keys),
            frozenset(key for key in common if flat.get(key) == common[key]),
        )
        for kind, (_, flat) in kinds.items()
    }
    return [settings[kind] for kind in runs]


def identity(record: Record) -> str:
    """Twelve hex digits of everything but the seeds that decides what a run computes: equal for runs that differ in luck alone."""
    return digest([record.run.variant, _without_components_seed(record)])


def compared(records: Sequence[Record]) -> list[dict[str, Value]]:
    """The settings of each record (``flat_settings``) as comparisons take them: without ``components_seed`` and without the seed in
    the names of components, but where runs that differ in nothing else have one seed and other components.

    Seeds cross with components (``components_seed: ${seed}``): what is trained behind them is luck, as a run's own draws are.
    """
    bare = [_without_components_seed(record) for record in records]
    seeds: dict[str, set[Value]] = {}
    for record, flat in zip(records, bare, strict=True):
        key = json.dumps([record.run.variant, record.run.seed, flat])
        seeds.setdefault(key, set()).add(flat_settings(record).get(COMPONENTS_SEED))
    return bare if all(len(values) == 1 for values in seeds.values()) else [flat_settings(record) for record in records]


def _without_components_seed(record: Record) -> dict[str, Value]:
    flat = {key: value for key, value in flat_settings(record).items() if key != COMPONENTS_SEED}
    for name, part in record.components.items():
        if isinstance(part, dict) and part.get("name"):
            flat[f"components.{name}"] = re.sub(r"\bseed\d+", "seed", str(part["name"]))
    return flat


def front_end_keys(flats: Iterable[dict[str, Value]]) -> set[str]:
    """Keys that are part of a variant: of its front-end, its components, its rate, and groups of the optimizer that match parts."""
    found: set[str] = set()
    for flat in flats:
        for key in flat:
            group = _OWN_RATE.match(key)
            match = str(flat.get(f"optimizer.groups.{group[1]}.match", "")) if group else ""
            if key.startswith(OF_VARIANT) or match.startswith("frontend."):
                found.add(key)
    return found


def flat_settings(record: Record) -> dict[str, Value]:
    """Dotted key -> value of what decides the results of a record, as today's code reads it, without seed and variant. Lists are
    one value, written as JSON.

    Beside the settings: the order of the stages, and the folders of the components (their names are hashes of how they were made).
    """
    flat = _flat(json.dumps({key: value for key, value in record.config.items() if key not in NOT_IDENTITY}))
    if flat.get(START):  # a checkpoint of the run's own variant and seed, by one pattern for all
        own = f"{record.run.variant}-seed{record.run.seed}"
        flat = flat | {START: str(flat[START]).replace(own, "${variant}-seed${seed}")}
    folders = {name: part.get("folder") for name, part in record.components.items() if isinstance(part, dict)}
    return flat | {f"components.{name}": folder for name, folder in folders.items()}


@cache
def _flat(config: str) -> dict[str, Value]:
    plain = {"revision": 1} | json.loads(config)
    with suppress(
        ValueError
    ):  # of an earlier revision, whose settings are others: its revision sets it apart, a result all the same
        plain = asdict(build(RunConfig, json.dumps(plain)))
    flat = {key: value for key, value in flat_texts(plain).items() if changes_results(key) and key not in ("seed", "variant")}
    return flat | {"stages": " ".join(plain.get("stages", {}))}


def _follows(column: Sequence[object], from_: Sequence[object]) -> bool:
    """Whether ``column`` is a function of ``from_``."""
    return len(set(zip(from_, column, strict=True))) == len(set(from_))


def flat_texts(plain: dict[str, Any]) -> dict[str, Value]:
    """Dotted key -> value of nested settings; lists as JSON, without mappings that hold nothing."""
    return {key: json.dumps(value) if isinstance(value, list) else value for key, value in leaves(plain) if value != {}}


def last_words(keys: Iterable[str]) -> dict[str, str]:
    """The last word of each key, or the whole key where two of them end in the same word."""
    last = {key: key.rsplit(".", 1)[-1] for key in keys}
    return {key: word if list(last.values()).count(word) == 1 else key for key, word in last.items()}


def key_labels(keys: Iterable[str]) -> dict[str, str]:
    """What settings are called in figures and tables."""
    names = {key: key.removeprefix("optimizer.groups.") if _OWN_RATE.match(key) else word for key, word in last_words(keys).items()}
    return names | ({MASK_RATIO: "mask ratio"} if MASK_RATIO in names else {})


def value_label(value: object) -> str:
    """A setting's value, numbers as short as they can be without becoming another number."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return "none" if value is None else str(value)


class Legend:
    """Labels, order and colours of the variants of some records, as the records state them."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.looks: dict[str, Look] = {}
        for record in records:
            self.looks.setdefault(record.run.variant, record.look)
        self._labels = Counter(look.label for look in self.looks.values())

    def label(self, variant: str) -> str:
        """With the variant's name behind it where two variants have the same label."""
        label = self.looks[variant].label
        return label if self._labels[label] == 1 else f"{label} ({variant})"

    def ordered(self, variants: Iterable[str]) -> list[str]:
        """Each once, in the order that their front-ends state, then by name."""
        return sorted(set(variants), key=lambda name: (self.looks[name].order, name))

    def colours(self) -> dict[str, str]:
        """A colour per variant: its own, whatever else is in the picture, or one that no other has."""
        taken: dict[str, str] = {}
        for name in self.ordered(self.looks):
            if (own := self.looks[name].colour) and own not in taken.values():
                taken[name] = own
        free = [colour for colour in _SPARE if colour not in taken.values()] or list(_SPARE)
        others = [name for name in self.ordered(self.looks) if name not in taken]
        return taken | {name: free[index % len(free)] for index, name in enumerate(others)}


def benchmark_label(name: str) -> str:
    """``count (CountBench)``, ``count, level 3 (CountBench)``; a benchmark without a counterpart keeps its name."""
    kind, _, level = name.partition("@")
    published = _published()
    label = f"{kind}, level {level}" if level else kind
    return f"{label} ({published[kind]})" if kind in published else label


def ordered_benchmarks(names: Iterable[str]) -> list[str]:
    """Benchmarks with a published counterpart in a fixed order, then others by name, then the same at higher levels."""
    kinds = list(_published())

    def place(name: str) -> tuple[str, int, str]:
        kind, _, level = name.partition("@")
        return level, kinds.index(kind) if kind in kinds else len(kinds), name

    return sorted(set(names), key=place)


def _published() -> dict[str, str]:
    from tunalab.data.scenes.vocabulary import BENCHMARKS

    return BENCHMARKS
