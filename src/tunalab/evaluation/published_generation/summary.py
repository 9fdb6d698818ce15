"""Measures of a benchmark whose items come in groups: one a group, and the mean over groups.

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
