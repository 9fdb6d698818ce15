"""Measures of a benchmark whose items come in groups, and of one that asks several questions an item.

Shapes: R resamples, I items of a group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure, mean

RESAMPLES = 2000
SEED = 0  # an interval is part of a result: the same items give the same one
KIND = "generation"


def item_measure(benchmark: str, metric: str, values: Sequence[float | None], failures: int, note: str) -> Measure:
    """The mean over items. None: of an item no image can be read; then items cannot be paired with another model's.

    ``failures`` counts images. Raises UserError when no item has a value.
    """
    known = [value for value in values if value is not None]
    if not known:
        raise UserError(f"{benchmark} {metric}: none of {failures} images can be read")
    counted = f"{note}; failures are images that cannot be read" if failures else note
    measure = mean(KIND, benchmark, known, metric=metric, failures=failures, note=counted)
    return measure if len(known) == len(values) else replace(measure, items=[])


def pooled_measure(benchmark: str, metric: str, counts: Sequence[tuple[int, int] | None], note: str) -> Measure:
    """The share of right answers over all questions. ``counts``: of every item how many are right, and of how many.

    None: of an item whose image cannot be read. The interval resamples items, as questions of one image are not independent.
    The items are weighted, so that their mean is the value. Raises ValueError when no question is left.
    """
    known_I2 = np.array([one for one in counts if one is not None], dtype=np.int64).reshape(-1, 2)
    right, total = known_I2.sum(axis=0).tolist()
    if not total:
        raise ValueError(f"{benchmark} {metric}: no question is left")
    drawn_RI = np.random.default_rng(SEED).integers(len(known_I2), size=(RESAMPLES, len(known_I2)))
    right_R, of_R = known_I2[drawn_RI].sum(axis=1).T
    low, high = (float(bound) for bound in np.quantile(right_R / np.maximum(of_R, 1), [0.025, 0.975]))
    failures = counts.count(None)
    return Measure(
        KIND,
        benchmark,
        metric,
        right / total,
        len(known_I2),
        low=low if low < high else None,
        high=high if low < high else None,
        failures=failures,
        note=f"{note}; {total} questions pooled" + ("; failures are images that cannot be read" if failures else ""),
        items=[] if failures else [round(one * len(known_I2) / total, 6) for one in known_I2[:, 0].tolist()],
    )


def group_measures(
    benchmark: str, groups: Mapping[str, Sequence[float | None]], failures: Mapping[str, int], note: str
) -> list[Measure]:
    """``overall``, every group counting the same, then a measure a group that has items.

    The interval of ``overall`` resamples the items of every group by themselves. Its items are weighted, so that their mean is its
    value. Raises UserError when of a group no item has a value.
    """
    parts = [item_measure(benchmark, name, values, failures[name], note) for name, values in groups.items() if values]
    known = [np.array([value for value in values if value is not None]) for values in groups.values() if values]
    total = sum(map(len, known))
    random = np.random.default_rng(SEED)
    means_R = np.mean(
        [values_I[random.integers(len(values_I), size=(RESAMPLES, len(values_I)))].mean(axis=1) for values_I in known], axis=0
    )
    low, high = (float(bound) for bound in np.quantile(means_R, [0.025, 0.975]))
    weighted = [round(float(value) * total / (len(known) * len(values_I)), 6) for values_I in known for value in values_I]
    overall = Measure(
        KIND,
        benchmark,
        "overall",
        float(np.mean([values_I.mean() for values_I in known])),
        total,
        low=low if low < high else None,
        high=high if low < high else None,
        failures=sum(part.failures for part in parts),
        note=f"{parts[0].note}; overall is the mean over {len(parts)} tags",
        items=weighted if all(part.items for part in parts) else [],
    )
    return [overall, *parts]
