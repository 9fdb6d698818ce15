"""The ladder from a laptop to a cluster (ladder.yaml): what each rung runs, what that costs, and the command that says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pandas as pd
import yaml

from tunalab.analysis.written import markdown_table, replace_block
from tunalab.errors import UserError
from tunalab.planning.plan import DEFAULT, Plan, amount
from tunalab.planning.sweep import SweepPlan
from tunalab.terminal import duration

HOUR = 3600.0
UTILISATION = 0.4  # of `tunalab plan`, unless told otherwise


@dataclass(frozen=True)
class Rung:
    """``name``: of a sweep, or of an experiment with its ``variant``. ``cores``: of a machine without a GPU."""

    machine: str
    command: str
    answers: str
    name: str
    variant: str | None = None
    cores: int = 0
    gpu: str = DEFAULT
    gpus: int = 1
    utilisation: float = UTILISATION

    @property
    def source(self) -> str:
        """The command that prints its cost."""
        if self.cores:
            return f"tunalab sweep {self.name} --dry-run"
        words = ["tunalab plan", self.name, self.variant or "", "" if self.gpu == DEFAULT else f"--gpu {self.gpu}"]
        words += [f"--gpus {self.gpus}" if self.gpus > 1 else ""]
        words += ["" if self.utilisation == UTILISATION else f"--utilisation {self.utilisation:g}"]
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Cost:
    """``seconds``: of all runs one after another; ``price``: dollars, None where nothing is rented."""

    runs: int
    seconds: float
    price: float | None

    @classmethod
    def of(cls, plan: Plan | SweepPlan) -> "Cost":
        if isinstance(plan, Plan):
            return cls(1, 24 * HOUR * plan.days, plan.price)
        return cls(len(plan.cells), 24 * HOUR * sum(cell.plan.days for cell in plan.cells.values()), plan.price)


def rungs() -> list[Rung]:
    text = files("tunalab.planning").joinpath("ladder.yaml").read_text(encoding="utf-8")
    return [Rung(**rung) for rung in yaml.safe_load(text)]


def short_table(costs: Sequence[tuple[Rung, Cost]]) -> str:
    """Machine, command, time and price."""
    head = ["machine", "command", "runs", "time", "price"]
    return markdown_table(head, [[rung.machine, f"`{rung.command}`", *_shown(cost)] for rung, cost in costs], left=2)


def long_table(costs: Sequence[tuple[Rung, Cost]]) -> str:
    """And what it can answer, and where the numbers are from."""
    head = ["machine", "command", "what it can answer", "numbers by", "runs", "time", "price"]
    rows = [[rung.machine, f"`{rung.command}`", rung.answers, f"`{rung.source}`", *_shown(cost)] for rung, cost in costs]
    return markdown_table(head, rows, left=4)


def _shown(cost: Cost) -> list[str]:
    return [str(cost.runs), duration(cost.seconds), "-" if cost.price is None else f"${amount(cost.price)}"]


SEEDS_RECORDS = "results/figure6"
POOLED = ("loss of answers and descriptions, area over log tokens", "accuracy early", "accuracy at the end")  # over all benchmarks


def seeds_table(power: pd.DataFrame) -> str:
    """Seeds per front-end by the endpoints that speak about all benchmarks; ``power``: of analysis.power.power_table."""
    rows = power[power["endpoint"].isin(POOLED)].to_dict("records")
    cells = [[row["endpoint"], f"{row['a']} - {row['b']}", row["needed"].shown, row["needed_in_family"].shown] for row in rows]
    return markdown_table(["endpoint", "compared", "seeds, alone", "seeds, in the family"], cells, left=2)


def write_blocks(file: Path, blocks: Mapping[str, str]) -> list[str]:
    """Each block of ``blocks`` whose markers a file has, into that file: the names of those that changed.

    Raises UserError: it has none of the markers.
    """
    text = file.read_text(encoding="utf-8")
    markers = {name: (f"<!-- {name}: made by `make ladder` -->", f"<!-- end of {name} -->") for name in blocks}
    there = [name for name, (begin, _) in markers.items() if begin in text]
    if not there:
        raise UserError(f"{file} has none of the lines {', '.join(begin for begin, _ in markers.values())}")
    return [name for name in there if replace_block(file, *markers[name], blocks[name])]
