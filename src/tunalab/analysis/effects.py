"""What one choice changes while the others stay: effects and interactions of the factors of a sweep.

A level None does not apply: a run without masking masks neither kind of image, so it may stand
beside runs that mask either.

An effect is a contrast of cells, sum_c w_c mean_c. Main effect of a level: the mean, over all
pairs of cells that differ in that factor alone, of the cell at the level minus the cell at the
reference. Interaction of two: how much the effect of one changes when the other leaves its
reference (difference of differences). Matched: two cells that differ in several factors and train
as many parameters, as one of them was made to.

All cells of a contrast are paired: same seeds, same questions.

    S  seeds    I  questions    C  cells
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from tunalab.analysis.curves import align_tokens, curves, last_common_tokens
from tunalab.analysis.statistics import ALPHA, benjamini_hochberg, of_items, of_seeds, question_error, score_at
from tunalab.analysis.written import markdown_table, with_interval, write_tables_to
from tunalab.records.labels import (
    MASK_RATIO,
    Value,
    benchmark_label,
    compared,
    identity,
    key_labels,
    ordered_benchmarks,
    value_label,
)
from tunalab.records.record import Point, Record, usable

Flat = Mapping[str, Value]
Level = str | int | float | bool | None
_STATED = "stated."  # before the name of a factor that front-ends state, beside the settings
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


OF_SETTINGS = (
    # A token's side in pixels is the patch only where cells are pixels.
    Factor("patch size", lambda flat: None if flat["frontend.vae"] else flat["frontend.patch"], ("frontend.patch",)),
    Factor("decoder", lambda flat: f"{flat['decoder.layers']} layers of {flat['decoder.mlp']}", ("decoder.layers", "decoder.mlp")),
    Factor("prediction", lambda flat: flat["objective.prediction"], ("objective.prediction",)),
    Factor("mask ratio", lambda flat: flat[MASK_RATIO], (MASK_RATIO,)),
    Factor("masked", _masked, ("objective.masking.understanding", "objective.masking.generation")),
    Factor("share of generation", _generation_share, ()),
)


def factors_and_cells(records: Sequence[Record]) -> tuple[list[Factor], list[Cell]]:
    """The factors that differ between the records: those that the front-ends state, those of settings, which front-end where they
    stand at the same levels, then settings that differ beyond them; and the cells.

    A setting that changes only together with those before it is no factor of its own.
    """
    looks = [record.look for record in records]
    flats: list[dict[str, Value]] = [
        flat | {f"{_STATED}{name}": level for name, level in look.factors.items()}
        for flat, look in zip(compared(records), looks, strict=True)
    ]
    stated = [
        Factor(name, lambda flat, key=f"{_STATED}{name}": flat.get(key), ())  # type: ignore[misc]
        for name in dict.fromkeys(name for look in looks for name in look.factors)
    ]
    choices = (*(_by_weights(factor, flats) for factor in stated), *OF_SETTINGS)
    factors = [factor for factor in choices if len({factor.level(flat) for flat in flats} - {None}) > 1]
    covered = (*(key for factor in OF_SETTINGS for key in factor.keys), _STATED, "components.")
    others = (key for flat in flats for key in flat if not key.startswith(covered) and key != "stages")
    keys = dict.fromkeys(("frontend.name", *others))
    labels = dict(zip((flat.get("frontend.name") for flat in flats), (look.label for look in looks), strict=True))
    for key in keys:
        before = [tuple(factor.level(flat) for factor in factors) for flat in flats]
        values = [flat.get(key) for flat in flats]
        if len(set(zip(before, values, strict=True))) > len(set(before)):
            if key == "frontend.name":
                factors.append(Factor("front-end", lambda flat: labels[flat.get("frontend.name")], (key,)))
            else:
                factors.append(Factor(key_labels([key])[key], lambda flat, key=key: flat.get(key), (key,)))  # type: ignore[misc]
    groups: dict[tuple[tuple[Level, ...], str], list[Record]] = {}
    for record, flat in zip(records, flats, strict=True):
        groups.setdefault((tuple(factor.level(flat) for factor in factors), identity(record)), []).append(record)
    return factors, [Cell(levels, tuple(group)) for (levels, _), group in groups.items()]


def _by_weights(stated: Factor, flats: Sequence[Flat]) -> Factor:
    """An encoder or VAE that a front-end states, told by its weights too where these differ, as snapshots of a pretraining do."""
    setting = f"frontend.{stated.name.lower()}"
    used = ("pretrained", "frozen", "VAE")  # levels whose weights are read
    if len({flat.get(setting) for flat in flats if stated.level(flat) in used}) < 2:
        return stated

    def level(flat: Flat) -> Level:
        return f"{stated.level(flat)} {flat.get(setting)}" if stated.level(flat) in used else stated.level(flat)

    return Factor(stated.name, level, ())


def ordered_levels(levels: Sequence[Level]) -> list[Level]:
    """None left out; "none" and numbers by size first: the first is what the others are compared with."""
    present = {level for level in levels if level is not None}
    first = ("none", "scratch", "linear", "x", "both")

    def place(level: Level) -> tuple[Any, ...]:
        if not isinstance(level, str):
            return True, False, level
        return level not in first, True, [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", level)]

    return sorted(present, key=place)


Weights = Mapping[Cell, float]
Kind = Literal["main", "matched", "interaction"]
MATCHED = 0.005  # of the trained parameters: closer are two cells only where one was made for it


@dataclass(frozen=True)
class Contrast:
    """``level`` against ``reference`` of ``factor`` (of several, joined by commas, where cells are matched); ``with_``: of an
    interaction, the other factor's level and reference. ``pairs``: comparisons averaged.
    """

    kind: Kind
    factor: str
    level: str
    reference: str
    with_: str
    weights: Weights
    pairs: int


def contrasts(factors: Sequence[Factor], cells: Sequence[Cell]) -> Iterator[Contrast]:
    """Main effects of every factor, matched cells, then interactions of every two factors, of their levels against the first."""
    levels = [ordered_levels([cell.levels[index] for cell in cells]) for index in range(len(factors))]
    for index, factor in enumerate(factors):
        for level, reference in _compared(levels[index]):
            at, against = ([cell for cell in cells if cell.levels[index] == one] for one in (level, reference))
            pairs = [(a, b) for a, b in product(at, against) if _equal_but(a, b, {index})]
            if pairs:
                words = value_label(level), value_label(reference)
                yield Contrast("main", factor.name, *words, "", _mean_weights(pairs, (1, -1)), len(pairs))
    yield from _matched(factors, cells)
    for (i, first), (j, second) in combinations(enumerate(factors), 2):
        (reference_i, *others_i), (reference_j, *others_j) = levels[i], levels[j]
        for level_i, level_j in product(others_i, others_j):
            corners = (level_i, level_j), (reference_i, level_j), (level_i, reference_j), (reference_i, reference_j)
            at_corners = [_at(cells, {i: a, j: b}) for a, b in corners]
            alike = (square for square in product(*at_corners) if all(_equal_but(one, square[0], {i, j}) for one in square[1:]))
            squares = [square for square in alike if len(set(square)) > 2]  # of two cells it is a main effect, or nothing
            if squares and (weights := _mean_weights(squares, (1, -1, -1, 1))):
                words = value_label(level_i), value_label(reference_i)
                other = f"{second.name}: {value_label(level_j)} instead of {value_label(reference_j)}"
                yield Contrast("interaction", first.name, *words, other, weights, len(squares))


def _matched(factors: Sequence[Factor], cells: Sequence[Cell]) -> Iterator[Contrast]:
    for a, b in permutations(cells, 2):
        trained, fewer = (cell.records[0].parameters["trainable"] for cell in (a, b))
        differing = [index for index, (one, other) in enumerate(zip(a.levels, b.levels, strict=True)) if one != other]
        if len(differing) < 2 or not 0 < trained / fewer - 1 < MATCHED:
            continue
        # The cell with an encoder, or whatever the first factor adds, is compared with the one without.
        levels = ordered_levels([cell.levels[differing[0]] for cell in (a, b)])
        first, second = (b, a) if levels and a.levels[differing[0]] == levels[0] else (a, b)
        names = ", ".join(factors[index].name for index in differing)
        level, reference = (", ".join(value_label(cell.levels[index]) for index in differing) for cell in (first, second))
        yield Contrast("matched", names, level, reference, "", {first: 1.0, second: -1.0}, 1)


def _compared(levels: Sequence[Level]) -> list[tuple[Level, Level]]:
    """(level, reference): words with each other, numbers with the smallest, as they are a scale."""
    if all(isinstance(level, str) for level in levels):
        return [(level, reference) for reference, level in combinations(levels, 2)]
    return [(level, levels[0]) for level in levels[1:]]


def _at(cells: Sequence[Cell], levels: Mapping[int, Level]) -> list[Cell]:
    """Cells at these levels; one to which a factor does not apply stands for each of its levels."""
    return [cell for cell in cells if all(cell.levels[index] in (level, None) for index, level in levels.items())]


def _equal_but(a: Cell, b: Cell, but: set[int]) -> bool:
    pairs = enumerate(zip(a.levels, b.levels, strict=True))
    return all(one == other or one is None or other is None for index, (one, other) in pairs if index not in but)


def _mean_weights(groups: Sequence[Sequence[Cell]], signs: Sequence[int]) -> dict[Cell, float]:
    """Of the mean over groups of cells, each cell with the sign of its place; cells that cancel are left out."""
    weights: Counter[Cell] = Counter()
    for group in groups:
        for cell, sign in zip(group, signs, strict=True):
            weights[cell] += sign
    return {cell: weight / len(groups) for cell, weight in weights.items() if weight}


MEAN, TEXT_LOSS = "mean accuracy", "text loss, nats"
PSNR = "one-step PSNR at t = "  # of each flow time on its own: near noise and near the image models differ, and in other ways
TITLES = {"main": "Main effects", "matched": "As many trained parameters", "interaction": "Interactions"}
COLUMNS = ["effect", "factor", "level", "reference", "with", "outcome", "value", "low", "high", "p", "pairs", "seeds", "n"]
Outcome = Callable[[Point], float | None]  # a number of a point, None where it has none


def write_effects(records: Sequence[Record], folder: Path, command: str) -> list[Path]:
    """Write ``effects.md`` and ``effects.csv``; nothing where no two runs differ in one factor alone.

    Raises UserError: the records share no point at equal tokens, or hold the same run twice.
    """
    table = effects_table(records)
    if table.empty:
        return []
    return write_tables_to(folder, command, {"effects.md": effects_markdown(table), "effects.csv": table})


def effects_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row per contrast and outcome, at the last point that all finished runs share.

    Outcomes: accuracy by benchmark and its mean over benchmarks, held-out text loss, one-step PSNR by flow time. Each contrast is
    taken seed by seed, with the interval of its own cells (statistics.py), so that cells may scatter differently and share a trunk
    of training. ``q``: the p-value after Benjamini and Hochberg's correction for all numbers of the table.
    """
    finished = usable(records)
    aligned = align_tokens(curves(finished)) if finished else pd.DataFrame()
    if aligned.empty:
        return pd.DataFrame(columns=COLUMNS)
    tokens = last_common_tokens(aligned)
    benchmarks = ordered_benchmarks(aligned["benchmark"])
    factors, cells = factors_and_cells(finished)
    names = text_losses(finished, tokens)
    continuous = _continuous(finished, tokens, names)
    rows: list[tuple[object, ...]] = []
    for contrast in contrasts(factors, cells):
        seeds = _common_seeds(contrast.weights)
        if not seeds:
            continue
        about = (contrast.kind, contrast.factor, contrast.level, contrast.reference, contrast.with_)
        values = {name: _accuracy(contrast.weights, seeds, name, tokens) for name in benchmarks}
        measured = {name: [value_SI] for name, value_SI in values.items() if value_SI is not None}
        found = {name: of_items(of) for name, of in {MEAN: [of for (of,) in measured.values()], **measured}.items() if of}
        for name, of_point in continuous.items():
            value_S = _by_seed(contrast.weights, seeds, of_point, tokens)
            if value_S is not None:
                documents = _of_documents(contrast.weights, seeds, tokens, names) if name == TEXT_LOSS else 0.0
                found[name] = of_seeds(value_S, documents, n=len(seeds))
        rows += [(*about, name, *one.bounds, one.p, contrast.pairs, one.seeds, one.n) for name, one in found.items()]
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(("low", "high", "p"), float))
    table["q"] = pd.Series(benjamini_hochberg(table["p"].tolist()), dtype=float)
    return table


