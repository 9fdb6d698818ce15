"""What one choice changes while the others stay as they are: main effects and interactions of a sweep's factors, with intervals.

All cells of a contrast are paired: same seeds, same questions.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from tunalab.evaluation.score import Score
from tunalab.files import write_atomically
from tunalab.results.analysis.contrasts import Weights, contrasts
from tunalab.results.analysis.curves import align_tokens, curves, last_common_tokens
from tunalab.results.analysis.factors import Cell, factors_and_cells
from tunalab.results.analysis.scatter import Scatter, scatter_of_contrasts
from tunalab.results.analysis.statistics import joint_interval, score_at
from tunalab.results.labels import benchmark_label, ordered_benchmarks
from tunalab.results.records import Point, Record, usable

MEAN, TEXT_LOSS = "mean accuracy", "text loss, nats"
PSNR = "one-step PSNR at t = "  # of each flow time on its own: near noise and near the image models differ, and in other ways
TITLES = {"main": "Main effects", "matched": "As many trained parameters", "interaction": "Interactions"}
COLUMNS = ["effect", "factor", "level", "reference", "with", "outcome", "value", "low", "high", "pairs", "seeds", "n"]
Outcome = Callable[[Point], float | None]  # a number of a point, None where it has none


def write_effects(records: Sequence[Record], folder: Path, command: str) -> list[Path]:
    """Write ``effects.md`` and ``effects.csv``; nothing where no two runs differ in one factor alone.

    Raises UserError: the records share no point at equal tokens, or hold the same run twice.
    """
    table = effects_table(records)
    if table.empty:
        return []
    csv = f"# made by: {command}\n" + table.to_csv(index=False, float_format="%.6g")
    markdown = f"<!-- made by: {command} -->\n\n" + effects_markdown(table)
    write_atomically(folder / "effects.csv", csv)
    write_atomically(folder / "effects.md", markdown)
    return [folder / "effects.md", folder / "effects.csv"]


def effects_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row per contrast and outcome, at the last point that all finished runs share.

    Outcomes: accuracy by benchmark and its mean over benchmarks, held-out text loss, one-step PSNR by flow time. 95% intervals,
    without correction for how many there are: Student's t of the scatter between seeds, which all cells estimate together
    (:mod:`scatter`), for accuracies added to a bootstrap over questions. With one seed accuracies have that of questions alone,
    which says nothing of another seed, and the others none.
    """
    finished = usable(records)
    aligned = align_tokens(curves(finished)) if finished else pd.DataFrame()
    if aligned.empty:
        return pd.DataFrame(columns=COLUMNS)
    tokens = last_common_tokens(aligned)
    benchmarks = ordered_benchmarks(aligned["benchmark"])
    factors, cells = factors_and_cells(finished)
    continuous = _continuous(finished, tokens)
    scatters = _scatters(cells, benchmarks, continuous, tokens)
    rows: list[tuple[object, ...]] = []
    for contrast in contrasts(factors, cells):
        seeds = _common_seeds(contrast.weights)
        if not seeds:
            continue
        if len(seeds) < 2:
            between: Mapping[str, Scatter | None] = {}
        else:  # cells of this contrast alone, where others have fewer seeds
            between = scatters or _scatters(list(contrast.weights), benchmarks, continuous, tokens)
        squares = sum(weight**2 for weight in contrast.weights.values())
        told = (contrast.kind, contrast.factor, contrast.level, contrast.reference, contrast.with_)
        values = {name: _accuracy(contrast.weights, seeds, name, tokens) for name in benchmarks}
        known = {name: value_SI for name, value_SI in values.items() if value_SI is not None}
        for name, of in [(MEAN, list(known.values())), *((name, [value_SI]) for name, value_SI in known.items())]:
            if of:
                mean = float(np.mean([value_SI.mean() for value_SI in of]))
                n = sum(value_SI.shape[1] for value_SI in of)
                bounds = joint_interval(of, between.get(name), squares)
                rows.append((*told, name, mean, *bounds, contrast.pairs, len(seeds), n))
        for name, of_point in continuous.items():
            value = _mean_of(contrast.weights, seeds, of_point, tokens)
            if value is not None:
                scatter = between.get(name)
                half = None if scatter is None else scatter.half_width(len(seeds), squares)
                ends = (None, None) if half is None else (value - half, value + half)
                rows.append((*told, name, value, *ends, contrast.pairs, len(seeds), len(seeds)))
    return pd.DataFrame(rows, columns=COLUMNS)


