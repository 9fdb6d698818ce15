"""A committed record stays finished when settings are added to the code, and stops being so when one of its own changes."""

from dataclasses import replace
from pathlib import Path

import pytest

from tunalab.records.record import Record, write_record
from tunalab.settings.loading import config_hash, load_config, to_plain
from tunalab.settings.schema import RunConfig
from tunalab.sweeps.cells import finished_record
from tunalab.sweeps.grid import Cell

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config() -> RunConfig:
    return load_config(ROOT / "experiments" / "scenes.yaml", ROOT / "variants" / "tuna2.yaml", [])


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    return Cell("cell", "figure6", "scenes", "tuna2", 0, {}, [], tmp_path / "run")


def published(record: Record, folder: Path, config: dict[str, object], config_hash: str) -> None:
    write_record(folder / "cell.json", replace(record, config=config, run=replace(record.run, config_hash=config_hash)))


def test_a_record_from_before_a_setting_existed_counts(tmp_path: Path, config: RunConfig, cell: Cell, record_of) -> None:  # type: ignore[no-untyped-def]
    older = {key: value for key, value in to_plain(config).items() if key != "components_seed"}
    published(record_of(cell), tmp_path, older, "before")
    assert config.components_seed == 0  # the default
    assert finished_record(cell, config_hash(config), tmp_path) is not None


def test_a_record_of_other_settings_does_not_count(tmp_path: Path, config: RunConfig, cell: Cell, record_of) -> None:  # type: ignore[no-untyped-def]
    published(record_of(cell), tmp_path, to_plain(config), config_hash(config))
    assert finished_record(cell, config_hash(config), tmp_path) is not None
    config.decoder.layers += 1
    assert finished_record(cell, config_hash(config), tmp_path) is None


def test_a_record_from_before_there_were_revisions_does_not_count(tmp_path: Path, config: RunConfig, cell: Cell, record_of) -> None:  # type: ignore[no-untyped-def]
    older = {key: value for key, value in to_plain(config).items() if key != "revision"}
    published(record_of(cell), tmp_path, older, "before")
    assert finished_record(cell, config_hash(config), tmp_path) is None