def effects_markdown(table: pd.DataFrame) -> str:
    """A row per contrast: mean accuracy, text loss and PSNR with intervals, then each benchmark; bold where 0 is excluded."""
    outcomes = ordered_outcomes(table)
    head, text = ["choice", "pairs", "seeds", *map(outcome_label, outcomes)], []
    for kind, title in TITLES.items():
        part = table[table["effect"] == kind]
        shown = []
        for key, rows in part.groupby(["factor", "level", "reference", "with"], sort=False):
            factor, level, reference, other = map(str, key)
            by_outcome = {str(row["outcome"]): row for row in rows.to_dict("records")}
            first = rows.iloc[0]
            label = f"{factor}: {level} instead of {reference}" + (f", more with {other}" if other else "")
            cells = [_effect(by_outcome[name], name) if name in by_outcome else "" for name in outcomes]
            shown.append([label, str(first["pairs"]), str(first["seeds"]), *cells])
        text += [f"## {title}\n\n{markdown_table(head, shown)}\n"] if shown else []
    cover = (
        "One seed says nothing of another, so that there are no intervals."
        if (table["seeds"] == 1).all()
        else "95% intervals of each contrast by itself: Student's t over its values by seed and the error over questions (of text "
        "losses: documents, where records hold losses by document). "
        f"Bold: 0 is excluded after Benjamini and Hochberg's correction for the {len(table)} numbers here (q < {ALPHA})."
    )
    note = (
        "Accuracies in percentage points. Each effect is a mean over pairs of runs that differ in the named choice alone; an "
        f"interaction says by how much the effect differs where the other choice differs too. {cover}"
    )
    return "\n".join([*text, note, ""])


