"""A run directory is one configuration's; the limit of broken documents, which may have to be raised, is no part of it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.conftest import quick_config
from tunalab.errors import UserError
from tunalab.records.record import CONFIG_FILE
from tunalab.settings.layers import read_yaml
from tunalab.settings.loading import from_plain
from tunalab.training.claiming import FILES, FOLDERS, check_places, check_unclaimed, claim


def test_a_run_that_was_stopped_goes_on_with_a_larger_limit(tmp_path: Path) -> None:
    config = quick_config()
    claim(tmp_path, config)
    larger = replace(config, data=replace(config.data, reject_share=0.05))
    check_unclaimed(tmp_path, larger)
    claim(tmp_path, larger)
    assert from_plain(read_yaml(tmp_path / CONFIG_FILE)) == larger
    check_unclaimed(tmp_path, larger)


def test_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    config = quick_config()
    check_unclaimed(tmp_path, config)
    claim(tmp_path, config)
    other = replace(config, seed=1, data=replace(config.data, reject_share=0.05))
    with pytest.raises(UserError, match=r"holds a run with other settings \(seed: 0 there, 1 here\): choose another"):
        check_unclaimed(tmp_path, other)


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_what_stands_in_the_place_of_a_file_is_told_before_training(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    if name in FILES:
        check_places(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a (folder|file), where a run keeps a (file|folder): remove it, or choose"):
        check_unclaimed(tmp_path, quick_config())


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    for name in FILES:
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} is no regular file, where a run keeps a file"):
            check_places(tmp_path)
        (tmp_path / name).unlink()


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    config = quick_config()
    path = tmp_path / CONFIG_FILE
    path.touch()
    with pytest.raises(UserError, match=f"{path} is damaged: it does not hold the settings of a run"):
        check_unclaimed(tmp_path, config)
    claim(tmp_path, config)
    path.write_text(path.read_text() + "strange: 1\n")
    with pytest.raises(UserError, match=f"{path}: unknown key 'strange'"):
        check_unclaimed(tmp_path, config)


def test_a_folder_of_settings_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} is a folder: a file of settings is needed"):
        read_yaml(tmp_path)
