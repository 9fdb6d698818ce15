"""A perfect predictor sampled: what the official clamp of 1 - t leaves, and that nothing is left without it."""

from pathlib import Path

import pytest

from tests.printed import assert_file_alike
from tunalab.settings.schema import SamplingConfig
from tunalab.verification import verify
from tunalab.verification.sampling import EXACT, oracle_psnr, scenes

COMMITTED = Path(__file__).parents[2] / "results/verification/sampling.md"


def left(sampling: SamplingConfig, scale: float) -> float:
    return oracle_psnr(sampling, scale, scenes(4, 32))


@pytest.mark.parametrize("method, bound", [("euler", 36.5), ("heun", 35.0)])
def test_the_official_clamp_leaves_noise_where_none_leaves_nothing(method: str, bound: float) -> None:
    official = {steps: left(SamplingConfig(method, steps, clamp="official"), 2.0) for steps in (20, 50, 100)}
    assert official[20] > EXACT and bound - 1 < official[50] < bound + 0.05
    assert official[100] < official[50], "more steps are worse"
    for steps in (1, 20, 50, 100):
        assert left(SamplingConfig(method, steps), 2.0) > EXACT
        assert left(SamplingConfig(method, steps + 1, grid="points", shift=3.0), 2.0) > EXACT


def test_the_default_is_the_better_one() -> None:
    for method in ("euler", "heun"):
        for scale in (1.0, 2.0):
            default, official = (
                left(one, scale) for one in (SamplingConfig(method, 50), SamplingConfig(method, 50, clamp="official"))
            )
            assert default > official


def test_the_committed_page_is_what_the_command_writes(tmp_path: Path) -> None:
    (page,) = verify(["sampling"], tmp_path)
    assert_file_alike(page, COMMITTED, "tunalab verify sampling")