def ordered_outcomes(table: pd.DataFrame) -> list[str]:
    """Mean accuracy, text loss and PSNR first, then each benchmark."""
    found = list(dict.fromkeys(table["outcome"]))
    first = [name for name in found if name in (MEAN, TEXT_LOSS) or name.startswith(PSNR)]
    return sorted(first, key=lambda name: name != MEAN) + [name for name in found if name not in first]


def outcome_label(outcome: str) -> str:
    return outcome if outcome in (MEAN, TEXT_LOSS) or outcome.startswith(PSNR) else benchmark_label(outcome)


def unit(outcome: str) -> float:
    """What a value is multiplied with to be shown: shares as percentage points, nats and decibels as they are."""
    return 1.0 if outcome == TEXT_LOSS or outcome.startswith(PSNR) else 100.0


def _of_seed(cell: Cell, seed: int) -> Record:
    return next(record for record in cell.records if record.run.seed == seed)


def _accuracy(weights: Weights, seeds: Sequence[int], benchmark: str, tokens: int) -> np.ndarray | None:
    """The contrast by seed and question, (S, I); None where a run has no outcomes on record or other questions."""
    rows = []
    for seed in seeds:
        total = np.zeros(0)
        for cell, weight in weights.items():
            score = score_at(_of_seed(cell, seed), benchmark, tokens)
            items = None if score is None else score.items()
            if items is None or (len(total) and len(items) != len(total)):
                return None
            total = weight * items + (total if len(total) else 0)
        rows.append(total)
    return np.stack(rows) if len({len(row) for row in rows}) == 1 else None


