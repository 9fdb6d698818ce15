"""How many seeds would tell front-ends apart, endpoint by endpoint, and what these runs would cost.

From the differences by seed in records, taken as a pilot: a difference as large as the mean one, with seeds that scatter as these
do. Of few seeds neither is known well, so that the numbers are a plan and no result (statistics.needed).
"""

from collections.abc import Sequence
from functools import partial
from math import isinf

import numpy as np
import pandas as pd

from tunalab.analysis.curves import Line
from tunalab.analysis.endpoints import compared, endpoints, names
from tunalab.analysis.statistics import ALPHA, needed
from tunalab.analysis.written import markdown_table, percent, with_interval
from tunalab.errors import UserError
from tunalab.records.record import Record

POWER = 0.8
COLUMNS = ["endpoint", "a", "b", "nats", "difference", "low", "high", "seeds", "needed", "needed_in_family", "core_hours"]


def power_table(records: Sequence[Record], power: float = POWER) -> pd.DataFrame:
    """A row per endpoint (endpoints.py) and two lines with common seeds. ``needed``: what a test by itself at 5% takes;
    ``needed_in_family``: at 5% over all rows (Bonferroni, as Holm's correction begins). ``core_hours``: of the runs of both
    lines for ``needed_in_family`` seeds, as long as the recorded ones took.

    Raises UserError: no two lines have two seeds in common.
    """
    found = [(a, b, one) for a, b, pairs in compared(records) for one in endpoints(pairs)]
    if not found:
        raise UserError("power needs two front-ends (or settings) with two seeds in common: these records have none")
    rows = []
    for a, b, one in found:
        alone, in_family = (needed(one.value_S, one.planned, power, alpha) for alpha in (ALPHA, ALPHA / len(found)))
        hours = in_family.seeds * (_hours(a) + _hours(b))
        rows.append((one.what, *names(a, b), one.nats, *one.estimate.bounds, len(one.value_S), alone, in_family, hours))
    return pd.DataFrame(rows, columns=COLUMNS)


def _hours(line: Line) -> float:
    """Of a core or a GPU, of one run."""
    return float(np.mean([record.totals.seconds * record.units for record in line.records])) / 3600


def power_markdown(table: pd.DataFrame, power: float = POWER, price: float | None = None) -> str:
    """``price``: of an hour of a core (or GPU), for a column of costs."""
    head = ["endpoint", "compared", "difference", "seeds", "needed alone", "needed in the family", "core or GPU hours"]
    head += ["price"] if price is not None else []
    rows = []
    for row in table.to_dict("records"):
        form = "{:+.3f}".format if row["nats"] else partial(percent, sign="+")
        shown = with_interval([row[key] for key in ("difference", "low", "high")], form)
        cells = [row["endpoint"], f"{row['a']} - {row['b']}", shown, str(row["seeds"]), row["needed"].shown]
        cells += [row["needed_in_family"].shown, _shown(row["core_hours"])]
        rows.append([*cells, *([_shown(row["core_hours"] * price)] if price is not None else [])])
    note = (
        f"Seeds at which a difference as large as this one is found in {power:.0%} of experiments: by itself at 5%, and at 5% "
        f"over the {len(table)} rows of the table. Differences of accuracies in points, of losses and margins in "
        "nats, with 95% intervals "
        "(Student's t over seeds and the error over questions). With so many times the questions where those that were asked "
        "leave too large an error. Hours of cores, or of GPUs: of both sides' runs for the family, as long as the recorded runs "
        "took. A plan from few seeds, no result."
    )
    return f"{markdown_table(head, rows, left=2)}\n\n{note}\n"


def _shown(value: float) -> str:
    return "-" if isinf(value) else f"{value:,.1f}"
