"""What `tunalab evaluate` measured, compared between front-ends: means over seeds, and differences item by item.

Shapes: S seeds, I items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from tunalab.errors import UserError
from tunalab.evaluation.measure import KINDS, Measure
from tunalab.results.labels import ordered_variants
from tunalab.results.records import Record
from tunalab.results.statistics import item_interval

Key = tuple[str, str, str, str]  # kind, benchmark, split, metric


@dataclass(frozen=True)
class Side:
    """The measures of one kind of thing for one variant, a measure a seed in the order of ``seeds``."""

    seeds: tuple[int, ...]
    measures: tuple[Measure, ...]

    def items_of(self, seeds: Sequence[int]) -> np.ndarray | None:
        """Values (S, I) of these seeds; None where a measure has no items, or runs have different ones."""
        rows = [measure.items for seed, measure in zip(self.seeds, self.measures, strict=True) if seed in seeds]
        return np.array(rows, dtype=float) if rows[0] and len({len(row) for row in rows}) == 1 else None


def evaluated(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.evaluation]


def sides(records: Sequence[Record]) -> dict[Key, dict[str, Side]]:
    """Key -> variant -> its measures, keys by kind and then in the order in which they were measured.

    Raises UserError: two records are of the same variant and seed, or models were measured under different settings.
    """
    found: dict[Key, dict[str, dict[int, Measure]]] = {}
    settings: dict[str, tuple[str, object]] = {}
    for record in sorted(records, key=lambda record: record.run.seed):
        for result in record.evaluation:
            name, known = settings.setdefault(result.part, (record.run.name, result.settings))
            if known != result.settings:
                raise UserError(f"{result.part} of {name} and {record.run.name} was measured under different settings")
            for measure in result.measures:
                by_seed = found.setdefault(measure.key, {}).setdefault(record.run.variant, {})
                if record.run.seed in by_seed:
                    raise UserError(
                        f"two evaluated runs of {record.run.variant} with seed {record.run.seed}: give one folder of records each"
                    )
                by_seed[record.run.seed] = measure
    ordered = sorted(found, key=lambda key: KINDS.index(key[0]))
    return {
        key: {name: Side(tuple(found[key][name]), tuple(found[key][name].values())) for name in ordered_variants(found[key])}
        for key in ordered
    }


def means_table(compared: dict[Key, dict[str, Side]]) -> pd.DataFrame:
    """A row per measure and variant. ``low`` and ``high``: with several seeds a bootstrap over items and seeds, with one seed the
    interval of the measure itself; empty where there is none. ``n`` is the number of items of one seed.
    """
    rows = []
    for key, by_variant in compared.items():
        for variant, side in by_variant.items():
            first = side.measures[0]
            low, high = first.low, first.high
            items_SI = side.items_of(side.seeds)
            if len(side.seeds) > 1:
                low, high = (None, None) if items_SI is None else item_interval(items_SI)
            value = float(np.mean([measure.value for measure in side.measures]))
            failures = sum(measure.failures for measure in side.measures)
            rows.append(
                (*key, variant, value, low, high, first.n, len(side.seeds), first.chance, first.ceiling, failures, first.note)
            )
    names = ["value", "low", "high", "n", "seeds", "chance", "ceiling", "failures", "note"]
    return pd.DataFrame(rows, columns=["kind", "benchmark", "split", "metric", "variant", *names])


def differences_table(compared: dict[Key, dict[str, Side]]) -> pd.DataFrame:
    """A row per measure and two variants: ``a`` minus ``b`` over the seeds both have, paired by seed and item (same seeds see the
    same documents, all models the same items), with its 95% interval and whether that excludes zero.

    Measures without items (a distance between sets of images) have the difference of their values and no interval.
    """
    rows = []
    for key, by_variant in compared.items():
        for a, b in combinations(by_variant, 2):
            seeds = sorted(set(by_variant[a].seeds) & set(by_variant[b].seeds))
            if not seeds:
                continue
            values = [
                np.mean([measure.value for seed, measure in zip(side.seeds, side.measures, strict=True) if seed in seeds])
                for side in (by_variant[a], by_variant[b])
            ]
            low = high = None
            items = [by_variant[name].items_of(seeds) for name in (a, b)]
            if items[0] is not None and items[1] is not None and items[0].shape == items[1].shape:
                low, high = item_interval(items[0] - items[1])
            apart = low is not None and high is not None and (low > 0 or high < 0)
            rows.append((*key, a, b, float(values[0] - values[1]), low, high, len(seeds), apart))
    return pd.DataFrame(
        rows, columns=["kind", "benchmark", "split", "metric", "a", "b", "difference", "low", "high", "seeds", "apart"]
    )
