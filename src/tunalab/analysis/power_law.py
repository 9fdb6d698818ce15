"""Saturating power laws of learning curves: accuracy(x) = a - b x^-c, never below chance.

Written with the place s where the law leaves chance: accuracy(x) = a - (a - chance) (x / s)^-c for x > s, chance before, so that
b = (a - chance) s^c. The asymptote a lies between chance and 1, c is positive.

Most curves of learning are S-shaped, and the upper half of an S looks like such a law. So a law is printed only where it predicts
points that it was not fitted to better than a logistic curve over log x does, seed by seed (a one-sided paired t-test at 5%). Other
curves have no law here, whatever their residual.

    R  rows (the mean over seeds, then each seed)    P  places    K  tried exponents    S  stretches between places    C  candidates
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit, logit, stdtr

from tunalab.analysis.curves import Axis
from tunalab.analysis.learning import Curve, on_grid
from tunalab.analysis.statistics import of_seeds, share_interval

WIDEST = 0.2  # of an asymptote's interval: wider is no knowledge of it
RESIDUAL = 0.05  # root mean square, of a law that describes its curve
ABOVE = 4  # places after the start: three parameters need three, and a fourth to disagree
HELD_OUT = (1, 2, 3)
FORECAST = 10.0
BETTER = 0.05  # the level of the test against a logistic curve

_EXPONENTS = log(0.03), log(10.0)
_BEFORE = 14.0  # the start may lie this far before the first place, in logarithms: curves that are above chance from the start
_GRID = 64
_SEARCHES = 2  # around the lowest valleys of the grid: the first is not always the deepest
_GOLDEN = (5**0.5 - 1) / 2
_SECTIONS = 22  # of two steps of the grid: an exponent to 5e-6 of itself
_ALIKE = 1e-8  # in squared accuracy, far below what is printed: laws whose losses differ by less fit alike
_ROUNDING = 1e-9  # what lies nearer to a bound is at it


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
    """The last place predicted from those up to ``upto``: predicted minus measured, by the law and by a logistic curve, of the mean
    over seeds; None where there is no law up to there.
    """

    upto: float
    error: float | None
    logistic: float | None


Bounds = tuple[float, float | None, float | None]


@dataclass(frozen=True)
class PowerLaw:
    """The law of one line on one benchmark: of its mean curve, with 95% intervals of the laws of single seeds (Student's t).

    ``unknown`` says why there is none, else empty. ``forecast``: at ``FORECAST`` times the last place.
    """

    curve: Curve
    asymptote: Bounds
    start: Bounds
    exponent: Bounds
    forecast: Bounds
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
    """Least squares, each row by itself: a grid over exponents, then a search in its lowest valleys.

    For a given exponent the best start and asymptote are solved for, see `_profile`. Where data
    cannot tell laws apart (all at chance, one or two points above it), the last bits of a logarithm
    would choose between them. So of laws that fit alike it is the one whose exponent is nearest
    to 1, and then the one that starts first.
    """
    log_P, y_RP = np.log(x_P), accuracy_RP - chance
    grid_K = np.linspace(*_EXPONENTS, _GRID)
    loss_RK = _profile(log_P, y_RP, grid_K[None], chance)[0]
    walled_RK = np.pad(loss_RK, ((0, 0), (1, 1)), constant_values=np.inf)
    valley_RK = (loss_RK <= walled_RK[:, :-2]) & (loss_RK <= walled_RK[:, 2:])
    order_RK = np.where(valley_RK, loss_RK, np.inf).argsort(axis=1, kind="stable")
    from_RK = order_RK[:, :_SEARCHES]
    low_RK, high_RK = grid_K[np.maximum(from_RK - 1, 0)], grid_K[np.minimum(from_RK + 1, _GRID - 1)]
    at_RK = _golden(lambda at_RK: _profile(log_P, y_RP, at_RK, chance)[0], low_RK, high_RK)
    loss_RK, *found = _profile(log_P, y_RP, at_RK, chance)
    best = np.arange(len(y_RP)), loss_RK.argmin(axis=1)
    square_R, height_R, start_R, at_R = (value_RK[best] for value_RK in (*found, at_RK))
    error_R = np.sqrt(square_R / len(x_P))
    return Fits(chance + height_R, np.exp(start_R), np.exp(at_R), error_R, chance)


def fit_logistic(x_P: np.ndarray, accuracy_P: np.ndarray, chance: float) -> Callable[[float], float]:
    """Least squares of chance + (a - chance) / (1 + exp(-k (log x - m))), a from chance to 1; as a function of x."""
    log_P, height = np.log(x_P), 1 - chance

    def curve(parameters: np.ndarray, log_x: np.ndarray | float) -> np.ndarray:
        top, steepness, middle = expit(parameters[0]), np.exp(parameters[1]), parameters[2]
        return np.asarray(chance + height * top * expit(steepness * (log_x - middle)))

    # The height of a curve of given steepness and middle has a closed form: the best of a grid of them is where the search begins.
    steep_K, middle_M = np.geomspace(0.3, 30, 24), np.linspace(log_P[0] - 1, log_P[-1] + 1, 48)
    shape_KMP = height * expit(steep_K[:, None, None] * (log_P - middle_M[:, None]))
    rise_P = accuracy_P - chance
    top_KM = np.clip((shape_KMP @ rise_P) / np.maximum((shape_KMP**2).sum(axis=-1), 1e-12), 0.001, 0.999)
    loss_KM = ((top_KM[..., None] * shape_KMP - rise_P) ** 2).sum(axis=-1)
    k, m = np.unravel_index(loss_KM.argmin(), loss_KM.shape)
    start = (logit(top_KM[k, m]), log(steep_K[k]), middle_M[m])
    best = least_squares(lambda parameters: curve(parameters, log_P) - accuracy_P, start)
    return lambda x: float(curve(best.x, log(x)))


def power_law(curve: Curve, axis: Axis) -> PowerLaw | None:
    """None where the seeds share no stretch of the axis with more than three places."""
    found = on_grid([curve], axis)
    if not found or len(found[0].x_G) < ABOVE:
        return None
    x_P, value_SP = found[0].x_G, found[0].value_SG
    every_RP = np.concatenate([value_SP.mean(axis=0)[None], value_SP])  # the mean in row 0
    law = fit(x_P, every_RP, curve.chance)
    last = float(x_P[-1])
    counts = [count for count in HELD_OUT if len(x_P) - count >= ABOVE]
    error_HR, logistic_HR = (
        np.array([_held_out(x_P, every_RP, curve.chance, count) for count in counts])
        .reshape(-1, 2, len(every_RP))
        .transpose(1, 0, 2)
    )
    above = share_interval(value_SP[:, -1], curve.n)[0] > curve.chance + _ROUNDING
    unknown = (
        _without_law(law, x_P, above)
        or _not_better(error_HR[:, 1:], logistic_HR[:, 1:])
        or _without_asymptote(law, float(every_RP[0, -1]))
    )
    held_out = [
        HeldOut(float(x_P[-1 - count]), *(None if np.isnan(one) else float(one) for one in errors))
        for count, *errors in zip(counts, error_HR[:, 0], logistic_HR[:, 0], strict=True)
    ]
    return PowerLaw(
        curve,
        _estimated(law.asymptote_R),
        _estimated(np.log(law.start_R), np.exp),
        _estimated(np.log(law.exponent_R), np.exp),
        _estimated(law.at(FORECAST * last)),
        float(law.error_R[0]),
        tuple(held_out),
        last,
        len(value_SP),
        unknown,
    )


def power_laws(curves: Sequence[Curve], axis: Axis) -> list[PowerLaw]:
    return [law for law in (power_law(curve, axis) for curve in curves) if law is not None]


def _rise(log_past: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """1 - (x / s)^-c, 0 before the start."""
    return 1 - np.exp(-exponent * np.maximum(log_past, 0))


def _golden(loss: Callable[[np.ndarray], np.ndarray], low_RK: np.ndarray, high_RK: np.ndarray) -> np.ndarray:
    """Where the loss is lowest within its bounds, by golden section search, each by itself."""
    left_RK = high_RK - _GOLDEN * (high_RK - low_RK)
    right_RK = low_RK + _GOLDEN * (high_RK - low_RK)
    at_left_RK, at_right_RK = loss(left_RK), loss(right_RK)
    for _ in range(_SECTIONS):
        left = at_left_RK < at_right_RK  # then the lowest lies between low and right
        low_RK, high_RK = np.where(left, low_RK, left_RK), np.where(left, right_RK, high_RK)
        kept_RK = np.where(left, left_RK, right_RK)
        at_kept_RK = np.where(left, at_left_RK, at_right_RK)
        step_RK = _GOLDEN * (high_RK - low_RK)
        new_RK = np.where(left, high_RK - step_RK, low_RK + step_RK)
        at_new_RK = loss(new_RK)
        left_RK, right_RK = np.where(left, new_RK, kept_RK), np.where(left, kept_RK, new_RK)
        at_left_RK = np.where(left, at_new_RK, at_kept_RK)
        at_right_RK = np.where(left, at_kept_RK, at_new_RK)
    return (low_RK + high_RK) / 2


def _profile(
    log_P: np.ndarray, y_RP: np.ndarray, log_exponent_RK: np.ndarray, chance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of every exponent: the loss, its sum of squares alone, best height over chance and start.

    All (R, K); the start is a logarithm. ``log_exponent_RK`` is (1, K) where all rows try the same.
    While the start moves through one stretch between two places (the first lies before them all),
    the same places are above it. There the law is a (1 - q g) with g = (x / end of the stretch)^-c,
    linear in a and a q. The best of a stretch starts where the stretch begins, or is the optimum
    without bounds where that is within them, or is as high as it may be.
    """
    highest, exponent_RK1 = 1 - chance, np.exp(log_exponent_RK)[..., None]
    begin_S, end_S = np.concatenate([log_P[:1] - _BEFORE, log_P[:-1]]), log_P
    above_SP = log_P > begin_S[:, None]
    past_SP = np.where(above_SP, log_P - end_S[:, None], 0)
    g_RKSP = np.exp(-exponent_RK1[..., None] * past_SP) * above_SP
    # Sums over the places above the start.
    n_S, g_RKS, gg_RKS = above_SP.sum(axis=1), g_RKSP.sum(axis=-1), (g_RKSP**2).sum(axis=-1)
    y_RKS = (y_RP @ above_SP.T)[:, None]
    gy_RKS = np.matmul(g_RKSP, y_RP[:, None, :, None])[..., 0]

    first_RKS = np.exp(-exponent_RK1 * (end_S - begin_S))
    early_RKS = y_RKS - first_RKS * gy_RKS
    early_RKS = early_RKS / (n_S - first_RKS * (2 * g_RKS - first_RKS * gg_RKS))
    several_S = n_S > 1  # of one place above it there is no better start than the first
    a_RKS, aq_RKS = gg_RKS * y_RKS - g_RKS * gy_RKS, g_RKS * y_RKS - n_S * gy_RKS
    scale_RKS = np.where(several_S, n_S * gg_RKS - g_RKS**2, 1)
    free = several_S & (a_RKS > 0) & (a_RKS <= highest * scale_RKS)
    free = free & (first_RKS * a_RKS <= aq_RKS) & (aq_RKS <= a_RKS)
    a_RKCS, q_RKCS = np.ones((2, *free.shape[:2], 3, len(log_P)))
    a_RKCS[:, :, 0], q_RKCS[:, :, 0] = np.clip(early_RKS, 0, highest), first_RKS
    a_RKCS[:, :, 1] = np.where(free, a_RKS / scale_RKS, 0)
    np.divide(aq_RKS, a_RKS, out=q_RKCS[:, :, 1], where=free)
    a_RKCS[:, :, 2] = highest * several_S
    q_RKCS[:, :, 2] = np.clip((g_RKS - gy_RKS / highest) / gg_RKS, first_RKS, 1)
    # What each adds to the sum of squares of staying at chance. Gains of rounding are none.
    y_RKS, gy_RKS, g_RKS, gg_RKS = (v[:, :, None] for v in (y_RKS, gy_RKS, g_RKS, gg_RKS))
    square_RKCS = a_RKCS * (n_S - q_RKCS * (2 * g_RKS - q_RKCS * gg_RKS))
    more_RKCS = a_RKCS * (square_RKCS - 2 * (y_RKS - q_RKCS * gy_RKS))
    more_RKCS[more_RKCS > -(_ROUNDING**2)] = 0
    best_RK = more_RKCS.reshape(*free.shape[:2], -1).argmin(axis=-1)
    stretch_RK = best_RK % len(log_P)
    row_R1, exponent_K = np.arange(len(y_RP))[:, None], np.arange(best_RK.shape[1])
    best = row_R1, exponent_K, best_RK // len(log_P), stretch_RK
    height_RK = a_RKCS[best]
    start_RK = end_S[stretch_RK] + np.log(q_RKCS[best]) / exponent_RK1[..., 0]
    law_RKP = height_RK[..., None] * _rise(log_P - start_RK[..., None], exponent_RK1)
    square_RK = ((law_RKP - y_RP[:, None]) ** 2).sum(axis=-1)
    return square_RK + _ALIKE * log_exponent_RK**2, square_RK, height_RK, start_RK


def _held_out(x_P: np.ndarray, every_RP: np.ndarray, chance: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the law and of a logistic curve at the last place, by row, (R,) each; NaN where there is no law before it."""
    earlier_P, earlier_RP = x_P[:-count], every_RP[:, :-count]
    law = fit(earlier_P, earlier_RP, chance)
    above_R = (earlier_P > law.start_R[:, None] * (1 + _ROUNDING)).sum(axis=1)
    error_R = np.where(above_R >= ABOVE, law.at(float(x_P[-1])) - every_RP[:, -1], np.nan)
    logistic = [fit_logistic(earlier_P, row_P, chance)(float(x_P[-1])) for row_P in earlier_RP]
    return error_R, np.array(logistic) - every_RP[:, -1]


def _not_better(error_HS: np.ndarray, logistic_HS: np.ndarray) -> str:
    """Why the law is not the better description by what it predicts, or empty."""
    if not error_HS.size or np.isnan(error_HS).any():
        return "too few points to predict others from"
    gain_S = (logistic_HS**2 - error_HS**2).mean(axis=0)
    seeds = len(gain_S)
    if seeds < 2:
        return "one seed does not tell a power law from a logistic curve"
    error = gain_S.std(ddof=1) / np.sqrt(seeds)
    p = float(stdtr(seeds - 1, -gain_S.mean() / error)) if error > 0 else float(gain_S.mean() <= 0)
    return "" if p < BETTER else "a logistic curve predicts it as well or better"


def _without_law(law: Fits, x_P: np.ndarray, above_chance: bool) -> str:
    """Why the points do not show a law at all, or empty."""
    if not above_chance:
        return "not above chance at the end"
    above = int((x_P > law.start_R[0] * (1 + _ROUNDING)).sum())  # a law may start at a place
    return f"{above} point{'' if above == 1 else 's'} after the take-off" if above < ABOVE else ""


def _without_asymptote(law: Fits, end: float) -> str:
    """Why the law says nothing of where the curve ends, or empty. ``end``: the last accuracy."""
    asymptote, low, high = _estimated(law.asymptote_R)
    if law.error_R[0] > RESIDUAL:
        return f"no power law: residual {100 * law.error_R[0]:.0f} points"
    if asymptote > 1 - 1e-6 and end < 1 - RESIDUAL:
        return "not bending yet: asymptote at its bound"
    if low is None or high is None:
        return "one seed: no interval"
    return f"asymptote anywhere from {100 * max(low, 0):.0f} to {100 * min(high, 1):.0f}%" if high - low > WIDEST else ""


def _estimated(value_R: np.ndarray, shown: Callable[[float], float] = float) -> Bounds:
    """Row 0, with the interval of Student's t that the rows of single seeds have about it."""
    found = of_seeds(value_R[1:])
    if found.low is None or found.high is None:
        return float(shown(value_R[0])), None, None
    half = (found.high - found.low) / 2
    low, high = (float(shown(value_R[0] + side * half)) for side in (-1, 1))
    return float(shown(value_R[0])), low, high
