"""Saturating power laws of learning curves: accuracy(x) = a - b x^-c, never below chance.

Written with the place s where the law leaves chance: accuracy(x) = a - (a - chance) (x / s)^-c for x > s, chance before, so that
b = (a - chance) s^c. The asymptote a lies between chance and 1, c is positive. A curve that bends upwards over log x and has not
bent back yet (a take-off) has no such law: that is said instead of a number.

    R  resamples    P  places    K  tried parameters
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from tunalab.results.analysis.axes import Axis
from tunalab.results.analysis.resampling import Curve, Draws, interval, mean_curves

RESAMPLES = 300  # of those of everything else, the first: a fit is a search
WIDEST = 0.2  # of an asymptote's interval: wider is no knowledge of it
RESIDUAL = 0.05  # root mean square, of a law that describes its curve
ABOVE = 4  # places after the start: three parameters need three, and a fourth to disagree
HELD_OUT = (1, 2, 3)
FORECAST = 10.0

_EXPONENTS = log(0.03), log(10.0)
_BEFORE = 14.0  # the start may lie this far before the first place, in logarithms: curves that are above chance from the start
_COARSE = 24
_ZOOMS = 20


@dataclass(frozen=True)
class Fits:
    """A law a row: ``asymptote_R``, ``start_R`` (on the axis), ``exponent_R``; ``error_R`` is the root mean square residual."""

    asymptote_R: np.ndarray
    start_R: np.ndarray
    exponent_R: np.ndarray
    error_R: np.ndarray
    chance: float

    def at(self, x: float) -> np.ndarray:
        """Accuracy at ``x``, shape (R,)."""
        return self.chance + (self.asymptote_R - self.chance) * _rise(np.log(x) - np.log(self.start_R), self.exponent_R)


@dataclass(frozen=True)
class HeldOut:
    """The last place predicted from those up to ``upto``: predicted minus measured; None where there is no law up to there."""

    upto: float
    error: float | None


@dataclass(frozen=True)
class PowerLaw:
    """The law of one line on one benchmark, (estimate, low, high) at 95%; ``unknown`` says why there is none, else empty.

    ``forecast``: at ``FORECAST`` times the last place.
    """

    curve: Curve
    asymptote: tuple[float, float, float]
    start: tuple[float, float, float]
    exponent: tuple[float, float, float]
    forecast: tuple[float, float, float]
    residual: float
    held_out: tuple[HeldOut, ...]
    last: float
    seeds: int
    unknown: str

    @property
    def factor(self) -> float:
        """b of a - b x^-c."""
        return float((self.asymptote[0] - self.curve.chance) * self.start[0] ** self.exponent[0])


def fit(x_P: np.ndarray, accuracy_RP: np.ndarray, chance: float) -> Fits:
    """Least squares, each row by itself: a common grid over start and exponent, then a search around each row's best.

    For a given start and exponent the asymptote is a linear problem with one unknown, solved exactly.
    """
    log_P, y_RP = np.log(x_P), accuracy_RP - chance
    inside = np.linspace(log_P[0], log_P[-1], _COARSE, endpoint=False)
    before = np.linspace(log_P[0] - _BEFORE, log_P[0], _COARSE // 3, endpoint=False)
    starts, exponents = np.concatenate([before, inside]), np.linspace(*_EXPONENTS, _COARSE)
    start_K, exponent_K = (grid.ravel() for grid in np.meshgrid(starts, exponents))
    rows = np.arange(len(y_RP))
    best_R = _losses(log_P, y_RP, start_K[None], exponent_K[None], chance)[1].argmin(axis=1)
    start_R, exponent_R = start_K[best_R], exponent_K[best_R]
    step_R = np.where(start_R < log_P[0], before[1] - before[0], inside[1] - inside[0])
    step = float(exponents[1] - exponents[0])
    aside = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    aside_start, aside_exponent = (grid.ravel() for grid in np.meshgrid(aside, aside))
    for _ in range(_ZOOMS):
        start_RK = np.clip(start_R[:, None] + step_R[:, None] * aside_start, starts[0], log_P[-1] - 1e-6)
        exponent_RK = np.clip(exponent_R[:, None] + step * aside_exponent, *_EXPONENTS)
        best_R = _losses(log_P, y_RP, start_RK, exponent_RK, chance)[1].argmin(axis=1)
        start_R, exponent_R = start_RK[rows, best_R], exponent_RK[rows, best_R]
        step_R, step = step_R * 0.7, step * 0.7  # not halved: the best may lie on a border, and moves on from there
    height_RK, loss_RK = _losses(log_P, y_RP, start_R[:, None], exponent_R[:, None], chance)
    residual_R = np.sqrt(np.maximum(loss_RK[:, 0], 0) / len(x_P))
    return Fits(chance + height_RK[:, 0], np.exp(start_R), np.exp(exponent_R), residual_R, chance)


def power_law(curve: Curve, axis: Axis, draws: Draws) -> PowerLaw | None:
    """None where the seeds share no stretch of the axis with more than three places."""
    means = mean_curves([curve], axis, draws)
    if not means or len(means[0].x_G) < ABOVE:
        return None
    x_P, resampled_RP = means[0].x_G, means[0].resampled_RG[:RESAMPLES]
    every_RP = np.concatenate([means[0].mean_G[None], resampled_RP])  # the estimate in row 0
    law = fit(x_P, every_RP, curve.chance)
    last = float(x_P[-1])
    return PowerLaw(
        curve,
        _estimated(law.asymptote_R),
        _estimated(law.start_R),
        _estimated(law.exponent_R),
        _estimated(law.at(FORECAST * last)),
        float(law.error_R[0]),
        tuple(_held_out(x_P, every_RP, curve.chance, count) for count in HELD_OUT if len(x_P) - count >= ABOVE),
        last,
        means[0].seeds,
        _without_law(law, x_P, every_RP) or _without_asymptote(law, float(every_RP[0, -1])),
    )


def power_laws(curves: Sequence[Curve], axis: Axis, draws: Draws) -> list[PowerLaw]:
    return [law for law in (power_law(curve, axis, draws) for curve in curves) if law is not None]


def _rise(log_past: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """1 - (x / s)^-c, 0 before the start."""
    return 1 - np.exp(-exponent * np.maximum(log_past, 0))


def _losses(
    log_P: np.ndarray, y_RP: np.ndarray, start_RK: np.ndarray, exponent_RK: np.ndarray, chance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Best height over chance and sum of squares of every start and exponent (their logarithms), both (R, K)."""
    rise_RKP = _rise(log_P - start_RK[..., None], np.exp(exponent_RK[..., None]))
    square_RK = (rise_RKP**2).sum(axis=-1)
    # Row 0 of a common grid serves all rows; else each row has its own candidates.
    product_RK = y_RP @ rise_RKP[0].T if len(rise_RKP) == 1 else np.einsum("rp,rkp->rk", y_RP, rise_RKP)
    height_RK = np.clip(np.divide(product_RK, square_RK, out=np.zeros_like(product_RK), where=square_RK > 0), 0, 1 - chance)
    loss_RK = (y_RP**2).sum(axis=1)[:, None] - 2 * height_RK * product_RK + height_RK**2 * square_RK
    return height_RK, loss_RK


