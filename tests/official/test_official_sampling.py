"""The official samplers, written out slowly from their definitions, and ours on the same weights: every point of the way.

The predictions are whole forward passes (golden.py), which the golden tensors hold to the official models; ours run the cached
prompt. The settings are those that conversion gives a checkpoint.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.official.golden import NAMES, Picture, run
from torch import Tensor

from tunalab.inference.generation import GuidedPredictor, sample
from tunalab.inference.prompts import Prompt
from tunalab.trained.model import Model

Predict = Callable[[Tensor, float], Tensor]
Points = list[tuple[float, Tensor]]  # where the model is asked, and the end
PROMPT, NEGATIVE = [1, 20, 51, 82, 113, 3], [1, 700, 731, 3]  # bos, text, boi
EOI, EOS, PAD = 4, 2, 6


def pixel_way(predict: Predict, noise: Tensor, steps: int, method: str) -> Points:
    """``steps`` equal steps, no shift, x-prediction, 1 - t at least .05; Heun's last step is one of Euler."""
    z, points = 2.0 * noise, []

    def velocity(z: Tensor, t: float) -> Tensor:
        points.append((t, z))
        return (predict(z, t) - z) / max(0.05, 1 - t)

    for i in range(steps):
        t, dt = i / steps, 1 / steps
        v = velocity(z, t)
        if method == "heun" and i < steps - 1:
            v = 0.5 * (v + velocity(z + dt * v, t + dt))
        z = z + dt * v
    return [*points, (1.0, z)]


def latent_way(predict: Predict, noise: Tensor, n: int) -> Points:
    """Euler from point to point of n, shifted by 3; the model predicts the velocity."""
    u = [i / (n - 1) for i in range(n)]
    t = [x / (x + 3 - 3 * x) for x in u]
    z, points = noise, []
    for i in range(n - 1):
        points.append((t[i], z))
        z = z + (t[i + 1] - t[i]) * predict(z, t[i])
    return [*points, (1.0, z)]


def whole_passes(loaded: Model, guidance: float) -> Predict:
    def branch(prompt: list[int], x_Chw: Tensor, t: float) -> Tensor:
        rows, columns = loaded.model.grid(x_Chw[None])
        tokens = np.array([*prompt, *[PAD] * (1 + rows * columns), EOI, EOS])
        return run(loaded.model, tokens, [Picture(len(prompt), x_Chw, t, generate=True)], token_pixels=16).predictions[0]

    def predict(x_1Chw: Tensor, t: float) -> Tensor:
        conditional, unconditional = (branch(prompt, x_1Chw[0], t) for prompt in (PROMPT, NEGATIVE))
        return (unconditional + guidance * (conditional - unconditional))[None]

    return predict


@pytest.mark.parametrize("name", NAMES)
def test_every_point_of_the_way(name: str, golden_model: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = golden_model(name)
    usual = loaded.config.sampling
    guidance = {"tuna2": 3.0, "tuna_r": 4.0, "tuna": 7.5}[name]
    method = "heun" if name == "tuna_r" else "euler"
    latents = name == "tuna"
    shape = (1, 48, 1, 2) if latents else (1, 3, 16, 32)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    steps = 7 if latents else 21  # above 20 the clamp takes part
    assert usual.steps == 50
    predict = whole_passes(loaded, guidance)
    expected = latent_way(predict, noise, steps) if latents else pixel_way(predict, noise, steps, method)

    found: Points = []
    original = GuidedPredictor.__call__

    def recorded(self: GuidedPredictor, x: Tensor, t: float) -> Tensor:
        found.append((t, x))
        return original(self, x, t)

    monkeypatch.setattr(GuidedPredictor, "__call__", recorded)
    prompt, negative = (Prompt(np.array(ids)) for ids in (PROMPT, NEGATIVE))
    end = sample(loaded.model, [prompt], [negative], noise, replace(usual, steps=steps), loaded.config.objective)
    found.append((1.0, end))

    assert [t for t, _ in found] == pytest.approx([t for t, _ in expected], abs=1e-12)
    for (t, ours), (_, theirs) in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4, msg=lambda text, t=t: f"at t = {t}: {text}")
    assert (end - noise).abs().max() > 0.5, "the model moved the noise"
