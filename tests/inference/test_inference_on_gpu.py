"""Answers and images of a CUDA device are those of the CPU, but for rounding."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.conftest import small_config

from tunalab.data.tokenizer import Tokenizer
from tunalab.frontends.registry import FRONTENDS
from tunalab.inference.generation import noise_of, sample
from tunalab.inference.prompts import answer, image_prompt
from tunalab.model.unified import UnifiedModel

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("frontend", FRONTENDS)]
Model = Callable[..., UnifiedModel]
TEXTS = ["a red ring", "how many stars", "a red ring", "left of the blue cross"]


def test_answers(frontend: str, tiny_model: Model, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    questions = [(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) if n else None, text) for n, text in enumerate(TEXTS)]
    here, there = (answer(tiny_model(frontend).to(device), tokenizer, questions, max_tokens=6) for device in ("cpu", "cuda"))
    assert here == there and any(here)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_images(frontend: str, guidance: float, tiny_model: Model, tokenizer: Tokenizer) -> None:
    config = small_config()
    sampling = replace(config.sampling, steps=4, guidance=guidance)
    made = []
    for device in ("cpu", "cuda"):
        model = tiny_model(frontend).to(device)
        space = model.frontend.space
        side = 32 // space.stride
        prompts = [image_prompt(tokenizer, space, text) for text in TEXTS]
        plain = [image_prompt(tokenizer, space, "")] * len(prompts)
        noise = noise_of(range(len(prompts)), (space.channels, side, side)).to(device)
        made.append(sample(model, prompts, plain, noise, sampling, config.objective).cpu())
    torch.testing.assert_close(made[0], made[1], rtol=1e-3, atol=1e-3 * made[0].abs().max().item())
