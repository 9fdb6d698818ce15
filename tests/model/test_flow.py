"""The flow path in closed form."""

import pytest
import torch

from tunalab.model import flow
from tunalab.settings.schema import ObjectiveConfig

N, SHAPE, MIN = 6, (3, 4, 4), 0.05
KINDS = ["x", "v"]


def sample(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn((N, *SHAPE), generator=generator, dtype=dtype) for _ in range(2))
    return x, noise, torch.tensor([0.0, 0.1, 0.3, 0.5, 0.9, 0.95], dtype=dtype)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_path_leads_from_scaled_noise_to_x(scale: float) -> None:
    x, noise, _ = sample()
    assert torch.equal(flow.interpolate(x, noise, torch.ones(N), scale), x)
    torch.testing.assert_close(flow.interpolate(x, noise, torch.zeros(N), scale), scale * noise)
    middle = flow.interpolate(x, noise, torch.full((N,), 0.25), scale)
    torch.testing.assert_close(middle, 0.25 * x + 0.75 * scale * noise)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_velocity_is_the_derivative_of_the_path(scale: float) -> None:
    x, noise, t = sample()
    _, derivative = torch.autograd.functional.jvp(lambda t: flow.interpolate(x, noise, t, scale), t, torch.ones_like(t))
    torch.testing.assert_close(flow.target(x, noise, "v", scale), derivative)
    x_t = flow.interpolate(x, noise, t, scale)
    for kind in KINDS:
        exact = flow.target(x, noise, kind, scale)
        torch.testing.assert_close(flow.velocity(exact, x_t, t, kind, MIN), derivative)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_exact_prediction_lands_on_x_in_one_step(kind: str, scale: float) -> None:
    x, noise, t = sample()
    x_t = flow.interpolate(x, noise, t, scale)
    exact = flow.target(x, noise, kind, scale)
    torch.testing.assert_close(flow.clean(exact, x_t, t, kind), x)
    v = flow.velocity(exact, x_t, t, kind, MIN)
    torch.testing.assert_close(x_t + (1 - t).view(-1, 1, 1, 1) * v, x)


def test_near_the_clean_end_the_velocity_is_bounded() -> None:
    x, _, _ = sample()
    v = flow.velocity(x + 1, x, torch.ones(N), "x", MIN)
    torch.testing.assert_close(v, torch.full_like(v, 1 / MIN))


def test_weighted_error_of_x_is_error_of_the_velocity() -> None:
    x, noise, t = sample()
    x_t = flow.interpolate(x, noise, t, 1.0)
    guess = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    error_x = (guess - x).square().flatten(1).mean(1)
    v = flow.velocity(guess, x_t, t, "x", MIN)
    error_v = (v - flow.target(x, noise, "v", 1.0)).square().flatten(1).mean(1)
    torch.testing.assert_close(error_x * flow.loss_weight(t, "x", MIN), error_v)
    assert torch.equal(flow.loss_weight(t, "v", MIN), torch.ones(N, dtype=t.dtype))
    assert flow.loss_weight(torch.ones(1), "x", MIN).item() == pytest.approx(MIN**-2)


def test_times_are_logit_normal() -> None:
    objective = ObjectiveConfig(time_mean=-0.4, time_std=1.3)
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    t = flow.sample_time(z, torch.full(z.shape, 16), objective)
    assert t.min() > 0 and t.max() < 1
    logit = t.logit()
    assert abs(logit.mean() + 0.4) < 0.04 and abs(logit.std() - 1.3) < 0.03
    middle = flow.sample_time(torch.zeros(1), torch.tensor([16]), objective)
    assert middle.item() == pytest.approx(torch.tensor(-0.4).sigmoid().item())


def test_large_images_take_more_noise() -> None:
    """The published shift: noise level s to e^mu / (e^mu + 1/s - 1), mu linear in tokens, 0.5 at 256 and 1.15 at 4096."""
    slope = (1.15 - 0.5) / (4096 - 256)
    objective = ObjectiveConfig(time_mean=-(0.5 - 256 * slope), time_std=1.0, time_shift=slope)
    z, tokens = torch.randn(4, generator=torch.Generator().manual_seed(0)), torch.tensor([256, 1024, 1008, 4096])
    mu = torch.tensor([0.5, 0.63, 0.5 + 752 * slope, 1.15])
    level = 1 - torch.sigmoid(z)
    expected = mu.exp() / (mu.exp() + 1 / level - 1)
    torch.testing.assert_close(1 - flow.sample_time(z, tokens, objective), expected)
