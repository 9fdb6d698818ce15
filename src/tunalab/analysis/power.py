"""How many seeds would tell front-ends apart, endpoint by endpoint, and what these runs would cost.

From the differences by seed in records, taken as a pilot: a difference as large as the mean one, with seeds that scatter as these
do. Of few seeds neither is known well, so that the numbers are a plan and no result (statistics.seeds_needed).

    S  seeds    P  points
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from math import isfinite

import numpy as np
import pandas as pd

from tunalab.analysis.curves import Line, benchmarks, lines, named
from tunalab.analysis.learning import log_weights
from tunalab.analysis.statistics import item_gaps, of_seeds, question_error, seeds_needed
from tunalab.analysis.tables import ANSWERS
from tunalab.analysis.written import markdown_table, percent, with_interval
from tunalab.errors import UserError
from tunalab.records.labels import benchmark_label, ordered_benchmarks
from tunalab.records.record import Record

POWER = 0.8
COLUMNS = ["endpoint", "a", "b", "difference", "low", "high", "seeds", "needed", "needed_in_family", "core_hours"]
Endpoint = Callable[[Record], float | None]


def loss_area(record: Record) -> float | None:
    """Mean loss of answers over the logarithm of tokens, from the first evaluation to the last; None of less than two."""
    points = [(point.tokens, point.losses[ANSWERS]) for point in record.points if ANSWERS in point.losses]
    if len(points) < 2:
        return None
    x_P, loss_P = np.array(points, dtype=float).T
    return float(log_weights(x_P) @ loss_P)


def mean_margin(record: Record) -> float | None:
    """Mean margin of closed questions at the last evaluation, each benchmark counting alike; None without margins on record."""
    margins = [score.margin for score in record.points[-1].benchmarks.values() if score.margin is not None]
    return float(np.mean(margins)) if margins else None


def mean_accuracy(record: Record) -> float | None:
    scores = record.points[-1].benchmarks.values()
    return float(np.mean([score.accuracy for score in scores])) if scores else None


ENDPOINTS: dict[str, Endpoint] = {
    "answers' loss, area over log tokens": loss_area,
    "margin at the end": mean_margin,
    "accuracy at the end": mean_accuracy,
}
IN_NATS = tuple(ENDPOINTS)[:2]


def power_table(records: Sequence[Record], power: float = POWER) -> pd.DataFrame:
    """A row per endpoint and two lines with common seeds. ``needed``: seeds for a test by itself at 5%; ``needed_in_family``: at 5%
    over all rows (Bonferroni, as Holm's correction begins); inf where more seeds do not help. ``core_hours``: of the runs of both
    lines for ``needed_in_family`` seeds, as long as the recorded ones took.

    Raises UserError: no two lines have two seeds in common.
    """
    shown = lines(records)
    found = []
    for a, b in combinations(shown, 2):
        seeds = sorted({one.run.seed for one in a.records} & {one.run.seed for one in b.records})
        if len(seeds) < 2:
            continue
        for name, gap_S, questions in _gaps(a, b, seeds):
            found.append((name, a, b, gap_S, questions))
    if not found:
        raise UserError("power needs two front-ends (or settings) with two seeds in common: these records have none")
    rows = []
    for name, a, b, gap_S, questions in found:
        estimate = of_seeds(gap_S, questions)
        needed, in_family = (seeds_needed(gap_S, questions, power, alpha) for alpha in (0.05, 0.05 / len(found)))
        hours = in_family * (_hours(a) + _hours(b))
        names = (named(line.look.label, line.setting.label) for line in (a, b))
        rows.append((name, *names, *estimate.bounds, len(gap_S), needed, in_family, hours))
    return pd.DataFrame(rows, columns=COLUMNS)


def _gaps(a: Line, b: Line, seeds: Sequence[int]) -> list[tuple[str, np.ndarray, float]]:
    """Endpoint, differences by seed and their error over questions."""
    runs = [{record.run.seed: record for record in line.records} for line in (a, b)]
    found = []
    for name, endpoint in ENDPOINTS.items():
        values = [[endpoint(side[seed]) for seed in seeds] for side in runs]
        if all(value is not None for side in values for value in side):
            found.append((name, np.subtract(*np.array(values, dtype=float)), 0.0))
    last = [{seed: side[seed].points[-1].benchmarks for seed in seeds} for side in runs]
    for kind in ordered_benchmarks(benchmarks([*a.records, *b.records])):
        if all(kind in side[seed] for side in last for seed in seeds):
            pairs = [(last[0][seed][kind], last[1][seed][kind]) for seed in seeds]
            gap_SI = item_gaps(pairs)
            error = 0.0 if gap_SI is None else question_error([gap_SI])
            gap_S = np.array([one.accuracy - other.accuracy for one, other in pairs])
            found.append((f"{benchmark_label(kind)} at the end", gap_S, error))
    return found


def _hours(line: Line) -> float:
    """Of a core (or a GPU), of one run."""
    return float(np.mean([record.totals.seconds * record.environment["threads"] for record in line.records])) / 3600


def power_markdown(table: pd.DataFrame, power: float = POWER, price: float | None = None) -> str:
    """``price``: of an hour of a core (or GPU), for a column of costs."""
    head = ["endpoint", "compared", "difference", "seeds", "needed alone", "needed in the family", "core hours"]
    head += ["price"] if price is not None else []
    rows = []
    for row in table.to_dict("records"):
        form = "{:+.3f}".format if row["endpoint"] in IN_NATS else partial(percent, sign="+")
        shown = with_interval([row[key] for key in ("difference", "low", "high")], form)
        cells = [row["endpoint"], f"{row['a']} - {row['b']}", shown, str(row["seeds"]), _count(row["needed"])]
        cells += [_count(row["needed_in_family"]), _shown(row["core_hours"])]
        rows.append([*cells, *([_shown(row["core_hours"] * price)] if price is not None else [])])
    note = (
        f"Seeds at which a difference as large as this one is found in {power:.0%} of experiments: by itself at 5%, and at 5% "
        f"over the {len(table)} rows of the table. Differences of accuracies in points, of losses in nats, with 95% intervals "
        "(Student's t over seeds and the error over questions). -: more seeds do not help, as the error over questions is too "
        "large, or more than 1,000 are needed. Core hours: of both sides' runs for the family, as long as the recorded runs "
        "took. A plan from few seeds, no result."
    )
    return f"{markdown_table(head, rows, left=2)}\n\n{note}\n"


def _count(seeds: float) -> str:
    return f"{int(seeds):,}" if isfinite(seeds) else "-"


def _shown(value: float) -> str:
    return f"{value:,.1f}" if isfinite(value) else "-"
