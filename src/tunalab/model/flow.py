"""The flow-matching path: pure functions of tensors.

x_t = t x + (1 - t) s e, with e ~ N(0, I) and noise scale s; t = 1 is clean. Velocity v = dx_t/dt = x - s e = (x - x_t) / (1 - t).
The network predicts x or v; the loss is on v either way. Formulas: JiT (arXiv 2511.13720), section 4.

Shapes: N images, then any shape of x; t (N,).
"""

import torch
from torch import Tensor

from tunalab.settings.schema import ObjectiveConfig


def interpolate(x: Tensor, noise: Tensor, t_N: Tensor, noise_scale: float) -> Tensor:
    """x_t on the path from scaled noise (t = 0) to x (t = 1)."""
    t = _expand(t_N, x)
    return t * x + (1 - t) * noise_scale * noise


def velocity(prediction: Tensor, x_t: Tensor, t_N: Tensor, kind: str, min_one_minus_t: float) -> Tensor:
    """The velocity that a prediction of ``kind`` (x | v) stands for; 1 - t is clamped from below near the clean end."""
    if kind == "v":
        return prediction
    return (prediction - x_t) / (1 - _expand(t_N, x_t)).clamp(min=min_one_minus_t)


def clean(prediction: Tensor, x_t: Tensor, t_N: Tensor, kind: str) -> Tensor:
    """The clean x that a prediction of ``kind`` stands for."""
    if kind == "x":
        return prediction
    return x_t + (1 - _expand(t_N, x_t)) * prediction


def target(x: Tensor, noise: Tensor, kind: str, noise_scale: float) -> Tensor:
    """What the network should output."""
    return x if kind == "x" else x - noise_scale * noise


def loss_weight(t_N: Tensor, kind: str, min_one_minus_t: float) -> Tensor:
    """(N,): turns the squared error of the prediction into that of the velocity: 1 / max(1 - t, min)^2 for x, 1 for v."""
    return torch.ones_like(t_N) if kind == "v" else (1 - t_N).clamp(min=min_one_minus_t) ** -2


def sample_time(normal_N: Tensor, tokens_N: Tensor, objective: ObjectiveConfig) -> Tensor:
    """t = sigmoid(mean - shift * tokens + std z) from standard normal z, for images of so many visual tokens.

    The resolution-dependent shift of rectified flows, sigma' = e^mu / (e^mu + 1 / sigma - 1) with mu linear in the tokens
    (arXiv 2403.03206), is the same: with t = 1 - sigma = sigmoid(z) it is t' = sigmoid(z - mu). ``time_shift_tokens`` makes mu that
    of one number of tokens for every image.
    """
    z = objective.time_mean + objective.time_std * normal_N
    if not objective.time_shift:
        return torch.sigmoid(z)
    return torch.sigmoid(z - objective.time_shift * (objective.time_shift_tokens or tokens_N))


def _expand(t_N: Tensor, like: Tensor) -> Tensor:
    return t_N.view(-1, *[1] * (like.dim() - 1)).to(like.dtype)
