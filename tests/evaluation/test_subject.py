"""What every part of an evaluation does with a model: the same as the functions of inference, in evaluation mode."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import small_config

from tunalab.data.tokenizer import Tokenizer
from tunalab.evaluation.subject import Subject
from tunalab.inference.generation import sample_images
from tunalab.inference.prompts import answer, edit_prompt, image_prompt
from tunalab.model.unified import UnifiedModel


@pytest.fixture(params=["patch_embed", "vae_siglip"])
def subject(
    request: pytest.FixtureRequest, tiny_model: Callable[..., UnifiedModel], tokenizer: Tokenizer, tmp_path: Path
) -> Subject:
    config = small_config()
    config.sampling.steps, config.sampling.guidance = 2, 2.0
    model = tiny_model(request.param, config=config).train()
    return Subject(model, tokenizer, config, tmp_path, {"run": "tiny"}, quiet=True)


def pictures(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


def test_answers_are_those_of_inference(subject: Subject) -> None:
    questions = [(pictures(1)[0], "what colour is the ring?"), (None, "how many circles?")]
    model = subject.model.eval()
    expected = answer(model, subject.tokenizer, questions, 5)
    model.train()
    assert subject.answers(questions, 5) == expected and model.training
    assert subject.answers([]) == []


def test_images_and_edits_are_those_of_inference_guided_from_the_empty_prompt(subject: Subject) -> None:
    model, tokenizer, config = subject.model, subject.tokenizer, subject.config
    space, nothing = model.frontend.space, image_prompt(tokenizer, model.frontend.space, "")
    made = subject.images(["a red ring", "a blue cross"], [3, 4])
    assert made.shape == (2, 32, 32, 3) and made.dtype == np.uint8 and model.training
    sources, texts = pictures(2), ["remove the ring", "make the ring red"]
    edited = subject.edited(sources, texts, [5, 6])
    model.eval()
    prompts = [image_prompt(tokenizer, space, text) for text in ("a red ring", "a blue cross")]
    assert np.array_equal(made, sample_images(model, prompts, nothing, (32, 32), config.sampling, config.objective, [3, 4]))
    prompts = [edit_prompt(tokenizer, space, *pair) for pair in zip(sources, texts, strict=True)]
    assert np.array_equal(edited, sample_images(model, prompts, nothing, (32, 32), config.sampling, config.objective, [5, 6]))
    config.sampling.negative_prompt, config.sampling.edit_guidance = "a blue cross", 3.0
    from_source = subject.edited(sources, texts, [5, 6])
    model.eval()
    led_away = [edit_prompt(tokenizer, space, source, "a blue cross") for source in sources]
    sampling = replace(config.sampling, guidance=3.0)
    assert np.array_equal(from_source, sample_images(model, prompts, led_away, (32, 32), sampling, config.objective, [5, 6]))
    assert not np.array_equal(subject.images(["a red ring", "a blue cross"], [3, 4]), made), "images start from the text as well"
    plain = subject.edited(sources, texts, [5, 6], replace(config.sampling, guidance=1.0, edit_guidance=0.0))
    assert not np.array_equal(plain, edited)
    with pytest.raises(ValueError, match="unpack"):
        subject.edited([sources[0], sources[1][:16]], texts, [5, 6])


def test_every_part_has_a_folder_of_its_own_and_bars_leave_items_alone(subject: Subject) -> None:
    part = subject.of_part("understanding-12345678")
    assert part.folder == subject.folder / "understanding-12345678" and part.folder.is_dir() and part.model is subject.model
    assert list(part.progress(iter([3, 1, 2]), "counting", total=3)) == [3, 1, 2]
