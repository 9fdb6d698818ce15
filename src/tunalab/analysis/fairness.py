"""Whether runs may be compared: what they do not share, and whether that breaks the comparison or leaves a doubt.

Everything is read from the records. What a front-end brings by itself (parameters, FLOPs, its own components, a rate for one of its
parts) is no inequality; it stands in tables of cost and of what variants set.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunalab.analysis.curves import TOLERANCE, arms, short
from tunalab.records.labels import (
    COMPONENTS_SEED,
    Value,
    compared,
    differing_settings,
    flat_settings,
    front_end_keys,
    value_label,
)
from tunalab.records.record import Record, questions_of, usable
from tunalab.settings.loading import digest

TINY = "tiny"
TOKENS = "tokens"
FEW = 3  # runs that are named one by one


@dataclass(frozen=True)
class Unequal:
    """Something that runs should share and do not. ``values``: a value -> names of the runs that have it.

    ``breaks``: the runs differ in what decides a result; else it is a doubt: the same up to rounding, or nobody can tell.
    ``varied``: it goes with a setting that the runs vary, so it may be what the comparison is about.
    """

    what: str
    values: dict[str, tuple[str, ...]]
    why: str
    breaks: bool
    varied: bool = False

    def text(self, records: Sequence[Record]) -> str:
        """Which runs have what: ``4M: tuna2-seed1; 9M: 5 runs``."""
        return "; ".join(f"{value}: {_names(names, records)}" for value, names in self.values.items())


def unequal(records: Sequence[Record]) -> list[Unequal]:
    """What the runs do not share, what breaks a comparison first. Runs of one seed should share all, others all but the seed."""
    every = [*_settings(records), *_finished(records), *_budget(records), *_order(records), *_components(records)]
    every += [*_questions(records), *_made(records)]
    return sorted(every, key=lambda one: (not one.breaks, one.varied))


def flagged(records: Sequence[Record]) -> list[str]:
    """Why tables and figures of these runs are no equal comparison, a line each.

    What the runs vary is what is compared, and its consequences are left out: but for an unequal budget, as curves are cut at the
    last point that all have.
    """
    every = [*_finished(records), *unequal(usable(records))]
    return [
        f"{one.what} ({one.text(records)}): {one.why}" for one in every if one.breaks and (not one.varied or one.what == TOKENS)
    ]


def _names(names: Sequence[str], records: Sequence[Record]) -> str:
    runs = {record.run.name for record in records}
    if set(names) == runs:
        return "all runs"
    return f"{len(names)} {'runs' if runs >= set(names) else 'front-ends'}" if len(names) > FEW else ", ".join(names)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """(value, name) -> names by value."""
    values: dict[str, tuple[str, ...]] = {}
    for value, name in pairs:
        values[value] = (*values.get(value, ()), name)
    return values


def _settings(records: Sequence[Record]) -> Iterable[Unequal]:
    """Settings besides the front-end's that variants do not have in common: then more than front-ends is compared."""
    flat: dict[str, list[dict[str, Value]]] = {}
    for record, settings in zip(records, compared(records), strict=True):
        of_variant = flat.setdefault(record.run.variant, [])
        if settings not in of_variant:
            of_variant.append(settings)
    if len(flat) < 2:
        return
    keys = dict.fromkeys(key for group in flat.values() for settings in group for key in settings)
    own = front_end_keys(settings for group in flat.values() for settings in group)
    for key in keys:
        if key in own:
            continue
        held = {name: {json.dumps(settings.get(key)) for settings in group} for name, group in flat.items()}
        if len({frozenset(values) for values in held.values()}) > 1:
            texts = ((", ".join(dict.fromkeys(value_label(one.get(key)) for one in group)), name) for name, group in flat.items())
            alone = bool(set.intersection(*held.values()))  # where all have a value in common, front-ends compare there
            why = "varied for some front-ends alone" if alone else "variants differ in more than the front-end"
            yield Unequal(f"setting {key}", _grouped(texts), why, breaks=True, varied=alone)


