import math

import pytest
import torch

from tunalab.inference.generation import SAMPLERS, clamps, euler, heun, integrate, times
from tunalab.settings.schema import SamplingConfig

METHODS = sorted(SAMPLERS)


def even(steps: int) -> list[float]:
    return times(SamplingConfig(steps=steps))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("shift", [0.2, 1.0, 3.0])
def test_a_straight_path_is_walked_to_its_end(name, steps, shift):
    # v constant: every number of steps must arrive exactly; a missing interval would fall short by 1 / steps.
    start, end = torch.tensor([[0.5, -2.0], [3.0, 1.0]], dtype=torch.float64)
    for sampling in (SamplingConfig(steps=steps, shift=shift), SamplingConfig(steps=steps + 1, shift=shift, grid="points")):
        assert torch.allclose(SAMPLERS[name](lambda x, t: end - start, start, times(sampling)), end, rtol=0, atol=1e-12)


def test_evaluations_are_at_the_ends_of_equal_intervals():
    observed: list[float] = []

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        observed.append(t)
        return x

    euler(velocity, torch.ones(1), even(4))
    assert observed == [0, 0.25, 0.5, 0.75]
    observed.clear()
    heun(velocity, torch.ones(1), even(4))
    assert observed == [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75], "no evaluation at t = 1"


def test_the_grid_of_the_official_tuna():
    grid = times(SamplingConfig(steps=7, grid="points", shift=3.0))
    assert grid == pytest.approx([0, 0.0625, 1 / 7, 0.25, 0.4, 0.625, 1], abs=1e-12)
    assert times(SamplingConfig(steps=6, shift=3.0)) == grid, "six steps lie between seven points"
    # Without a shift the times are the quotients themselves, bit for bit: what earlier versions sampled.
    assert all(even(steps) == [step / steps for step in range(steps + 1)] for steps in (1, 4, 20, 50))


def test_order_of_convergence():
    # dx/dt = 2 t x from 1 ends at e, with a velocity that does not vanish at t = 1.
    def error(sampler, steps):
        return abs(float(sampler(lambda x, t: 2 * t * x, torch.ones(1, dtype=torch.float64), even(steps))) - math.e)

    assert error(euler, 40) / error(euler, 80) == pytest.approx(2, rel=0.1)
    # Second order inside, one Euler interval at the end: its local error, O(1 / steps^2), keeps the order.
    assert error(heun, 40) / error(heun, 80) == pytest.approx(4, rel=0.15)
    assert error(heun, 40) < error(euler, 40) / 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 2, 20, 50, 100, 1000])
@pytest.mark.parametrize("shift", [0.01, 1.0, 3.0, 100.0])
def test_a_perfect_x_prediction_is_reached_without_clamp(method, steps, shift):
    image, noise = (torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    found = integrate(lambda x, t: image, 2 * noise, SamplingConfig(method, steps, shift=shift), "x")
    torch.testing.assert_close(found, image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_where_the_clamp_changes_nothing(method):
    """Nothing at all, bit for bit, in the 20 steps of the committed records, and of a velocity in no number of them."""
    noise = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(0))

    def alike(steps: int, prediction: str, **grid: object) -> bool:
        ends = [
            integrate(lambda x, t: (3 * x + t).cos(), noise, SamplingConfig(method, steps, clamp=clamp, **grid), prediction)
            for clamp in ("none", "official")
        ]
        same = torch.equal(*ends)
        assert prediction == "v" or same != clamps(SamplingConfig(method, steps, clamp="official", **grid))
        return same

    assert all(alike(steps, "x") for steps in (1, 4, 20))
    assert not any(alike(steps, "x") for steps in (21, 50))
    assert alike(50, "x", shift=3.0) and not alike(100, "x", shift=3.0)
    assert all(alike(steps, "v") for steps in (20, 50, 100))


def test_a_time_that_is_rounded_to_one_divides_by_no_zero():
    late = 1 - 2.0**-30  # 1 in float32
    assert torch.tensor(late) == 1
    ends = []
    for clamp in ("none", "official"):
        sampling = SamplingConfig("euler", 2, clamp=clamp, shift=1 / late - 1)
        ends.append(integrate(lambda x, t: torch.ones_like(x), torch.zeros(1, 1), sampling, "x"))
    assert all(torch.isfinite(end).all() for end in ends)
