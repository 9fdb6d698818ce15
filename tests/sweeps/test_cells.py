"""A committed record stays finished when settings are added to the code, and stops being so when one of its own changes."""

from dataclasses import replace
from pathlib import Path

from tunalab.config import config_hash, from_plain
from tunalab.results.records import read_records, write_record
from tunalab.sweeps.cells import finished_record
from tunalab.sweeps.grid import Cell

ROOT = Path(__file__).parents[2]


def cell_of(name: str, run_dir: Path) -> Cell:
    return Cell(name, "figure6", "scenes", "tuna2", 0, {}, [], run_dir)


def test_a_record_from_before_a_setting_existed_counts(tmp_path: Path) -> None:
    record = read_records(ROOT / "results" / "figure6")[0]
    today = from_plain(record.config)
    older = {key: value for key, value in record.config.items() if key != "components_seed"}
    write_record(tmp_path / "cell.json", replace(record, config=older, run=replace(record.run, config_hash="before")))
    assert today.components_seed == 0  # the default
    assert finished_record(cell_of("cell", tmp_path / "run"), config_hash(today), tmp_path) is not None


def test_a_record_of_other_settings_does_not_count(tmp_path: Path) -> None:
    record = read_records(ROOT / "results" / "figure6")[0]
    write_record(tmp_path / "cell.json", record)
    other = from_plain(record.config)
    other.decoder.layers += 1
    assert finished_record(cell_of("cell", tmp_path / "run"), config_hash(other), tmp_path) is None
