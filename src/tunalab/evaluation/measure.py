"""A measure: one number of an evaluation, with what it takes to believe it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict, Unpack

from tunalab.evaluation.score import wilson

KINDS = ("understanding", "generation", "diversity", "fidelity", "reconstruction", "editing", "attention", "judge")
SSIM_INSIDE = "SSIM over the windows inside the image"  # in the note of every SSIM, so that earlier ones are told from it
SSIM_WITH_BORDER = "SSIM with border, before 2026-11-29"
_BOOTSTRAP_SEED = 0  # an interval is part of a result: the same items give the same one
_EQUAL = 1e-9  # relative; resamples of items that differ in the last digits have equal means, and BCa no interval
_BOOTSTRAP_VALUES = 4_000_000  # held at a time: BCa leaves out every item once, of 10,000 items 100 million values in all


@dataclass(frozen=True)
class Measure:
    """``benchmark`` as it is called in tables (``relations@2``), ``split``: which items (``test``, ``composition``, ...).

    ``value`` over ``n`` items in the unit of its ``metric`` (shares between 0 and 1, never percent), ``low`` and ``high`` its 95%
    interval where there is one. ``chance`` and ``ceiling``: what guessing and perfect knowledge reach. ``failures``: items that
    could not be measured; they are in neither ``n`` nor ``value``. ``items``: the value of every item, in an order that is the
    same for every model, so that two models can be compared item by item. ``note``: what a reader must know, such as the network
    behind a distance.
    """

    kind: str
    benchmark: str
    metric: str
    value: float
    n: int
    split: str = ""
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    ceiling: float | None = None
    failures: int = 0
    note: str = ""
    items: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.benchmark} {self.metric}: {self.kind!r} is no kind of measure ({', '.join(KINDS)})")

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it measures: equal for the same measure of two models. SSIM that counted the border is another measure."""
        of_border = self.metric == "SSIM" and SSIM_INSIDE not in self.note
        return self.kind, self.benchmark, self.split, SSIM_WITH_BORDER if of_border else self.metric


class About(TypedDict, total=False):
    """What items do not tell of their measure; fields as in :class:`Measure`."""

    split: str
    chance: float | None
    ceiling: float | None
    failures: int
    note: str


def share(kind: str, benchmark: str, outcomes: Sequence[bool], *, metric: str = "accuracy", **about: Unpack[About]) -> Measure:
    """How many of the items are right, with Wilson's interval. Raises ValueError when there are none."""
    n, right = len(outcomes), sum(outcomes)
    low, high = wilson(right, n)
    items: list[float] = [int(one) for one in outcomes]
    return Measure(kind, benchmark, metric, right / n, n, low=low, high=high, items=items, **about)


def mean(kind: str, benchmark: str, values: Sequence[float], *, metric: str, **about: Unpack[About]) -> Measure:
    """The mean over items with its bootstrap interval (BCa of scipy; none where all items are as good as equal, or there is one).

    Raises ValueError when there is no item, or one that is not finite: such an item is a failure and must be counted as one.
    """
    import numpy as np  # here, not above: slow, and whoever looks which runs are finished needs none of it

    array = np.asarray(values, dtype=np.float64)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(
            f"{benchmark} {metric}: a mean needs finite values, got {len(array)} of which {np.isfinite(array).sum()} are"
        )
    low = high = None
    if len(array) > 1 and np.ptp(array) > _EQUAL * np.abs(array).max():
        from scipy.stats import bootstrap  # here, not above: slow, and whoever reads records needs none of it

        batch = max(1, _BOOTSTRAP_VALUES // len(array))
        found = bootstrap((array,), np.mean, n_resamples=2000, batch=batch, rng=np.random.default_rng(_BOOTSTRAP_SEED))
        low, high = (float(bound) for bound in found.confidence_interval)
    kept = [round(float(value), 6) for value in array]
    return Measure(kind, benchmark, metric, float(array.mean()), len(array), low=low, high=high, items=kept, **about)
