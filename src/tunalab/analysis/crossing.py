"""Where one learning curve passes another for good.

The difference of two mean curves, straight lines over log x between their places, is followed to its end. Its last sign is the
leader's. The crossing is where that sign was taken over from the other: the last change of sign, earlier ones are counted. A
difference of zero has no sign: who led before a tie leads through it, and a change of sign across a stretch of ties lies in its
middle.

Its confidence set: where the two truly cross, the difference is zero, so that places at which the 95% interval of the difference
excludes zero are no such places. The set reaches from the last place before the crossing at which the other leads for certain to
the first place behind it at which the leader does. Where there is none it is open on that side. A lead counts
only where both curves are above chance for certain: below, one that has not begun to learn is compared with luck.

    S  seeds    G  places
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import inf, isfinite, isinf

import numpy as np

from tunalab.analysis.curves import Axis, Line
from tunalab.analysis.learning import Curve, OnGrid, on_grid
from tunalab.analysis.statistics import Estimate, share_interval

_TIE = 1e-9  # accuracies are whole numbers of answers: less than this is rounding


@dataclass(frozen=True)
class Crossing:
    """Who leads two curves at the end, and since when.

    ``leader`` is ahead at the end of the mean curves (level there: was ahead last), ``other`` is the second; the order is that of
    the variants where they are level throughout. ``at``: the crossing, None where the leader leads throughout; ``changes`` of
    sign in all. ``low`` and ``high``: the confidence set, -inf and inf where it is open. ``end``: the leader's lead at the last
    place. ``level``: the curves are level throughout.
    """

    benchmark: str
    leader: Line
    other: Line
    at: float | None
    low: float
    high: float
    end: Estimate
    changes: int
    level: bool
    first: float
    last: float

    @property
    def clear(self) -> bool:
        """Whether both leads are certain; other crossings may be two curves that touch by chance."""
        return self.at is not None and isfinite(self.low) and isfinite(self.high)


def last_change(gap_G: np.ndarray, x_G: np.ndarray) -> tuple[int, float | None, int]:
    """The sign at the end (0: level throughout), the place of the last change of sign (None: none), and how many there are."""
    sign_G = np.sign(np.where(np.abs(gap_G) < _TIE, 0, gap_G)).astype(int)
    signed = np.flatnonzero(sign_G)
    if not len(signed):
        return 0, None, 0
    changes = [(left, right) for left, right in pairwise(signed) if sign_G[left] != sign_G[right]]
    sign = int(sign_G[signed[-1]])
    if not changes:
        return sign, None, 0
    left, right = changes[-1]
    log_G = np.log(x_G)
    if right - left > 1:
        place = (log_G[left + 1] + log_G[right - 1]) / 2
    else:
        place = log_G[left] + abs(gap_G[left]) / (abs(gap_G[left]) + abs(gap_G[right])) * (log_G[right] - log_G[left])
    return sign, float(np.exp(place)), len(changes)


def crossing(a: Curve, b: Curve, axis: Axis) -> Crossing | None:
    """None where the two have no common seed, or no common stretch of the axis."""
    found = on_grid([a, b], axis)
    if not found:
        return None
    gap = found[0].less(found[1])
    x_G = gap.x_G
    sign, at, changes = last_change(gap.value_SG.mean(axis=0), x_G)
    leads = [gap.weighted(one_G, a.n) for one_G in np.eye(len(x_G))]
    certain_G = np.array([_certain(lead) * (sign or 1) for lead in leads]) * _above_chance(found, (a, b))
    place = -inf if at is None else at
    before, behind = (x_G < place) & (certain_G < 0), (x_G >= place) & (certain_G > 0)
    leader, other = (a, b) if sign >= 0 else (b, a)
    end = leads[-1] if sign >= 0 else found[1].less(found[0]).weighted(np.eye(len(x_G))[-1], a.n)
    return Crossing(
        a.benchmark,
        leader.line,
        other.line,
        at,
        float(x_G[before][-1]) if before.any() else -inf,
        float(x_G[behind][0]) if behind.any() else inf,
        end,
        changes,
        sign == 0,
        float(x_G[0]),
        float(x_G[-1]),
    )


def _certain(lead: Estimate) -> int:
    return 0 if not lead.excludes_zero else 1 if lead.value > 0 else -1


def _above_chance(found: Sequence[OnGrid], curves: Sequence[Curve]) -> np.ndarray:
    """Places at which both are, by the lower ends of their intervals, (G,) bool."""
    above = [
        [share_interval(value_S, curve.n)[0] > curve.chance for value_S in one.value_SG.T]
        for one, curve in zip(found, curves, strict=True)
    ]
    return np.logical_and(*np.array(above))


def crossings(curves: Sequence[Curve], axis: Axis) -> list[Crossing]:
    """Of every two variants at the same setting."""
    found = (crossing(a, b, axis) for a, b in pairs(curves))
    return [one for one in found if one is not None]


def pairs(curves: Sequence[Curve]) -> Iterable[tuple[Curve, Curve]]:
    return ((a, b) for a, b in combinations(curves, 2) if a.line.setting == b.line.setting and a.line.variant != b.line.variant)


def passing(crossing: Crossing, axis: Axis) -> str:
    """``3.1M [2.2M, 4.5M]``, with ``<`` or ``>`` where the set is open; ``none up to 9M`` without a crossing."""
    if crossing.at is None:
        return f"none up to {axis.text(crossing.last)}"
    ends = {-inf: f"< {axis.text(crossing.first)}", inf: f"> {axis.text(crossing.last)}"}
    low, high = (ends[bound] if isinf(bound) else axis.text(bound) for bound in (crossing.low, crossing.high))
    return f"{axis.text(crossing.at)} [{low}, {high}]"
