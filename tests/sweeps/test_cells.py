"""A committed record stays finished when settings are added to the code, and stops being so when one of its own changes."""

from dataclasses import replace
from pathlib import Path

import pytest

from tunalab.records.record import Record, write_record
from tunalab.settings.loading import config_hash, load_config, to_plain
from tunalab.settings.schema import RunConfig
from tunalab.sweeps.cells import finished_record, warn_of_other_components
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


def test_a_finished_run_with_another_encoder_than_the_rest_of_its_sweep_is_named(  # type: ignore[no-untyped-def]
    tmp_path: Path, config: RunConfig, cell: Cell, record_of, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = {"encoder": {"folder": "encoder-before"}, "vae": {"folder": "vae-1"}, "tokenizer": {"folder": "tokenizer-1"}}
    published(replace(record_of(cell), components=taken), tmp_path, to_plain(config), config_hash(config))

    def said(here: dict[str, dict[str, str]]) -> str:
        warn_of_other_components([cell], lambda _: config_hash(config), tmp_path, {"cell": here})
        return capsys.readouterr().err

    assert said(taken) == ""
    assert said({"tokenizer": {"folder": "tokenizer-1"}}) == ""  # what this run takes no part of is nobody's
    found = said({**taken, "encoder": {"folder": "encoder-now"}})
    assert found.startswith(
        "warning: finished runs that took other components than the rest of the sweep will: 1 ("
    ) and found.endswith("train them again: cell\n")
    assert "(encoder-before, here encoder-now)" in found and "vae" not in found
