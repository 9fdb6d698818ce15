"""The page on scorers: its references on small images, and that what is committed is what the cheap rows give."""

from pathlib import Path

import pytest

from tunalab.verification import scorers

PAGE = Path(__file__).parents[2] / "results/verification/scorers.md"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "SSIM_SIDES", (32,))
    monkeypatch.setattr(scorers, "SIZES", ((300, 280), (64, 131), (224, 100)))


def test_rows_of_answers_are_those_of_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for row in [*scorers.dpg(), *scorers.lmms_rules(), *scorers.judge_places()]:
        assert f"| {' | '.join(row.texts)} |" in page


def test_pixels_are_those_of_the_official_code(small: None) -> None:
    """A byte may be rounded to either side; in HPS v2 nothing is rounded."""
    clip, turned = scorers.clip_score()
    hps, *changes = scorers.hps()
    colours, wordings = scorers.geneval_colours()
    sizes, by_ratio, resized, plain = scorers.image_sizes()
    assert sizes.largest == 0 and by_ratio.largest > 0 and resized.largest <= 1 and plain.largest > 1
    assert clip.largest <= 1 and colours.largest <= 1 and wordings.largest == 0 and hps.largest < hps.rounding
    assert all(row.largest > 1 for row in (turned, *changes)), "other ways are told apart"
    assert (clip.items, colours.items) == (3, 6)


def test_ssim_is_that_of_the_definition(small: None) -> None:
    defined, border = scorers.ssim()
    assert defined.largest < defined.rounding and border.largest > 0.01, "at 32 px the border is a good part of the image"
    page = PAGE.read_text(encoding="utf-8")
    assert f"| {' | '.join(border.texts[:3])} |" in page
