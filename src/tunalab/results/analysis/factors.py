"""The choices that a sweep varies, read from the records: each run is a cell of levels.

A level None does not apply: a run without masking masks neither kind of image, so it may stand beside runs that mask either.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tunalab.results.labels import MASK_RATIO, key_labels, value_label
from tunalab.results.records import Record
from tunalab.results.settings import Value, flat_settings, identity

Flat = Mapping[str, Value]
Level = str | int | float | bool | None
_GENERATION = ("/text_to_image", "/edit")


@dataclass(frozen=True)
class Factor:
    """A choice: its name, how its level is read from a run's settings, and the beginnings of the keys that it accounts for."""

    name: str
    level: Callable[[Flat], Level]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """Runs that differ in the seed alone, and their levels, one a factor."""

    levels: tuple[Level, ...]
    records: tuple[Record, ...] = field(compare=False)


def _encoder(flat: Flat) -> Level:
    if not flat["frontend.encoder"]:
        return "none"
    if not flat["frontend.encoder_pretrained"]:
        return "scratch"
    return "pretrained" if flat["frontend.encoder_trained"] else "frozen"


def _masked(flat: Flat) -> Level:
    kinds = [kind for kind in ("understanding", "generation") if flat[f"objective.masking.{kind}"]]
    return None if not flat[MASK_RATIO] else "both" if len(kinds) == 2 else kinds[0] if kinds else "neither"


def _generation_share(flat: Flat) -> Level:
    """Of the documents of the longest stage."""
    budgets = {key.split(".")[1]: value for key, value in flat.items() if key.startswith("stages.") and key.endswith(".tokens")}
    longest = max(budgets, key=lambda stage: float(budgets[stage] or 0))
    prefix = f"stages.{longest}.mix."
    mix = {key.removeprefix(prefix): float(value or 0) for key, value in flat.items() if key.startswith(prefix)}
    return round(sum(weight for source, weight in mix.items() if source.endswith(_GENERATION)) / sum(mix.values()), 3)


KNOWN = (
    Factor("encoder", _encoder, ("frontend.encoder",)),
    Factor("VAE", lambda flat: "VAE" if flat["frontend.vae"] else "none", ("frontend.vae",)),
    Factor("patch embedding", lambda flat: "bottleneck" if flat["frontend.name"] == "bottleneck" else "linear", ("frontend.name",)),
    # A token's side in pixels is the patch only where cells are pixels.
    Factor("patch size", lambda flat: None if flat["frontend.vae"] else flat["frontend.patch"], ("frontend.patch",)),
    Factor("decoder", lambda flat: f"{flat['decoder.layers']} layers of {flat['decoder.mlp']}", ("decoder.layers", "decoder.mlp")),
    Factor("prediction", lambda flat: flat["objective.prediction"], ("objective.prediction",)),
    Factor("mask ratio", lambda flat: flat[MASK_RATIO], (MASK_RATIO,)),
    Factor("masked", _masked, ("objective.masking.understanding", "objective.masking.generation")),
    Factor("share of generation", _generation_share, tuple(f"stages.{stage}.mix" for stage in ("connector", "pretrain", "sft"))),
)


def factors_and_cells(records: Sequence[Record]) -> tuple[list[Factor], list[Cell]]:
    """The factors that differ between the records, known ones first, then settings that differ beyond them; and the cells.

    A setting that changes only together with those before it is no factor of its own.
    """
    flats = [flat_settings(record) for record in records]
    factors = [factor for factor in KNOWN if len({factor.level(flat) for flat in flats} - {None}) > 1]
    covered = tuple(key for factor in KNOWN for key in factor.keys) + ("components.", "stages")
    keys = dict.fromkeys(key for flat in flats for key in flat if not key.startswith(covered))
    for key in keys:
        seen = [tuple(factor.level(flat) for factor in factors) for flat in flats]
        values = [flat.get(key) for flat in flats]
        if len(set(zip(seen, values, strict=True))) > len(set(seen)):
            factors.append(Factor(key_labels([key])[key], lambda flat, key=key: flat.get(key), (key,)))  # type: ignore[misc]
    groups: dict[tuple[tuple[Level, ...], str], list[Record]] = {}
    for record, flat in zip(records, flats, strict=True):
        groups.setdefault((tuple(factor.level(flat) for factor in factors), identity(record)), []).append(record)
    return factors, [Cell(levels, tuple(group)) for (levels, _), group in groups.items()]


def ordered_levels(levels: Sequence[Level]) -> list[Level]:
    """None left out; "none" and numbers by size first: the first is what the others are compared with."""
    present = {level for level in levels if level is not None}
    first = ("none", "linear", "x", "both")
    return sorted(present, key=lambda level: (level not in first, isinstance(level, str), level))  # type: ignore[type-var]


def level_label(level: Level) -> str:
    return value_label(level)