def effects_markdown(table: pd.DataFrame) -> str:
    """A row per contrast: mean accuracy, text loss and PSNR with intervals, then each benchmark; bold where 0 is excluded."""
    outcomes = ordered_outcomes(table)
    text = []
    for kind, title in TITLES.items():
        part = table[table["effect"] == kind]
        if part.empty:
            continue
        text += [
            f"## {title}",
            "",
            _row(["choice", "pairs", "seeds", *map(outcome_label, outcomes)]),
            _row(["---", *["---:"] * (2 + len(outcomes))]),
        ]
        for key, rows in part.groupby(["factor", "level", "reference", "with"], sort=False):
            factor, level, reference, other = map(str, key)
            by_outcome = {str(row["outcome"]): row for row in rows.to_dict("records")}
            first = rows.iloc[0]
            label = f"{factor}: {level} instead of {reference}" + (f", more with {other}" if other else "")
            shown = [_effect(by_outcome.get(name), name) for name in outcomes]
            text.append(_row([label, str(first["pairs"]), str(first["seeds"]), *shown]))
        text.append("")
    note = (
        "Accuracies in percentage points. Each effect is a mean over pairs of runs that differ in the named choice alone; an "
        "interaction says by how much the effect differs where the other choice differs too. 95% intervals, paired by seed: "
        f"{_cover(table)} "
        f"Not corrected for the {len(table)} numbers here: of twenty without any effect about one is bold by luck."
    )
    return "\n".join([*text, note, ""])


def _cover(table: pd.DataFrame) -> str:
    if (table["seeds"] == 1).all():
        return "of questions alone, as one seed says nothing of another; so none is bold where 0 is outside."
    return (
        "Student's t of the scatter between seeds, which all runs of the table estimate together, and for accuracies a bootstrap "
        "over questions. Bold: 0 is outside."
    )


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


def _continuous(records: Sequence[Record], tokens: int) -> Mapping[str, Outcome]:
    """Outcomes that are no shares of questions."""
    times = sorted({t for record in records for t in _point_at(record, tokens).one_step_psnr}, key=float)
    return {TEXT_LOSS: _text_loss, **{f"{PSNR}{t}, dB": partial(_psnr, t) for t in times}}


def _psnr(t: str, point: Point) -> float | None:
    return point.one_step_psnr.get(t)


def _text_loss(point: Point) -> float | None:
    losses = [loss for name, loss in point.losses.items() if name.startswith("text/")]
    return float(np.mean(losses)) if losses else None


def _point_at(record: Record, tokens: int) -> Point:
    return min(record.points, key=lambda point: abs(point.tokens - tokens))


def _mean_of(weights: Weights, seeds: Sequence[int], outcome: Outcome, tokens: int) -> float | None:
    """The contrast of a continuous outcome at the point at ``tokens``, the mean over seeds; None where a run has none."""
    total = 0.0
    for cell, weight in weights.items():
        found = [outcome(_point_at(_of_seed(cell, seed), tokens)) for seed in seeds]
        if None in found:
            return None
        total += weight * float(np.mean(found))  # type: ignore[arg-type]
    return total


def _scatters(
    cells: Sequence[Cell], benchmarks: Sequence[str], continuous: Mapping[str, Outcome], tokens: int
) -> dict[str, Scatter | None]:
    """Of each outcome between the seeds that all cells have, over the cells that have the outcome; empty of less than two seeds."""
    seeds = _common_seeds(dict.fromkeys(cells, 1.0))
    if len(seeds) < 2:
        return {}
    runs = [[_of_seed(cell, seed) for seed in seeds] for cell in cells]
    found = {name: [[_share(score_at(run, name, tokens)) for run in own] for own in runs] for name in benchmarks}
    for name, of_point in continuous.items():
        found[name] = [[of_point(_point_at(run, tokens)) for run in own] for own in runs]
    whole = {name: np.array([own for own in values if None not in own], dtype=float) for name, values in found.items()}
    shared = [whole[name] for name in benchmarks if len(whole[name]) == len(cells)]  # a cell that was asked less has another mean
    if shared:
        whole[MEAN] = np.mean(shared, axis=0)
    return {name: scatter_of_contrasts(value_CS) for name, value_CS in whole.items() if len(value_CS)}


def _share(score: Score | None) -> float | None:
    return None if score is None else score.accuracy


def _common_seeds(weights: Weights) -> list[int]:
    return sorted(set.intersection(*({record.run.seed for record in cell.records} for cell in weights)))


def _effect(row: Mapping[object, object] | None, outcome: str) -> str:
    if row is None:
        return ""
    scale, digits = unit(outcome), 3 if outcome == TEXT_LOSS else 2 if outcome.startswith(PSNR) else 1
    value, low, high = (float(row[name]) * scale for name in ("value", "low", "high"))  # type: ignore[arg-type]
    if np.isnan(low):
        return f"{value:+.{digits}f}"
    text = f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    # The interval of one seed holds for its run: no effect of a choice is shown by it.
    return f"**{text}**" if (low > 0 or high < 0) and row["seeds"] != 1 else text


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