def _continuous(records: Sequence[Record], tokens: int, names: Sequence[str]) -> Mapping[str, Outcome]:
    """Outcomes that are no shares of questions. ``names``: of the text losses."""
    times = sorted({t for record in records for t in _point_at(record, tokens).one_step_psnr}, key=float)
    found: dict[str, Outcome] = {f"{PSNR}{t}, dB": lambda point, t=t: point.one_step_psnr.get(t) for t in times}  # type: ignore[misc]
    return {TEXT_LOSS: lambda point: float(np.mean([point.losses[name] for name in names])), **found} if names else found


def text_losses(records: Sequence[Record], tokens: int) -> list[str]:
    """The held-out text losses that all of them have: a run measures those of its own mix, and other kinds have other losses."""
    return sorted(set.intersection(*({n for n in _point_at(one, tokens).losses if n.startswith("text/")} for one in records)))


def _of_documents(weights: Weights, seeds: Sequence[int], tokens: int, names: Sequence[str]) -> float:
    """Standard error of the contrast of text losses over the documents that all runs are asked, by the seeds whose records hold
    losses by document; 0 where none does, as none before 2026-11-30.
    """
    points = {(cell, seed): _point_at(_of_seed(cell, seed), tokens) for cell in weights for seed in seeds}
    gap_KSD = []
    for name in names:
        having = [seed for seed in seeds if all(name in points[cell, seed].loss_items for cell in weights)]
        off = {at: points[at].loss_items[name].off(points[at].losses[name]) for at in points if at[1] in having}
        if having and len({len(off_D) for off_D in off.values()}) == 1:
            gap_KSD.append(np.stack([np.sum([w * off[cell, seed] for cell, w in weights.items()], axis=0) for seed in having]))
    return question_error(gap_KSD, shares=False) if gap_KSD else 0.0


def _point_at(record: Record, tokens: int) -> Point:
    return min(record.points, key=lambda point: abs(point.tokens - tokens))


def _by_seed(weights: Weights, seeds: Sequence[int], outcome: Outcome, tokens: int) -> np.ndarray | None:
    """The contrast of a continuous outcome at the point at ``tokens``, (S,); None where a run has none."""
    total_S = np.zeros(len(seeds))
    for cell, weight in weights.items():
        found = [outcome(_point_at(_of_seed(cell, seed), tokens)) for seed in seeds]
        if None in found:
            return None
        total_S += weight * np.array(found, dtype=float)
    return total_S


def _common_seeds(weights: Weights) -> list[int]:
    return sorted(set.intersection(*({record.run.seed for record in cell.records} for cell in weights)))


def _effect(row: Mapping[Any, Any], outcome: str) -> str:
    scale, digits = unit(outcome), 3 if outcome == TEXT_LOSS else 2 if outcome.startswith(PSNR) else 1
    text = with_interval([row[name] for name in ("value", "low", "high")], lambda value: f"{scale * value:+.{digits}f}")
    return f"**{text}**" if row["q"] < ALPHA else text
