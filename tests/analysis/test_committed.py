"""The committed results are those of today's configuration: every cell of their sweeps has its finished record."""

from pathlib import Path

import pytest
from tests.printed import assert_file_alike

from tunalab.analysis.claims import PANELS
from tunalab.analysis.dynamics import write_dynamics
from tunalab.cli import main
from tunalab.library import load_config
from tunalab.records.record import read_record, read_records
from tunalab.settings.loading import config_hash
from tunalab.sweeps.cells import finished_record
from tunalab.sweeps.grid import Cell, expand, load_sweep, own_settings

ROOT = Path(__file__).parents[2]


def cells(sweep: str, variant: str | None = None) -> list[Cell]:
    return expand(load_sweep(ROOT / "sweeps" / f"{sweep}.yaml"), variant, Path("nowhere"))


def published(sweep: str) -> list[Cell]:
    """Of a sweep whose records are published seed by seed: the cells of the seeds that have begun."""
    here = {path.stem for path in (ROOT / "results" / sweep).glob("*.json")}
    last = max(cell.seed for cell in cells(sweep) if cell.name in here)
    return [cell for cell in cells(sweep) if cell.seed <= last]


@pytest.mark.parametrize(
    "cell", [*published("figure6"), *cells("mask_ratio", "tuna2")], ids=lambda cell: f"{cell.sweep}-{cell.name}"
)
def test_a_committed_cell_is_finished_under_todays_configuration(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    records = ROOT / "results" / cell.sweep
    config = load_config(cell.experiment, cell.variant, own_settings(cell, []))
    assert finished_record(cell, config_hash(config), records) is not None, "train it, then `tunalab publish`"
    record = read_record(records / f"{cell.name}.json")
    assert (record.run.variant, record.run.seed, record.run.sweep) == (cell.variant, cell.seed, cell.sweep)
    assert record.points[-1].tokens == record.totals.tokens and record.points[-1].benchmarks


@pytest.mark.parametrize(("sweep", "variant"), [("figure6", None), ("mask_ratio", "tuna2")])
def test_no_committed_record_is_of_another_sweep(sweep: str, variant: str | None) -> None:
    """Whole seeds, in the order of the sweep: nobody has chosen among them."""
    here = {path.stem for path in (ROOT / "results" / sweep).glob("*.json")}
    needed = published(sweep) if variant is None else cells(sweep, variant)
    assert {cell.name for cell in needed} <= here <= {cell.name for cell in cells(sweep)}


def test_the_committed_table_of_seeds_needed_is_that_of_its_records(tmp_path: Path) -> None:
    assert main(["power", "--records", "results/figure6", "--panels", *PANELS, "--out", str(tmp_path)]) == 0
    for name in ("power.md", "power.csv"):
        assert_file_alike(tmp_path / name, ROOT / "results" / "figure6" / name, "run `make table`")


def test_the_committed_tables_of_learning_are_those_of_their_records(tmp_path: Path) -> None:
    folder = ROOT / "results" / "figure6"
    for path in write_dynamics(read_records(folder, evaluation=False), tmp_path, "tunalab table --records results/figure6"):
        assert_file_alike(path, folder / path.name, "run `make table`")