def _finished(records: Sequence[Record]) -> Iterable[Unequal]:
    return _of(records, "finished", lambda r: "yes" if r.run.finished else "no", "a part of a run is no run", breaks=True)


def _budget(records: Sequence[Record]) -> Iterable[Unequal]:
    tokens = [record.totals.tokens for record in records]
    if max(tokens) > min(tokens) * (1 + TOLERANCE):
        yield from _of(records, TOKENS, lambda r: short(r.totals.tokens), "unequal budgets", breaks=True)
    shown = arms(records)
    held = [frozenset(record.run.seed for record in line.records) for line in shown]
    if len(set(held)) > 1:
        seeds = ((_seeds(sorted(one)), line) for one, line in zip(held, shown, strict=True))
        values = _grouped((text, f"{line.variant} {line.setting.label}".strip()) for text, line in seeds)
        # Differences are taken over the seeds that both sides have: with fewer seeds of an arm they are fewer, and nothing else.
        nested = all(one <= max(held, key=len) for one in held) and bool(frozenset.intersection(*held))
        why = (
            "differences are over the seeds that both have, means over all"
            if nested
            else "means over other seeds are of other draws"
        )
        yield Unequal("seeds", values, why, breaks=not nested)


def _seeds(seeds: Sequence[int]) -> str:
    whole = len(seeds) > FEW and seeds[-1] - seeds[0] == len(seeds) - 1
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _order(records: Sequence[Record]) -> Iterable[Unequal]:
    """Of runs of one seed: the settings that decide it, and what shows of it, the counts at every point."""
    for seed in sorted({record.run.seed for record in records}):
        same = [record for record in records if record.run.seed == seed]
        why = "settings that decide which documents come when differ"
        by_settings = list(_of(same, f"data order of seed {seed}", data_order, why, breaks=True))
        yield from by_settings
        if not by_settings and not counts_agree(same):
            why = "equal settings, but other numbers of steps or images at equal tokens: other documents or other packing"
            yield from _of(same, f"documents of seed {seed}", lambda r: f"{r.totals.images:,} images", why, breaks=True)


def data_order(record: Record) -> str:
    """Twelve hex digits of all that decides which documents a run sees in which order: seed, data, mixes, budgets, tokenizer,
    number of processes.
    """
    decides = ("data.", "stages", "decoder.tokenizer", "decoder.pretrained", "decoder.chat", "revision")
    held = {key: value for key, value in flat_settings(record).items() if key.startswith(decides)}
    held = {key: value for key, value in held.items() if not key.endswith((".lr", ".train", ".masking"))}
    processes = record.environment.get("processes", 1)
    return digest([record.run.seed, held, used_components(record).get("tokenizer"), processes])


def counts_agree(records: Sequence[Record]) -> bool:
    """Whether runs that reached the same number of tokens had taken as many steps and consumed as many images by then."""
    counts: dict[int, tuple[int, int]] = {}
    for record in records:
        for point in record.points:
            if counts.setdefault(point.tokens, (point.steps, point.images)) != (point.steps, point.images):
                return False
    ends = [record.points[-1].tokens for record in records if record.points]
    return len(set(ends)) < 2 or max(ends) > min(ends) * (1 + TOLERANCE)  # unequal budgets stand in a line of their own


def _components(records: Sequence[Record]) -> Iterable[Unequal]:
    """Of the runs that use a component: which one it is. Two runs with a tiny encoder should have the same, if their seeds do not
    cross with components; two runs of one seed always."""
    seed_of = lambda record: flat_settings(record).get(COMPONENTS_SEED)  # noqa: E731
    for seed in sorted({record.run.seed for record in records}):
        same = [record for record in records if record.run.seed == seed]
        why = "components of other trainings"
        yield from _of(same, f"components_seed of seed {seed}", lambda r: str(seed_of(r)), why, breaks=True)
    used = {id(record): used_components(record) for record in records}
    for of_components in dict.fromkeys(seed_of(record) for record in records):
        for part in dict.fromkeys(part for parts in used.values() for part in parts):
            having = [record for record in records if part in used[id(record)] and seed_of(record) == of_components]
            folder = lambda record, part=part: used[id(record)][part]  # noqa: E731
            yield from _of(having, f"component {part}", folder, "pretrained another time, or with other settings", breaks=True)


