"""A sweep folder, cells whose command is a few lines of Python, and the record that such a cell writes."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tunalab.records.record import Record, RunInfo, Totals, write_record
from tunalab.sweeps.grid import Cell, expand, load_sweep

SWEEP = """\
# question, command, time
experiment: scenes
variants: [tuna, tuna2]
seeds: [0, 1]
factors: {objective.masking.ratio: [0.0, 0.25]}
overrides: {budget.tokens: 1000}
figure: mask_ratio
"""


def make_record(cell: Cell, config_hash: str = "hash", finished: bool = True) -> Record:
    info = RunInfo(cell.name, "scenes", cell.variant, cell.seed, 0.0, cell.sweep, config_hash, finished)
    return Record(info, {}, {}, {"trainable": 1}, {}, Totals(1, 1, 1, 1.0, 1.0, 1), [])


@pytest.fixture
def record_of() -> Callable[..., Record]:
    return make_record


@pytest.fixture
def sweep_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("experiments/scenes", "variants/tuna", "variants/tuna_r", "variants/tuna2", "sweeps/mask_ratio"):
        (tmp_path / f"{name}.yaml").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(SWEEP if name.startswith("sweeps") else "{}\n")
    return tmp_path / "sweeps/mask_ratio.yaml"


@pytest.fixture
def cells(sweep_file: Path, tmp_path: Path) -> list[Cell]:
    return expand(load_sweep(sweep_file), runs=tmp_path / "runs")[:4]


@pytest.fixture
def trains(tmp_path: Path) -> Callable[..., Callable[[Cell], list[str]]]:
    """``trains(body)`` is a command that runs ``body`` and then leaves the finished record, as a real run does.

    ``body`` may use ``run_dir``, ``name``, ``os``, ``sys``, ``time``, ``signal`` and ``note(text)``, which appends to notes.txt.
    """

    def make(body: str | Callable[[Cell], str] = "") -> Callable[[Cell], list[str]]:
        def command(cell: Cell) -> list[str]:
            template = tmp_path / "templates" / f"{cell.name}.json"
            write_record(template, make_record(cell))
            lines = [
                "import os, shutil, signal, sys, time, pathlib",
                f"run_dir, name = pathlib.Path({str(cell.run_dir)!r}), {cell.name!r}",
                "notes = (run_dir / 'notes.txt').open('a', buffering=1)",
                "note = lambda text: notes.write(text + '\\n')",
                body if isinstance(body, str) else body(cell),
                f"shutil.copy({str(template)!r}, run_dir / 'record.json')",
            ]
            return [sys.executable, "-S", "-c", "\n".join(lines)]

        return command

    return make
