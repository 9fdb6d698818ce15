"""The area under a learning curve over the length of the axis: a mean accuracy of the whole run, without the choice of a point.

Over log x every doubling counts the same, and what was learnt early counts most; over x itself the late part of a run decides. Both
are of the same curve, straight lines over log x between evaluations, integrated exactly.

    R  resamples    G  places
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tunalab.results.analysis.axes import Axis
from tunalab.results.analysis.resampling import ENOUGH, Curve, Draws, interval, mean_curves


@dataclass(frozen=True)
class Area:
    """Mean accuracy of ``curve`` from ``first`` to ``last``, or with ``less`` the difference of the two, with its 95% interval."""

    curve: Curve
    less: Curve | None
    scale: str
    value: float
    low: float
    high: float
    first: float
    last: float
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        """Never of few seeds, whose bootstrap is too narrow."""
        return self.seeds >= ENOUGH and (self.low > 0 or self.high < 0)


def log_weights(x_G: np.ndarray) -> np.ndarray:
    """Weights of the values at ``x_G`` in the mean over log x: the trapezoidal rule, exact for straight lines."""
    length_G = np.diff(np.log(x_G))
    weight_G = np.zeros(len(x_G))
    weight_G[:-1] += length_G / 2
    weight_G[1:] += length_G / 2
    return weight_G / length_G.sum()


def linear_weights(x_G: np.ndarray) -> np.ndarray:
    """Weights of the values at ``x_G`` in the mean over x, of straight lines over log x.

    On one piece of length d = x1 - x0, with L = log(x1 / x0), the integral of log(x / x0) / L is x1 - d / L: the weight of the
    right end. The left end has the rest of d.
    """
    step_G = np.diff(x_G)
    right_G = x_G[1:] - step_G / np.diff(np.log(x_G))
    weight_G = np.zeros(len(x_G))
    weight_G[1:] += right_G
    weight_G[:-1] += step_G - right_G
    return weight_G / step_G.sum()


SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"log": log_weights, "linear": linear_weights}


def area(curve: Curve, axis: Axis, draws: Draws, less: Curve | None = None) -> list[Area]:
    """On each scale; empty where the seeds (or the two curves) share less than two places."""
    means = mean_curves([curve] if less is None else [curve, less], axis, draws)
    if not means or len(means[0].x_G) < 2:
        return []
    x_G, mean_G, resampled_RG = means[0].x_G, means[0].mean_G, means[0].resampled_RG
    if less is not None:
        mean_G, resampled_RG = mean_G - means[1].mean_G, resampled_RG - means[1].resampled_RG
    found = []
    for scale, weights in SCALES.items():
        weight_G = weights(x_G)
        low, high = interval(resampled_RG @ weight_G)
        ends = float(x_G[0]), float(x_G[-1])
        found.append(Area(curve, less, scale, float(mean_G @ weight_G), float(low), float(high), *ends, means[0].seeds))
    return found


def areas(curves: Sequence[Curve], axis: Axis, draws: Draws) -> list[Area]:
    return [one for curve in curves for one in area(curve, axis, draws)]
