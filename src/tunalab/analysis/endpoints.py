"""What two front-ends are compared by, along their runs: differences by seed, with the error over the questions that all answer.

Primary is what sees a difference with the fewest seeds: the area under the answers' loss, and margins (Score.margins), which still
move where all answers are right, or all at chance. Accuracy is what figures draw.

Early are the evaluations nearest to the shares ``EARLY`` of the tokens, averaged; the end is the last evaluation.

    S  seeds    I  questions
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from math import hypot, log, nan
from pathlib import Path

import numpy as np
import pandas as pd

from tunalab.analysis.curves import AXES, Line, benchmarks, lines, named
from tunalab.analysis.learning import log_weights
from tunalab.analysis.statistics import ALPHA, Estimate, benjamini_hochberg, of_seeds, question_error
from tunalab.analysis.tables import ANSWERS
from tunalab.analysis.written import markdown_table, percent, with_interval, write_tables_to
from tunalab.evaluation.measure import Score
from tunalab.records.labels import benchmark_label, ordered_benchmarks
from tunalab.records.record import Point, Record

EARLY = (0.135, 0.223, 0.367)  # of the tokens: three in a row of the eight evaluations of a run
LOSS, MARGIN, ACCURACY = "answers' loss, area over log tokens", "margin", "accuracy"
# Equal tokens are not equal cost. Seconds are not among them: runs share machines with whatever else these do.
MATCHED = {"flops": "answers' loss, area over log FLOPs that both have", "parameters": "the same over log tokens x parameters"}


@dataclass(frozen=True, eq=False)
class Difference:
    """``what`` of one side less that of the other, by seed, (S,). ``questions``: its standard error over them; ``step`` as in
    ``of_seeds``.
    """

    what: str
    value_S: np.ndarray
    questions: float = 0.0
    nats: bool = True
    step: float = 0.0

    @property
    def estimate(self) -> Estimate:
        return of_seeds(self.value_S, self.questions, step=self.step)

    def less(self, other: "Difference", what: str) -> "Difference":
        """Of the same seeds, other questions."""
        return Difference(what, self.value_S - other.value_S, hypot(self.questions, other.questions), self.nats, self.step)

    def shown(self, bold: bool = False) -> str:
        form = "{:+.3f}".format if self.nats else partial(percent, sign="+")
        return with_interval(self.estimate.bounds, form, bold)


Pairs = Sequence[tuple[Record, Record]]  # of the two sides, by seed
Items = Callable[[Score], np.ndarray | None]


def loss_area(record: Record) -> float:
    """Mean loss of answers over the logarithm of tokens, from the first evaluation to the last; nan of less than two."""
    points = [(point.tokens, point.losses[ANSWERS]) for point in record.points if ANSWERS in point.losses]
    if len(points) < 2:
        return nan
    x_P, loss_P = np.array(points, dtype=float).T
    return float(log_weights(x_P) @ loss_P)


def nearest(record: Record, share: float) -> Point:
    """The evaluation that is nearest, on the log axis, to a share of the run's tokens."""
    return min(record.points, key=lambda point: abs(log(point.tokens / (share * record.totals.tokens))))


def loss_difference(pairs: Pairs) -> Difference | None:
    value_S = np.array([loss_area(one) - loss_area(other) for one, other in pairs])
    return None if np.isnan(value_S).any() else Difference(LOSS, value_S)


def matched_difference(pairs: Pairs, axis: str) -> Difference | None:
    """As ``loss_difference``, over the stretch of another axis (``MATCHED``) that both runs of a pair cover.

    Straight lines over its logarithm between evaluations. None where two runs have no stretch in common.
    """
    value_S = []
    for pair in pairs:
        curves = []
        for record in pair:
            points = [
                (AXES[axis].place(record, point), point.losses[ANSWERS]) for point in record.points if ANSWERS in point.losses
            ]
            curves.append(np.array(points, dtype=float).reshape(-1, 2).T)
        (x_P, loss_P), (other_x_P, other_P) = curves
        if min(len(x_P), len(other_x_P)) < 2:
            return None
        low, high = max(x_P[0], other_x_P[0]), min(x_P[-1], other_x_P[-1])
        if low >= high:
            return None
        every = np.unique(np.concatenate([x_P, other_x_P, [low, high]]))
        x_G = every[(every >= low) & (every <= high)]
        gap_G = np.interp(np.log(x_G), np.log(x_P), loss_P) - np.interp(np.log(x_G), np.log(other_x_P), other_P)
        value_S.append(float(log_weights(x_G) @ gap_G))
    return Difference(MATCHED[axis], np.array(value_S))


def matched_words(records: Sequence[Record]) -> str:
    """A sentence: what is left of the differences in loss where compute is equal, not tokens; empty of less than two seeds."""
    found = [
        f"{' - '.join(names(a, b))} {matched.shown()} (tokens: {tokens.shown()})"
        for a, b, pairs in compared(records)
        if (matched := matched_difference(pairs, "flops")) is not None and (tokens := loss_difference(pairs)) is not None
    ]
    if not found:
        return ""
    return (
        f"At equal training FLOPs instead of tokens, the answers' loss (area over the log of either) differs by {'; '.join(found)}."
    )