def _questions(records: Sequence[Record]) -> Iterable[Unequal]:
    """Benchmarks by whose name runs were asked different questions, or were judged by different rules."""
    for name, asked in questions_of(records).items():
        if len(asked) > 1:
            values = {what: tuple(names) for what, names in asked.items()}
            yield Unequal(
                f"questions of {name}", values, "it is left out: ask all of them the same (docs/extend/benchmark.md)", breaks=True
            )


def used_components(record: Record) -> dict[str, str]:
    """Part -> folder (named after the hash of its settings) of the tiny components that this run's model has."""
    config = record.config
    frontend, decoder = config.get("frontend", {}), config.get("decoder", {})
    used = {part for part in ("vae", "encoder") if frontend.get(part) == TINY}
    if not (decoder.get("tokenizer") or decoder.get("pretrained")):
        used.add("tokenizer")
    parts = {name: part.get("folder") for name, part in record.components.items() if isinstance(part, dict)}
    return {name: folder for name, folder in parts.items() if name in used and folder}


def _made(records: Sequence[Record]) -> Iterable[Unequal]:
    """Code, versions and machine."""
    yield from _of(records, "precision", precision, "results differ by more than rounding", breaks=True)
    yield from _of(records, "code", commit, "another revision of the code may compute something else")
    modified = [(revision(record), record.run.name) for record in records if record.environment.get("dirty")]
    if modified:
        yield Unequal("checkout", _grouped(modified), "what had been modified is not on record", breaks=False)
    for name in dict.fromkeys(name for record in records for name in versions(record)):
        version = lambda record, name=name: versions(record).get(name) or "none"  # noqa: E731
        yield from _of(records, f"version of {name}", version, "rounding, or a changed default")
    yield from _of(records, "machine", machine, "rounding; minutes do not compare")
    yield from _of(records, "threads", lambda r: str(r.environment.get("threads")), "the order of sums; minutes do not compare")


def precision(record: Record) -> str:
    """What ``auto`` came to where it is set."""
    chosen = str(record.config.get("precision", "auto"))
    return chosen if chosen != "auto" else "bf16" if record.environment.get("accelerator") else "fp32"


def commit(record: Record) -> str:
    return str(record.environment.get("commit") or "unknown")[:12]


def revision(record: Record) -> str:
    """The commit, and whether files of the checkout had been modified."""
    return commit(record) + (", modified" if record.environment.get("dirty") else "")


def versions(record: Record) -> Mapping[str, str]:
    """Of Python and of the packages whose versions a record holds."""
    packages: dict[str, Any] = record.environment.get("packages") or {}
    return {"python": str(record.environment.get("python")), **{name: str(version) for name, version in packages.items()}}


def machine(record: Record) -> str:
    return str(record.environment.get("accelerator") or record.environment.get("cpu"))


def _of(records: Sequence[Record], what: str, value: Callable[[Record], str], why: str, breaks: bool = False) -> Iterable[Unequal]:
    """One inequality where ``value`` differs between the runs, none where it does not."""
    held = [value(record) for record in records]
    if len(set(held)) < 2:
        return
    settings = [setting.label for setting in differing_settings(records)]
    follows = len(set(zip(settings, held, strict=True))) == len(set(settings)) > 1
    values = _grouped(zip(held, (record.run.name for record in records), strict=True))
    yield Unequal(what, values, why, breaks, varied=breaks and follows)
