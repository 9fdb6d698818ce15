"""`tunalab verify`: which checks there are, and the page that one becomes."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from tests.printed import assert_file_alike
from tunalab import verification
from tunalab.cli import main
from tunalab.settings.schema import SamplingConfig
from tunalab.verification import CHECKS, Table, scorers, verify
from tunalab.verification.sampling import EXACT, oracle_psnr, scenes


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_is_a_module_with_tables(name: str) -> None:
    assert callable(import_module(CHECKS[name]).tables)


def test_a_page_names_its_command_and_holds_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("of_two")
    module.tables = lambda: [Table(f"part {n}", "About.", ["a", "b"], [["x", str(n)]]) for n in (1, 2)]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "of_two", module)
    monkeypatch.setattr(verification, "CHECKS", {"two": "of_two"})
    (page,) = verification.verify([], tmp_path)
    part = "## part {n}\n\nAbout.\n\n| a | b |\n| --- | --- |\n| x | {n} |\n"
    assert page.read_text(encoding="utf-8") == (
        "<!-- made by: tunalab verify two -->\n\n" + part.format(n=1) + "\n" + part.format(n=2)
    )


def test_an_unknown_check_is_named_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "absent"]) == 2
    assert capsys.readouterr().err.startswith("error: check absent is unknown (choices: ")


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
