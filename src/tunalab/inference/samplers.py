"""Solvers of the flow's ODE from noise (t = 0) to an image (t = 1): pure functions of a velocity.

Time is cut into exactly ``steps`` equal intervals. Each solver walks all of them.
"""

from collections.abc import Callable

from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]  # (x_t, t) -> dx/dt


def euler(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """One evaluation an interval, at its start."""
    for step in range(steps):
        t, t_next = step / steps, (step + 1) / steps
        x = x + (t_next - t) * velocity(x, t)
    return x


def heun(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """The mean of the velocities at both ends of an interval, the far one at Euler's estimate.

    The last interval is Euler's: at t = 1 the velocity of an x-prediction divides by 1 - t = 0.
    """
    for step in range(steps):
        t, t_next = step / steps, (step + 1) / steps
        v = velocity(x, t)
        if step < steps - 1:
            v = (v + velocity(x + (t_next - t) * v, t_next)) / 2
        x = x + (t_next - t) * v
    return x


SAMPLERS: dict[str, Callable[[Velocity, Tensor, int], Tensor]] = {"euler": euler, "heun": heun}


def evaluations(method: str, steps: int) -> int:
    """How often a solver asks for the velocity."""
    return {"euler": steps, "heun": 2 * steps - 1}[method]
