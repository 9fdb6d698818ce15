"""The parts as wholes: images shared and kept, measures well formed, perfect images right, noise and shuffled images wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import small_config

from tunalab.data.scenes import caption
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.evaluation.generation import diversity, fidelity, following
from tunalab.evaluation.generation import following as images
from tunalab.evaluation.generation.following import resampled_mean
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.parts import DiversitySettings, FidelitySettings, GenerationSettings, PromptSettings
from tunalab.evaluation.subject import Subject
from tunalab.model.unified import UnifiedModel

FEW = {"prompts": 3, "dense": 3, "samples": 2}


@pytest.fixture
def subject(tiny_model: Callable[..., UnifiedModel], tokenizer: Tokenizer, tmp_path: Path) -> Subject:
    config = small_config()
    config.sampling.steps = 1
    whole = Subject(tiny_model("patch_embed", config=config), tokenizer, config, tmp_path, {"run": "tiny"}, quiet=True)
    return whole.of_part("part")


@pytest.fixture
def perfect(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A model that draws what it is told."""
    expected = {prompt.text: prompt for prompt in images.chosen_prompts(PromptSettings(**FEW))}

    def draw(self: Subject, texts: list[str], seeds: list[int]) -> np.ndarray:
        return images.renders([expected[text] for text in texts], 32)

    monkeypatch.setattr(Subject, "images", draw)
    return subject


def by_key(found: list[Measure]) -> dict[tuple[str, str, str], Measure]:
    assert len({one.key for one in found}) == len(found)
    assert all(len(one.items) in (0, one.n) for one in found)
    return {(one.benchmark, one.split, one.metric): one for one in found}


@pytest.mark.slow
def test_a_perfect_model_gets_everything_right(perfect: Subject) -> None:
    found = by_key(following.measure(perfect, GenerationSettings(**FEW, parser_scenes=15)))
    for (benchmark, split, metric), one in found.items():
        if metric in (following.RESIDUAL, following.REJECTED):
            assert one.value < 0.1, (benchmark, split, metric)
        elif split in ("test", "round trip") and benchmark != "parser":
            assert one.value == 1 and one.ceiling in (1, None), (benchmark, split, metric)
    overall = found["scene prompts", "test", "overall"]
    assert overall.n == 18 and overall.chance is not None and 0 < overall.chance < 0.5
    assert found["scene prompts", "test", "counting"].n == 3 and found["dense prompts", "test", "overall"].n == 3
    assert found["parser", "clean", "images exact"].value == found["parser", "round trip", "images exact"].value == 1
    assert found["parser", "noise 0.2", "images exact"].value < 1
    pictures = {path.stem: Image.open(path) for path in perfect.folder.glob("*.png")}
    assert {"counting", "dense"} <= pictures.keys() and all(picture.width > 300 for picture in pictures.values())


def test_a_perfect_model_has_the_renders_diversity_and_fidelity(perfect: Subject) -> None:
    found = by_key(diversity.measure(perfect, DiversitySettings(**FEW)))
    for name in ("network", "pixels"):
        for split in ("test", "renders"):
            assert found["scene prompts", split, f"distance ({name})"].value == pytest.approx(0, abs=1e-5)
            assert found["scene prompts", split, f"Vendi score ({name})"].value == pytest.approx(1, abs=1e-5)
        assert found["scene prompts", "test", f"distance among right ({name})"].n == 18
        assert found["dense prompts", "renders", f"distance ({name})"].value > 0.01, "captions leave the displacement open"
    close = by_key(fidelity.measure(perfect, FidelitySettings(**FEW, features=["network"])))
    of = {split: close["scene prompts", split, "FID (network)"] for split in ("test", "renders", "round trip", "other renders")}
    assert of["renders"].value == pytest.approx(of["round trip"].value, abs=1e-3) and of["test"].n == 42
    assert of["test"].value < of["other renders"].value / 2 and of["test"].low is not None


def test_an_untrained_model_is_near_chance_and_far_from_renders(subject: Subject) -> None:
    found = by_key(following.measure(subject, GenerationSettings(**FEW, parser_scenes=0)))
    assert found["scene prompts", "test", "overall"].value < 0.2
    assert found["scene prompts", "round trip", "overall"].value == 1 and ("parser", "clean", "images exact") not in found
    spread = by_key(diversity.measure(subject, DiversitySettings(**FEW, features=["network"])))
    assert spread["scene prompts", "test", "distance (network)"].value > 0.1
    assert ("scene prompts", "test", "distance among right (network)") not in spread, "noise is diverse, none of it is right"
    close = by_key(fidelity.measure(subject, FidelitySettings(**FEW, features=["network"])))
    assert (
        close["scene prompts", "test", "FID (network)"].value > 3 * close["scene prompts", "other renders", "FID (network)"].value
    )


def test_images_are_sampled_once_for_all_parts_and_an_interruption_costs_a_chunk(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CHUNK", 8)
    sampled: list[int] = []
    draw = Subject.images

    def count(self: Subject, texts: list[str], seeds: list[int]) -> np.ndarray:
        sampled.append(len(texts))
        if len(sampled) == 2:
            raise KeyboardInterrupt
        return draw(self, texts, seeds)

    monkeypatch.setattr(Subject, "images", count)
    settings = GenerationSettings(**FEW, parser_scenes=0)
    with pytest.raises(KeyboardInterrupt):
        images.generated(subject, settings)
    first = images.generated(subject, settings)
    assert sampled == [16, 16, 16, 10]
    other = replace(subject, folder=subject.folder.parent / "other part")
    again = images.generated(other, DiversitySettings(**FEW))
    assert sampled == [16, 16, 16, 10] and np.array_equal(again.images_PSHWC, first.images_PSHWC)
    assert first.images_PSHWC.shape == (21, 2, 32, 32, 3) and not np.array_equal(*first.images_PSHWC[0])
    # Seeds go with prompts: other numbers of prompts change no image.
    fewer = images.generated(subject, GenerationSettings(prompts=1, dense=1, samples=2, parser_scenes=0))
    (of_first, one), (of_fewer, same) = (
        next((images_SHWC, prompt) for images_SHWC, prompt in zip(made.images_PSHWC, made.prompts) if prompt.category == "counting")
        for made in (first, fewer)
    )
    assert np.array_equal(of_fewer, of_first) and one == same and caption(one.scene) == one.text


def test_the_interval_of_the_overall_score_comes_from_prompts() -> None:
    certain = [np.ones(5), np.zeros(5)]
    assert resampled_mean(certain) == (0.5, 0.5)
    low, high = resampled_mean([np.array([0.0, 1.0] * 50), np.ones(100)])
    assert 0.69 < low < 0.75 < high < 0.81


@pytest.mark.parametrize(
    ("part", "settings", "what"),
    [
        (following, GenerationSettings(prompts=0, dense=0), "leave nothing to generate"),
        (diversity, DiversitySettings(samples=1), "diversity.samples=1"),
        (fidelity, FidelitySettings(prompts=100_000), "prompts of category"),
    ],
)
def test_what_cannot_be_measured_is_one_line(part: object, settings: PromptSettings, what: str, subject: Subject) -> None:
    with pytest.raises(UserError, match=what):
        part.measure(subject, settings)  # type: ignore[attr-defined]


def test_a_size_that_cannot_be_parsed_is_told_before_anything_is_sampled(subject: Subject) -> None:
    subject.config.data.image_size = 80
    with pytest.raises(UserError, match="80 pixels cannot be parsed"):
        images.generated(subject, GenerationSettings(**FEW))
