"""What the processes of a distributed start need in main memory."""

from pathlib import Path

import pytest

from tunalab.bench.run import report
from tunalab.bench.start_up import bench_start_up
from tunalab.bench.start_up import started as started_on
from tunalab.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(540)]


def test_a_process_needs_its_share_of_the_model() -> None:
    """And of the line through the sizes, little that does not grow with the model."""
    found = bench_start_up(sizes=(0.05, 0.25), ranks=(2,))
    (of,) = found["processes"].values()
    assert report({"start_up": found}), of
    assert 0.45 < of["filled_per_gb"] < of["averaged_per_gb"] < 1.25 and of["besides_gb"] < 0.1, of
    for point in of["starts"]:
        assert point["filled"] == pytest.approx(point["planned"], abs=0.04), of


def test_a_start_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a start on 1 process.es. failed: rank 0 ended with 1: .*config.json"):
        started_on(tmp_path, 1)
