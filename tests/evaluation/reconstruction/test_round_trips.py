"""Reconstructions made by hand: perfect, another image, a little off; what a model gives back, and what is said of it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import small_config

from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.evaluation.editing import MOST_DB
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.parts import ReconstructionSettings
from tunalab.evaluation.reconstruction import (
    PHOTOGRAPHS,
    SPACE,
    chances_of,
    compared,
    measure,
    photographs,
    psnr_of,
    scenes,
    ssim_of,
    training_note,
)
from tunalab.evaluation.subject import Subject
from tunalab.inference.prompts import edit_sampling
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import SamplingConfig, StageConfig
from tunalab.verification.scorers import slow_ssim

Key = tuple[str, str, str]


def by_key(measures: list[Measure]) -> dict[Key, Measure]:
    return {(one.benchmark, one.split, one.metric): one for one in measures}


def test_a_perfect_copy_another_image_and_one_a_little_off() -> None:
    original_NHWC = scenes(6, 32)
    assert psnr_of(original_NHWC, original_NHWC) == [MOST_DB] * 6
    assert ssim_of(original_NHWC, original_NHWC) == pytest.approx([1.0] * 6)
    off_NHWC = (original_NHWC ^ 16).astype(np.uint8)  # every value is 16 away
    assert psnr_of(off_NHWC, original_NHWC) == pytest.approx([20 * math.log10(255 / 16)] * 6, abs=1e-3)
    assert all(0.2 < value < 1 for value in ssim_of(off_NHWC, original_NHWC))
    *_, ssim = compared("scenes", original_NHWC, off_NHWC, {"PSNR": 0.0, "SSIM": 0.0})
    assert ssim.key[-1] == "SSIM" != replace(ssim, note="through the model").key[-1], "records of before count the border"
    another = compared("scenes", original_NHWC, np.roll(original_NHWC, 1, axis=0), chances_of(original_NHWC))
    assert [one.metric for one in another] == ["PSNR", "SSIM"]
    for one in another:
        assert one.value == one.chance and one.n == 6 and len(one.items) == 6
        assert one.low is not None and one.high is not None and one.low < one.value < one.high


def test_ssim_counts_the_windows_inside() -> None:
    """That of a slow reference, at the smallest side too; a smaller image has none."""
    images_NHWC = scenes(3, 32)
    moved_NHWC = np.roll(images_NHWC, 1, axis=1)
    for side in (11, 32):
        one_NHWC, other_NHWC = images_NHWC[:, :side, :side], moved_NHWC[:, :side, :side]
        expected = [slow_ssim(*pair) for pair in zip(one_NHWC, other_NHWC, strict=True)]
        assert ssim_of(one_NHWC, other_NHWC) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError):
        ssim_of(images_NHWC[:, :10, :10], moved_NHWC[:, :10, :10])
    small_NHWC = images_NHWC[:, :10, :10]
    assert [one.metric for one in compared("scenes", small_NHWC, np.roll(small_NHWC, 1, axis=0), chances_of(small_NHWC))] == [
        "PSNR"
    ]


def test_originals_are_the_same_every_time_and_more_of_them_begin_alike() -> None:
    assert np.array_equal(scenes(4, 32), scenes(8, 32)[:4])
    found_NHWC = photographs(48)
    assert found_NHWC.shape == (len(PHOTOGRAPHS), 48, 48, 3) and found_NHWC.dtype == np.uint8
    assert len(np.unique(found_NHWC.reshape(len(found_NHWC), -1), axis=0)) == len(PHOTOGRAPHS)
    assert min(image.std() for image in found_NHWC) > 5
    assert len(photographs(1024)) == len(PHOTOGRAPHS), "none is too small to be given back"


def test_a_missing_photograph_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunalab.evaluation.reconstruction.PHOTOGRAPHS", ("none.png",))
    with pytest.raises(UserError, match="none.png: no such image file"):
        photographs(32)


@pytest.mark.parametrize("variant", ["patch_embed", "vae_siglip"])
def test_every_set_by_every_way(
    variant: str, tiny_model: Callable[..., UnifiedModel], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config()
    config.sampling.steps = 1
    subject = Subject(tiny_model(variant, config=config), tokenizer, config, tmp_path, {"run": "tiny"}, quiet=True)
    measures = measure(subject, ReconstructionSettings(scenes=4))
    found = by_key(measures)
    expected = {(name, split) for name in ("scenes", "photographs") for split in ("test", SPACE)}
    assert {key[:2] for key in found} == expected and len(measures) == len(found) == 3 * len(expected)
    assert found["scenes", "test", "PSNR"].n == 4 and found["photographs", "test", "SSIM"].n == len(PHOTOGRAPHS)
    assert found["scenes", "test", "PSNR"].note == "through the model: not fine-tuned on copies"
    alone = found["scenes", SPACE, "PSNR"]
    assert (alone.value == MOST_DB) == (variant == "patch_embed") == ("nothing is lost" in alone.note)
    rfid = found["scenes", SPACE, "rFID (network)"]
    assert (abs(rfid.value) < 1e-3) == (variant == "patch_embed")
    assert found["scenes", "test", "rFID (network)"].value > 0.01
    assert {path.name for path in tmp_path.glob("*.png")} == {"scenes.png", "photographs.png"}

    def sampled_again(*given: object) -> None:
        raise AssertionError("what is kept is sampled again")

    monkeypatch.setattr(Subject, "edited", sampled_again)
    assert measure(subject, ReconstructionSettings(scenes=4)) == measures


def test_the_model_sees_the_image_that_it_gives_back(
    tiny_model: Callable[..., UnifiedModel], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that copies what stands before it is measured as perfect; guidance is off."""
    config = small_config()
    config.sampling.edit_guidance = 3.0
    subject = Subject(tiny_model("patch_embed", config=config), tokenizer, config, tmp_path, {"run": "tiny"}, quiet=True)

    def copies(
        self: Subject, sources_NHWC: list[np.ndarray], instructions: list[str], seeds: range, sampling: SamplingConfig
    ) -> np.ndarray:
        assert set(instructions) == {""} and len(instructions) == len(seeds) == len(sources_NHWC)
        assert edit_sampling(sampling).guidance == 1.0
        return np.stack(sources_NHWC)

    monkeypatch.setattr(Subject, "edited", copies)
    monkeypatch.setattr("tunalab.evaluation.reconstruction.photographs", lambda size: photographs(size)[:3])
    found = by_key(measure(subject, ReconstructionSettings(scenes=20)))
    for name in ("scenes", "photographs"):
        assert found[name, "test", "PSNR"].value == MOST_DB and found[name, "test", "SSIM"].value == pytest.approx(1)
        assert found[name, "test", "rFID (network)"].value == pytest.approx(0, abs=1e-3)
    assert found["scenes", "test", "rFID (network)"].low is not None, "20 pairs are enough for the jackknife"


def test_missing_weights_of_inception_are_known_before_anything_is_sampled(
    tiny_model: Callable[..., UnifiedModel], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = small_config()
    subject = Subject(tiny_model("patch_embed", config=config), tokenizer, config, tmp_path, {"run": "tiny"}, quiet=True)
    with pytest.raises(UserError, match="reconstruction.inception=nowhere.pth: no such file"):
        measure(subject, ReconstructionSettings(scenes=4, inception="nowhere.pth"))
    assert not list(tmp_path.iterdir())


def test_the_note_says_whether_copies_were_trained_on() -> None:
    config = small_config()
    config.stages["copying"] = StageConfig(tokens=1000, mix={"copy/scenes/caption": 1.0})
    assert training_note(config) == "through the model: fine-tuned on copies (stage copying)"
    config.stages["copying"].tokens = 0
    assert training_note(config) == "through the model: not fine-tuned on copies"
