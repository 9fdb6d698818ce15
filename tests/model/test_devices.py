"""Every tensor is made where the model is: whole steps, evaluations and samplers on a device that is not the CPU."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from samples import random_batch
from tests.conftest import small_config
from tests.pretend import Claimed, claim, pretended_cuda
from tests.tolerances import model_terms, relative
from torch import nn

from tunalab.data.tokenizer import Tokenizer
from tunalab.evaluation.along import held_out_losses, one_step_psnr
from tunalab.frontends.registry import FRONTENDS
from tunalab.inference.generation import sample_images
from tunalab.inference.prompts import answer, edit_prompt, image_prompt
from tunalab.model.objective import draw, losses
from tunalab.model.unified import UnifiedModel
from tunalab.training.optimisation import Ema

Model = Callable[..., UnifiedModel]
CLOSE = relative(model_terms(small_config(), 128))


@pytest.fixture(params=list(FRONTENDS))
def frontend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_stranger_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_cuda(monkeypatch) as cuda:
        here, there = torch.ones(3), torch.ones(3, device=cuda)
        assert there.is_cuda and not here.is_cuda and (there * 2).sum().item() == 6
        assert (there + here.to(cuda)).tolist() == [2, 2, 2]
        with pytest.raises(AssertionError, match="on the CPU"):
            there + here


def test_a_training_step(frontend: str, tiny_model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    config.attention = "dense"
    model = tiny_model(frontend, config=config)
    for kinds in ("cvgetbg", "tbt", "cv"):  # with all that there is, without images, without generation
        batch = random_batch(kinds, 2, tokenizer)
        draws = draw(batch, config.objective, 0, model.frontend.space, masking=True)
        expected = {name: part.sum.item() for name, part in losses(model, batch, draws, config.objective).items()}
        there = tiny_model(frontend, config=replace(config, attention="auto"))
        with pretended_cuda(monkeypatch) as cuda:
            claim(there)
            there.every_part = True
            moved = batch.to(cuda)
            drawn = draw(moved, config.objective, 0, there.frontend.space, masking=True)
            parts = losses(there, moved, drawn, config.objective)
            assert all(isinstance(part.sum, Claimed) for part in parts.values())
            assert {name: part.sum.item() for name, part in parts.items()} == pytest.approx(expected, rel=CLOSE)
            torch.stack([part.sum for part in parts.values()]).sum().backward()
            learnt = {name: p for name, p in there.named_parameters() if p.requires_grad}
            assert all(isinstance(p.grad, Claimed) for p in learnt.values())
            ema = Ema(learnt, 0.9)
            assert nn.utils.clip_grad_norm_(learnt.values(), 1.0).isfinite()
            torch.optim.AdamW(learnt.values(), fused=True).step()
            ema.update()
            assert all(isinstance(p, Claimed) and p.isfinite().all() for p in [*learnt.values(), *ema.shadow.values()])


def test_answers_and_images(frontend: str, tiny_model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(2))
    questions = [(first, "how many stars"), (second, "is it red"), (first, "how many stars"), (None, "the blue cross")]

    def found(model: UnifiedModel) -> tuple[list[str], np.ndarray]:
        space = model.frontend.space
        prompts = [image_prompt(tokenizer, space, "a red ring"), edit_prompt(tokenizer, space, first, "it is blue")]
        plain = image_prompt(tokenizer, space, "")
        sampling = replace(config.sampling, steps=2)
        images = sample_images(model, prompts, plain, (32, 32), sampling, config.objective, [0, 1])
        return answer(model, tokenizer, questions, max_tokens=3), images

    answers, images = found(tiny_model(frontend))
    with pretended_cuda(monkeypatch):
        model = tiny_model(frontend)
        claim(model)
        there, pictures = found(model)
    assert there == answers
    assert np.abs(pictures.astype(int) - images).max() <= 1  # a value between two bytes


def test_evaluation(frontend: str, tiny_model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    config.evaluation = replace(config.evaluation, loss_documents=2, psnr_images=2, psnr_times=[0.5])

    def found(model: UnifiedModel) -> dict[str, float]:
        with torch.no_grad():
            return held_out_losses(model, tokenizer, config) | one_step_psnr(model, tokenizer, config)

    expected = found(tiny_model(frontend))
    with pretended_cuda(monkeypatch):
        model = tiny_model(frontend)
        claim(model)
        assert found(model) == pytest.approx(expected, rel=CLOSE)
