"""What one choice changes while the others stay as they are: main effects and interactions of a sweep's factors, with intervals.

An effect is a contrast of cells, sum_c w_c mean_c. Main effect of a level: the mean, over all pairs of cells that differ in that
factor alone, of the cell at the level minus the cell at the reference. Interaction of two: how much the effect of one changes when
the other leaves its reference (difference of differences). All cells of a contrast are paired: same seeds, same questions.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from tunalab.files import write_atomically
from tunalab.results.analysis.curves import align_tokens, curves, last_common_tokens
from tunalab.results.analysis.factors import Cell, Factor, Level, factors_and_cells, level_label, ordered_levels
from tunalab.results.analysis.statistics import joint_interval, score_at
from tunalab.results.labels import benchmark_label, ordered_benchmarks
from tunalab.results.records import Point, Record, usable

MEAN, TEXT_LOSS = "mean accuracy", "text loss, nats"
PSNR = "one-step PSNR at t = "  # of each flow time on its own: near noise and near the image models differ, and in other ways
COLUMNS = ["effect", "factor", "level", "reference", "with", "outcome", "value", "low", "high", "pairs", "seeds", "n"]
Weights = Mapping[Cell, float]


@dataclass(frozen=True)
class Contrast:
    """``with_``: empty for a main effect, else the other factor's level and reference. ``pairs``: comparisons averaged."""

    factor: str
    level: Level
    reference: Level
    with_: str
    weights: Weights
    pairs: int

    @property
    def label(self) -> str:
        text = f"{self.factor}: {level_label(self.level)} - {level_label(self.reference)}"
        return f"{text}, {self.with_}" if self.with_ else text


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

    Outcomes: accuracy by benchmark and its mean over benchmarks, with bootstrap intervals over questions and seeds; held-out text
    loss and one-step PSNR, with Student's t over the seeds' paired differences (none for one seed). Intervals are 95%, without
    correction for how many there are.
    """
    finished = usable(records)
    aligned = align_tokens(curves(finished)) if finished else pd.DataFrame()
    if aligned.empty:
        return pd.DataFrame(columns=COLUMNS)
    tokens = last_common_tokens(aligned)
    benchmarks = ordered_benchmarks(aligned["benchmark"])
    factors, cells = factors_and_cells(finished)
    continuous = _continuous(finished, tokens)
    rows: list[tuple[object, ...]] = []
    for contrast in contrasts(factors, cells):
        seeds = sorted(set.intersection(*({record.run.seed for record in cell.records} for cell in contrast.weights)))
        if not seeds:
            continue
        kind = "interaction" if contrast.with_ else "main"
        told = (kind, contrast.factor, level_label(contrast.level), level_label(contrast.reference), contrast.with_)
        values = {name: _accuracy(contrast.weights, seeds, name, tokens) for name in benchmarks}
        known = {name: value_SI for name, value_SI in values.items() if value_SI is not None}
        for name, of in [(MEAN, list(known.values())), *((name, [value_SI]) for name, value_SI in known.items())]:
            if of:
                mean = float(np.mean([value_SI.mean() for value_SI in of]))
                n = sum(value_SI.shape[1] for value_SI in of)
                rows.append((*told, name, mean, *joint_interval(of), contrast.pairs, len(seeds), n))
        for name, of_point in continuous.items():
            value_S = _mean_of(contrast.weights, seeds, of_point, tokens)
            if value_S is not None:
                rows.append((*told, name, float(value_S.mean()), *_student(value_S), contrast.pairs, len(seeds), len(seeds)))
    return pd.DataFrame(rows, columns=COLUMNS)


def effects_markdown(table: pd.DataFrame) -> str:
    """A row per contrast: mean accuracy, text loss and PSNR with intervals, then each benchmark; bold where 0 is excluded."""
    outcomes = ordered_outcomes(table)
    text = []
    for kind, title in (("main", "Main effects"), ("interaction", "Interactions")):
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
        "interaction says by how much the effect differs where the other choice differs too. 95% intervals: accuracies from a "
        "bootstrap over questions and seeds, paired by both; loss and PSNR from Student's t over the seeds. Bold: 0 is outside. "
        f"Not corrected for the {len(table)} numbers here: of twenty without any effect about one is bold by luck."
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


def contrasts(factors: Sequence[Factor], cells: Sequence[Cell]) -> Iterator[Contrast]:
    """Main effects of every factor, then interactions of every two, of their levels against the first."""
    levels = [ordered_levels([cell.levels[index] for cell in cells]) for index in range(len(factors))]
    for index, factor in enumerate(factors):
        for level, reference in _compared(levels[index]):
            at, against = ([cell for cell in cells if cell.levels[index] == one] for one in (level, reference))
            pairs = [(a, b) for a, b in product(at, against) if _equal_but(a, b, {index})]
            if pairs:
                signs = [(cell, sign / len(pairs)) for pair in pairs for cell, sign in zip(pair, (1, -1), strict=True)]
                yield Contrast(factor.name, level, reference, "", _summed(signs), len(pairs))
    for (i, first), (j, second) in combinations(enumerate(factors), 2):
        (reference_i, *others_i), (reference_j, *others_j) = levels[i], levels[j]
        for level_i, level_j in product(others_i, others_j):
            corners = [
                ((level_i, level_j), 1),
                ((reference_i, level_j), -1),
                ((level_i, reference_j), -1),
                ((reference_i, reference_j), 1),
            ]
            found = [_at(cells, {i: a, j: b}) for (a, b), _ in corners]
            alike = (square for square in product(*found) if all(_equal_but(one, square[0], {i, j}) for one in square[1:]))
            squares = [square for square in alike if len(set(square)) > 2]  # of two cells it is a main effect, or nothing
            if squares:
                signs = [(cell, sign / len(squares)) for square in squares for cell, (_, sign) in zip(square, corners, strict=True)]
                other = f"{second.name}: {level_label(level_j)} instead of {level_label(reference_j)}"
                weights = _summed(signs)
                if weights:
                    yield Contrast(first.name, level_i, reference_i, other, weights, len(squares))


def _compared(levels: Sequence[Level]) -> list[tuple[Level, Level]]:
    """(level, reference): words with each other, numbers with the smallest, as they are a scale."""
    if all(isinstance(level, str) for level in levels):
        return [(level, reference) for reference, level in combinations(levels, 2)]
    return [(level, levels[0]) for level in levels[1:]]


def _at(cells: Sequence[Cell], wanted: Mapping[int, Level]) -> list[Cell]:
    """Cells at these levels; one to which a factor does not apply stands for each of its levels."""
    return [cell for cell in cells if all(cell.levels[index] in (level, None) for index, level in wanted.items())]


def _equal_but(a: Cell, b: Cell, but: set[int]) -> bool:
    pairs = enumerate(zip(a.levels, b.levels, strict=True))
    return all(one == other or one is None or other is None for index, (one, other) in pairs if index not in but)


def _summed(signs: Sequence[tuple[Cell, float]]) -> dict[Cell, float]:
    weights: Counter[Cell] = Counter()
    for cell, weight in signs:
        weights[cell] += weight  # type: ignore[assignment]
    return {cell: weight for cell, weight in weights.items() if abs(weight) > 1e-12}


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


def _continuous(records: Sequence[Record], tokens: int) -> Mapping[str, Callable[[Point], float | None]]:
    """Outcomes that are no shares of questions: each a number of a point, None where it has none."""
    times = sorted({t for record in records for t in _point_at(record, tokens).one_step_psnr}, key=float)
    return {TEXT_LOSS: _text_loss, **{f"{PSNR}{t}, dB": partial(_psnr, t) for t in times}}


def _psnr(t: str, point: Point) -> float | None:
    return point.one_step_psnr.get(t)


def _text_loss(point: Point) -> float | None:
    losses = [loss for name, loss in point.losses.items() if name.startswith("text/")]
    return float(np.mean(losses)) if losses else None


def _point_at(record: Record, tokens: int) -> Point:
    return min(record.points, key=lambda point: abs(point.tokens - tokens))


def _mean_of(weights: Weights, seeds: Sequence[int], outcome: Callable[[Point], float | None], tokens: int) -> np.ndarray | None:
    """The contrast of a continuous outcome at the point at ``tokens``, by seed, (S,); None where a run has none."""
    totals = []
    for seed in seeds:
        found = {cell: outcome(_point_at(_of_seed(cell, seed), tokens)) for cell in weights}
        known = [weights[cell] * value for cell, value in found.items() if value is not None]
        if len(known) < len(found):
            return None
        totals.append(sum(known))
    return np.array(totals)


def _student(value_S: np.ndarray) -> tuple[float | None, float | None]:
    if len(value_S) < 2:
        return None, None
    half = float(stdtrit(len(value_S) - 1, 0.975) * value_S.std(ddof=1) / np.sqrt(len(value_S)))
    return float(value_S.mean()) - half, float(value_S.mean()) + half


def _effect(row: Mapping[object, object] | None, outcome: str) -> str:
    if row is None:
        return ""
    scale, digits = unit(outcome), 3 if outcome == TEXT_LOSS else 2 if outcome.startswith(PSNR) else 1
    value, low, high = (float(row[name]) * scale for name in ("value", "low", "high"))  # type: ignore[arg-type]
    if np.isnan(low):
        return f"{value:+.{digits}f}"
    text = f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