def _held_out(x_P: np.ndarray, every_RP: np.ndarray, chance: float, count: int) -> HeldOut:
    known_P, known_RP = x_P[:-count], every_RP[:, :-count]
    law = fit(known_P, known_RP[:1], chance)
    upto = float(known_P[-1])
    if _without_law(law, known_P, known_RP):
        return HeldOut(upto, None)
    return HeldOut(upto, float(law.at(float(x_P[-1]))[0] - every_RP[0, -1]))


def _without_law(law: Fits, x_P: np.ndarray, every_RP: np.ndarray) -> str:
    """Why the points do not show a law at all, or empty."""
    if interval(every_RP[1:, -1])[0] <= law.chance:
        return "not above chance at the end"
    above = int((x_P > law.start_R[0]).sum())
    return f"{above} point{'' if above == 1 else 's'} after the take-off" if above < ABOVE else ""


def _without_asymptote(law: Fits, end: float) -> str:
    """Why the law says nothing of where the curve ends, or empty. ``end``: the last accuracy."""
    asymptote, low, high = _estimated(law.asymptote_R)
    if law.error_R[0] > RESIDUAL:
        return f"no power law: residual {100 * law.error_R[0]:.0f} points"
    if asymptote > 1 - 1e-6 and end < 1 - RESIDUAL:
        return "not bending yet: asymptote at its bound"
    return f"asymptote anywhere from {100 * low:.0f} to {100 * high:.0f}%" if high - low > WIDEST else ""


def _estimated(value_R: np.ndarray) -> tuple[float, float, float]:
    """Row 0 with the interval of the others."""
    low, high = interval(value_R[1:])
    return float(value_R[0]), float(low), float(high)
