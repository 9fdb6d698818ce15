"""Solvers of the flow's ODE from noise (t = 0) to an image (t = 1): pure functions of a prediction.

Time is cut into intervals (:func:`times`). Each solver walks all of them, and none asks for a velocity at t = 1.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tunalab.config import SamplingConfig
from tunalab.model import flow

Velocity = Callable[[Tensor, float], Tensor]  # (x_t, t) -> dx/dt
Predictor = Callable[[Tensor, float], Tensor]  # (x_t, t) -> x or v

OFFICIAL_CLAMP = 0.05  # least 1 - t in the official pixel samplers
_NO_CLAMP = 2.0**-24  # the least 1 - t of a float32 t below 1: bounds nothing, and keeps a t that was rounded to 1 finite


def times(sampling: SamplingConfig) -> list[float]:
    """The ends of all intervals, from 0 to 1: t = u / (u + s - s u) at evenly spaced u.

    ``grid`` steps: that many intervals; points: that many ends, one interval less. A shift s above 1 takes
    more steps near the noise (arXiv 2403.03206, section 5.3.2, with t = 1 clean).
    """
    intervals = sampling.steps - (sampling.grid == "points")
    return [u / (sampling.shift - (sampling.shift - 1) * u) for u in (n / intervals for n in range(intervals + 1))]


def clamps(sampling: SamplingConfig) -> bool:
    """Whether the clamp of 1 - t changes anything on this grid (of an x-prediction)."""
    return sampling.clamp == "official" and 1 - times(sampling)[-2] < OFFICIAL_CLAMP


def integrate(predict: Predictor, noise: Tensor, sampling: SamplingConfig, prediction: str) -> Tensor:
    """x (N, ...) from noise of that shape at t = 0, by what a model predicts (``prediction``: x | v).

    Without clamp a perfect x-prediction is reached exactly: the last interval, 1 - t long, is one Euler
    step. With the official clamp, steps shorter than 0.05 leave noise (results/verification/sampling.md).
    """
    clamp = OFFICIAL_CLAMP if sampling.clamp == "official" else _NO_CLAMP

    def velocity(x: Tensor, t: float) -> Tensor:
        return flow.velocity(predict(x, t), x, torch.full((len(x),), t, device=x.device), prediction, clamp)

    return SAMPLERS[sampling.method](velocity, noise, times(sampling))


def euler(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """One evaluation an interval, at its start."""
    for t, t_next in pairwise(times):
        x = x + (t_next - t) * velocity(x, t)
    return x


def heun(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """The mean of the velocities at both ends of an interval, the far one at Euler's estimate.

    The last interval is Euler's: at t = 1 the velocity of an x-prediction divides by 1 - t = 0.
    """
    for step, (t, t_next) in enumerate(pairwise(times)):
        v = velocity(x, t)
        if step < len(times) - 2:
            v = (v + velocity(x + (t_next - t) * v, t_next)) / 2
        x = x + (t_next - t) * v
    return x


SAMPLERS: dict[str, Callable[[Velocity, Tensor, Sequence[float]], Tensor]] = {"euler": euler, "heun": heun}


def evaluations(sampling: SamplingConfig) -> int:
    """How often a solver asks for the velocity."""
    intervals = len(times(sampling)) - 1
    return {"euler": intervals, "heun": 2 * intervals - 1}[sampling.method]
