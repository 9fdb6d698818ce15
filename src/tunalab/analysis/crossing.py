"""Where one learning curve passes another for good.

The difference of two mean curves, straight lines over log x between their places, is followed to its end. Its last sign is the
leader's. The crossing is where that sign was taken over from the other: the last change of sign, earlier ones are counted. A
difference of zero has no sign: who led before a tie leads through it, and a change of sign across a stretch of ties lies in its
middle. Every resample has a crossing too, or passes on one of two sides: before the first place (the leader leads throughout) or
after the last (the other is still ahead at the end). Those count as earlier and later than all places in the interval's quantiles,
so that none is dropped, and an interval that reaches them is open on that side.

    R  resamples    G  places
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf, isfinite, isinf

import numpy as np

from tunalab.analysis.curves import Axis, Line
from tunalab.analysis.resampling import BOUNDS, Curve, Draws, mean_curves

_TIE = 1e-9  # accuracies are whole numbers of answers: less than this is rounding


@dataclass(frozen=True)
class Crossing:
    """Who leads two curves at the end, and since when.

    ``leader`` is ahead at the end of the mean curves (level there: was ahead last), ``other`` is the second; the order is that of
    the variants where they are level throughout. ``at``: the crossing, None where the leader leads throughout; ``changes`` of
    sign in all. ``low`` and ``high``: 95% of the resamples pass between them, -inf before ``first``, inf after ``last``; None if
    all are level.

    Shares of the resamples: the leader leads throughout (``before``), passes inside (``within``), is behind at the end
    (``after``), both are level throughout (the rest). ``ahead`` and ``behind``: who is ahead at the very end, ties left out.
    ``clear``: the interval is closed (a leader who is behind at the end of more than 2.5% of the resamples has not passed), and at
    some place the other's lead, at a later one the leader's, is outside a band that holds the whole difference curve in 95% of
    resamples. Any other crossing may be two curves that touch by chance.
    """

    benchmark: str
    leader: Line
    other: Line
    at: float | None
    low: float | None
    high: float | None
    before: float
    within: float
    after: float
    ahead: float
    behind: float
    changes: int
    clear: bool
    first: float
    last: float
    seeds: int
    n: int
    by_item: bool


@dataclass(frozen=True)
class Changes:
    """The last change of sign of each curve: ``sign_R`` that it leads to (0: level throughout), ``place_R`` over log x (-inf:
    none), and ``count_R`` of all changes.
    """

    sign_R: np.ndarray
    place_R: np.ndarray
    count_R: np.ndarray


def last_changes(gap_RG: np.ndarray, x_G: np.ndarray) -> Changes:
    log_G, places = np.log(x_G), np.arange(len(x_G))
    sign_RG = np.sign(np.where(np.abs(gap_RG) < _TIE, 0, gap_RG)).astype(np.int8)
    signed_RG = np.maximum.accumulate(np.where(sign_RG != 0, places, 0), axis=1)  # the last place with a sign, up to each
    kept_RG = np.take_along_axis(sign_RG, signed_RG, axis=1)  # ties keep the sign before them
    sign_R = kept_RG[:, -1]
    count_R = (kept_RG[:, 1:] * kept_RG[:, :-1] < 0).sum(axis=1)
    # Of the other sign for the last time at `left`, of the last sign for the first time after it at `right`; ties between.
    left_R = np.where(sign_RG == -sign_R[:, None], places, -1).max(axis=1)
    left_R[sign_R == 0] = -1
    right_R = np.where((sign_RG == sign_R[:, None]) & (places > left_R[:, None]), places, len(x_G) - 1).min(axis=1)
    safe_R = np.maximum(left_R, 0)
    gap_left_R, gap_right_R = (np.abs(np.take_along_axis(gap_RG, at_R[:, None], axis=1)[:, 0]) for at_R in (safe_R, right_R))
    total_R = gap_left_R + gap_right_R
    share_R = np.divide(gap_left_R, total_R, out=np.full(len(gap_RG), 0.5), where=total_R > 0)
    straight_R = log_G[safe_R] + share_R * (log_G[right_R] - log_G[safe_R])
    inner = len(x_G) - 1
    middle_R = (log_G[np.minimum(safe_R + 1, inner)] + log_G[np.maximum(right_R - 1, 0)]) / 2
    place_R = np.where(right_R - left_R > 1, middle_R, straight_R)
    return Changes(sign_R, np.where(left_R >= 0, place_R, -inf), count_R)


def crossing(a: Curve, b: Curve, axis: Axis, draws: Draws) -> Crossing | None:
    """None where the two have no common seed, or no common stretch of the axis."""
    means = mean_curves([a, b], axis, draws)
    if not means:
        return None
    first, second = means
    gap_G, gap_RG = first.mean_G - second.mean_G, first.resampled_RG - second.resampled_RG
    here, drawn = last_changes(gap_G[None], first.x_G), last_changes(gap_RG, first.x_G)
    sign, place = (int(here.sign_R[0]) or 1), float(here.place_R[0])
    low = high = None
    signed_R = drawn.sign_R != 0
    if signed_R.any():
        passed_R = np.where(drawn.sign_R == sign, drawn.place_R, inf)[signed_R]
        low, high = (_back(float(bound)) for bound in np.quantile(passed_R, BOUNDS, method="inverted_cdf"))
    leads_R = drawn.sign_R == sign
    within = float((leads_R & np.isfinite(drawn.place_R)).mean())
    end_R = np.where(np.abs(gap_RG[:, -1]) < _TIE, 0, gap_RG[:, -1]) * sign
    leader, other = (a.line, b.line) if sign > 0 else (b.line, a.line)
    return Crossing(
        a.benchmark,
        leader,
        other,
        None if isinf(place) else float(np.exp(place)),
        low,
        high,
        float(leads_R.mean()) - within,
        within,
        float((drawn.sign_R == -sign).mean()),
        float((end_R > 0).mean()),
        float((end_R < 0).mean()),
        int(here.count_R[0]),
        low is not None
        and high is not None
        and isfinite(high - low)
        and _clear(gap_G * sign, gap_RG * sign, np.log(first.x_G) < place),
        float(first.x_G[0]),
        float(first.x_G[-1]),
        first.seeds,
        (a if sign > 0 else b).n,
        a.by_item,
    )


def crossings(curves: Sequence[Curve], axis: Axis, draws: Draws) -> list[Crossing]:
    """Of every two variants at the same setting."""
    found = (crossing(a, b, axis, draws) for a, b in pairs(curves))
    return [one for one in found if one is not None]


def pairs(curves: Sequence[Curve]) -> Iterable[tuple[Curve, Curve]]:
    return ((a, b) for a, b in combinations(curves, 2) if a.line.setting == b.line.setting and a.line.variant != b.line.variant)


def passing(crossing: Crossing, axis: Axis) -> str:
    """``3.1M [2.2M, 4.5M]``, with ``<`` or ``>`` where an interval is open; ``none up to 9M`` without a crossing."""
    if crossing.at is None:
        return f"none up to {axis.text(crossing.last)}"
    ends = {-inf: f"< {axis.text(crossing.first)}", inf: f"> {axis.text(crossing.last)}"}
    bounds = [ends.get(bound) or axis.text(bound) for bound in (crossing.low, crossing.high) if bound is not None]
    return f"{axis.text(crossing.at)} " + (f"[{', '.join(bounds)}]" if bounds else "")


def _back(log_x: float) -> float:
    return log_x if isinf(log_x) else float(np.exp(log_x))


def _clear(gap_G: np.ndarray, gap_RG: np.ndarray, before_G: np.ndarray) -> bool:
    """Whether the gap is below zero before the crossing and above zero after it, outside a band for all places at once."""
    error_G = gap_RG.std(axis=0)
    spread_RG = np.divide(np.abs(gap_RG - gap_G), error_G, out=np.zeros_like(gap_RG), where=error_G > _TIE)
    width = float(np.quantile(spread_RG.max(axis=1), 0.95))
    clear_G = np.where(np.abs(gap_G) > np.maximum(width * error_G, _TIE), np.sign(gap_G), 0)
    return bool((clear_G[before_G] < 0).any() and (clear_G[~before_G] > 0).any())