def difference(pairs: Pairs, outcome: str, kinds: Sequence[str], early: bool = False) -> Difference | None:
    """Of margins or accuracies, the mean over benchmarks ``kinds``; None where a run has not measured one, or margins are bare.

    ``early``: the mean of the early evaluations, else the last one.
    """
    items: Items = Score.margin_items if outcome == MARGIN else Score.items
    gap_KSI = []
    for kind in kinds:
        rows = [_gap(pair, kind, items, EARLY if early else (1.0,)) for pair in pairs]
        if not rows or len({None if row is None else len(row) for row in rows}) > 1 or rows[0] is None:
            return None
        gap_KSI.append(np.stack([row for row in rows if row is not None]))
    value_S = np.mean([gap_SI.mean(axis=1) for gap_SI in gap_KSI], axis=0)
    what = f"{outcome} {'early' if early else 'at the end'}"
    shares = outcome == ACCURACY
    step = 1 / sum(gap_SI.shape[1] for gap_SI in gap_KSI) if shares else 0.0
    return Difference(what, value_S, question_error(gap_KSI, shares), not shares, step)


def _gap(
    pair: tuple[Record, Record], kind: str, items: Callable[[Score], np.ndarray | None], shares: Sequence[float]
) -> np.ndarray | None:
    """By question, the mean over evaluations, (I,)."""
    total: np.ndarray | float = 0.0
    for share in shares:
        scores = [nearest(record, share).benchmarks.get(kind) for record in pair]
        found = [None if score is None else items(score) for score in scores]
        one, other = found
        if one is None or other is None or len(one) != len(other):
            return None
        total = total + (one.astype(float) - other.astype(float)) / len(shares)
    return np.asarray(total)


def endpoints(pairs: Pairs) -> list[Difference]:
    """All that both sides have: loss (also at equal compute), mean margin and accuracy, then each benchmark, early and late."""
    kinds = ordered_benchmarks(set.intersection(*(benchmarks([record]) for pair in pairs for record in pair)))
    last = [record.points[-1].benchmarks for pair in pairs for record in pair]
    closed = [kind for kind in kinds if all(kind in scores and scores[kind].margins is not None for scores in last)]
    found = [loss_difference(pairs), *(matched_difference(pairs, axis) for axis in MATCHED)]
    for early in (True, False):
        found += [difference(pairs, MARGIN, closed, early) if closed else None, difference(pairs, ACCURACY, kinds, early)]
    for kind in kinds:
        outcomes = [MARGIN, ACCURACY] if kind in closed else [ACCURACY]
        every = [difference(pairs, outcome, [kind], early) for outcome in outcomes for early in (True, False)]
        found += [replace(one, what=f"{benchmark_label(kind)}: {one.what}") for one in every if one is not None]
    return [one for one in found if one is not None]


def compared(records: Sequence[Record]) -> list[tuple[Line, Line, Pairs]]:
    """Every two lines with two seeds in common, and their runs by seed."""
    found: list[tuple[Line, Line, Pairs]] = []
    for a, b in combinations(lines(records), 2):
        pairs = paired(a.records, b.records)
        if len(pairs) > 1:
            found.append((a, b, pairs))
    return found


def paired(first: Sequence[Record], second: Sequence[Record]) -> Pairs:
    """The runs of the seeds that both sides have."""
    one, other = ({record.run.seed: record for record in side} for side in (first, second))
    return [(one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())]


def names(a: Line, b: Line) -> tuple[str, str]:
    return named(a.look.label, a.setting.label), named(b.look.label, b.setting.label)


def endpoints_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row per two lines and endpoint. ``q``: after Benjamini and Hochberg's correction for all rows."""
    rows = [
        (*names(a, b), one.what, one.nats, *one.estimate.bounds, one.estimate.p, len(one.value_S), one.shown())
        for a, b, pairs in compared(records)
        for one in endpoints(pairs)
    ]
    table = pd.DataFrame(rows, columns=["a", "b", "endpoint", "nats", "difference", "low", "high", "p", "seeds", "shown"])
    table = table.astype(dict.fromkeys(("low", "high", "p"), float))
    return table.assign(q=pd.Series(benjamini_hochberg(table["p"].tolist()), dtype=float))


def write_endpoints(records: Sequence[Record], folder: Path, command: str) -> list[Path]:
    """Write ``endpoints.md`` and ``endpoints.csv``; nothing where no two front-ends have two seeds in common, or where settings
    differ besides: effects.py compares those.
    """
    shown = lines(records)
    table = endpoints_table(records) if len(shown) == len({line.variant for line in shown}) else pd.DataFrame()
    if table.empty:
        return []
    files: dict[str, str | pd.DataFrame] = {"endpoints.md": endpoints_markdown(table), "endpoints.csv": table.drop(columns="shown")}
    return write_tables_to(folder, command, files)


def endpoints_markdown(table: pd.DataFrame) -> str:
    """A row per endpoint, a column per two lines."""
    columns = list(dict.fromkeys(zip(table["a"], table["b"], strict=True)))
    cells = {
        (row["endpoint"], (row["a"], row["b"])): f"**{row['shown']}**" if row["q"] < ALPHA else row["shown"]
        for row in table.to_dict("records")
    }
    rows = [[what, *(cells.get((what, pair), "") for pair in columns)] for what in dict.fromkeys(table["endpoint"])]
    seeds = sorted(set(table["seeds"]))
    shares = ", ".join(f"{share:.1%}" for share in EARLY)
    note = (
        f"Differences over {' or '.join(map(str, seeds))} seeds, paired by seed and question, with 95% intervals (Student's t over "
        "seeds and the error over questions). Losses and margins in nats, where a lower loss and a higher margin are better; "
        f"accuracies in points. Early: mean of the evaluations nearest to {shares} of the tokens. Margin: log-likelihood of the "
        "right option less that of the best wrong one. Bold: 0 is excluded after Benjamini and Hochberg's correction for the "
        f"{len(table)} numbers here (q < {ALPHA})."
    )
    return f"{markdown_table(['endpoint', *(f'{a} - {b}' for a, b in columns)], rows)}\n\n{note}\n"
