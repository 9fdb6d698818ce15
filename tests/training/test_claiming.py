"""A run directory is one configuration's; the limit of broken documents, which may have to be raised, is no part of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.conftest import quick_config
from tunalab.config import from_plain
from tunalab.errors import UserError
from tunalab.layers import read_yaml
from tunalab.results.records import CONFIG_FILE
from tunalab.training.claiming import check_unclaimed, claim


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
