import math

import pytest
import torch

from tunalab.inference.samplers import SAMPLERS, euler, heun


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_a_straight_path_is_walked_to_its_end(name, steps):
    # v constant: every number of steps must arrive exactly; a missing interval would fall short by 1 / steps.
    start, end = torch.tensor([[0.5, -2.0], [3.0, 1.0]], dtype=torch.float64)
    assert torch.allclose(SAMPLERS[name](lambda x, t: end - start, start, steps), end, rtol=0, atol=1e-12)


def test_evaluations_are_at_the_ends_of_equal_intervals():
    seen: list[float] = []

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        seen.append(t)
        return x

    euler(velocity, torch.ones(1), 4)
    assert seen == [0, 0.25, 0.5, 0.75]
    seen.clear()
    heun(velocity, torch.ones(1), 4)
    assert seen == [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75], "no evaluation at t = 1"


def test_order_of_convergence():
    # dx/dt = 2 t x from 1 ends at e, with a velocity that does not vanish at t = 1.
    def error(sampler, steps):
        return abs(float(sampler(lambda x, t: 2 * t * x, torch.ones(1, dtype=torch.float64), steps)) - math.e)

    assert error(euler, 40) / error(euler, 80) == pytest.approx(2, rel=0.1)
    # Second order inside, one Euler interval at the end: its local error, O(1 / steps^2), keeps the order.
    assert error(heun, 40) / error(heun, 80) == pytest.approx(4, rel=0.15)
    assert error(heun, 40) < error(euler, 40) / 10


def test_an_x_prediction_is_reached_in_the_last_interval():
    target = torch.tensor([0.3, -0.7], dtype=torch.float64)
    for sampler in (euler, heun):
        end = sampler(lambda x, t: (target - x) / (1 - t), torch.randn(2, dtype=torch.float64), 10)
        assert torch.allclose(end, target, rtol=0, atol=1e-12)
