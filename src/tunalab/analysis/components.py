"""How much of the scatter between seeds is that of the pretrained parts behind them, where seeds cross with them.

S  seeds    G  groups of runs that share a part
"""

from collections.abc import Sequence
from math import nan, sqrt
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from tunalab.analysis.curves import lines, named
from tunalab.analysis.endpoints import LOSS, front_end_parts, loss_area
from tunalab.analysis.written import markdown_table, write_tables_to
from tunalab.records.record import Record


def write_components(records: Sequence[Record], folder: Path, command: str) -> list[Path]:
    """Write ``components.md``; nothing where no seeds cross with parts."""
    table = components_table(records)
    return write_tables_to(folder, command, {} if table.empty else {"components.md": components_markdown(table)})


def components_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row per line, part and endpoint: standard deviations between runs that share the part (``runs``) and between parts
    (``parts``), by a one-way analysis of variance, and the p-value of its F test.
    """
    rows = []
    for line in lines(records):
        for part in sorted({name for record in line.records for name in front_end_parts(record)}):
            groups: dict[str, list[Record]] = {}
            for record in line.records:
                groups.setdefault(front_end_parts(record).get(part, ""), []).append(record)
            if len(groups) < 2 or max(map(len, groups.values())) < 2:
                continue
            for what, endpoint in ((LOSS, loss_area), ("accuracy at the end", _mean_accuracy)):
                values = [np.array([endpoint(record) for record in of]) for of in groups.values()]
                if not any(np.isnan(value_S).any() for value_S in values):
                    named_line = named(line.label, line.setting.label)
                    rows.append((named_line, part, what, len(line.records), len(groups), *variance_parts(values)))
    return pd.DataFrame(rows, columns=["line", "part", "endpoint", "seeds", "groups", "runs", "parts", "p"])


def _mean_accuracy(record: Record) -> float:
    scores = record.points[-1].benchmarks.values()
    return float(np.mean([score.accuracy for score in scores])) if scores else nan


def variance_parts(values: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Standard deviation within groups and between them, and the p-value of the F test that there is none between them."""
    n_G = np.array([len(value_S) for value_S in values])
    total, groups = n_G.sum(), len(values)
    grand = float(np.concatenate(values).mean())
    between = sum(len(value_S) * (float(value_S.mean()) - grand) ** 2 for value_S in values) / (groups - 1)
    within = sum(float(((value_S - value_S.mean()) ** 2).sum()) for value_S in values) / (total - groups)
    alike = (total - float((n_G**2).sum()) / total) / (groups - 1)  # runs a group, where all have as many
    p = float(fdtrc(groups - 1, total - groups, between / within)) if within > 0 else nan
    return sqrt(within), sqrt(max(0.0, between - within) / alike), p


def components_markdown(table: pd.DataFrame) -> str:
    rows = []
    for row in table.to_dict("records"):
        scatter = [f"{row['runs']:.4f}", f"{row['parts']:.4f}", f"{row['p']:.2f}"]
        rows.append([row["line"], row["part"], row["endpoint"], f"{row['seeds']} of {row['groups']}", *scatter])
    head = ["front-end", "part", "endpoint", "seeds of parts", "scatter of runs", "scatter of parts", "p"]
    note = (
        "Standard deviations (nats, shares) between runs that share a pretrained part and between parts, by a one-way analysis of "
        "variance; p: of its F test, uncorrected. No scatter of parts: runs with other parts differ no more than runs do anyway."
    )
    return f"{markdown_table(head, rows, left=3)}\n\n{note}\n"
