"""Encoders of timm: features as timm computes them or one line of refusal, and the committed page that says so."""

from pathlib import Path

import pytest

from tunalab.verification.encoders import LARGEST, REFUSED, WORKS, compare, refusal

PAGE = (Path(__file__).parents[2] / "results/verification/encoders.md").read_text(encoding="utf-8")
HINT = "run: tunalab verify encoders"


@pytest.mark.parametrize("name", WORKS)
def test_features_are_those_of_timm_at_two_sizes(name: str) -> None:
    """The wide image has as many patches as the published size: rotary positions that are kept from there would pass unseen."""
    found = compare(name, {"img_size": 56 if "patch14" in name else 64})
    assert len(found.differences) == 2
    assert all(difference <= LARGEST for difference in found.differences.values())
    assert f"| `{name}` | {found.positions} | {found.tokens} | works |" in PAGE, HINT


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_trunk_does_not_compute_is_refused_in_one_line(name: str) -> None:
    line = refusal(name)
    assert "\n" not in line
    assert f"| `{name}` |  |  | refused: {line} |" in PAGE, HINT


def test_the_page_has_every_encoder() -> None:
    assert PAGE.count("\n| `") == len(WORKS) + len(REFUSED), HINT
