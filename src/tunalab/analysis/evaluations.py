"""What `tunalab evaluate` measured, compared between front-ends: means over seeds, and differences item by item.

Shapes: S seeds, I items.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from tunalab.analysis.statistics import Scatter, joint_interval, scatter_of_contrasts, scatter_of_means
from tunalab.errors import UserError
from tunalab.evaluation.measure import KINDS, Measure
from tunalab.evaluation.parts import OF_PARSER, PARSER, PARSER_REVISION, PARSER_SINCE
from tunalab.evaluation.score import wilson
from tunalab.evaluation.whole import Evaluated
from tunalab.records.differences import OF_VARIANT, flat_settings, identity
from tunalab.records.labels import Legend
from tunalab.records.record import Record

TOLERANCE = 0.02  # of tokens: runs of different seeds end some documents apart
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


def earlier_parser(result: Evaluated) -> str:
    """What must be said of a result that an earlier parser of scenes judged; empty of others."""
    if result.part not in OF_PARSER or result.settings.get(PARSER, 1) == PARSER_REVISION:
        return ""
    return f"measured with the parser of scenes before {PARSER_SINCE}, which called more wrong images right"


def sides(records: Sequence[Record]) -> dict[Key, dict[str, Side]]:
    """Key -> variant -> its measures, keys by kind and then in the order in which they were measured.

    Raises UserError: two records are of the same variant and seed, seeds of a variant differ in more than the seed, or models were
    measured under different settings or at different numbers of tokens.
    """
    _check_comparable(records)
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
                by_seed[record.run.seed] = replace(measure, note="; ".join(filter(None, (measure.note, earlier_parser(result)))))
    legend = Legend(records)
    ordered = sorted(found, key=lambda key: KINDS.index(key[0]))
    return {
        key: {name: Side(tuple(found[key][name]), tuple(found[key][name].values())) for name in legend.ordered(found[key])}
        for key in ordered
    }


def _check_comparable(records: Sequence[Record]) -> None:
    """What a comparison may not mix. Raises UserError naming two runs."""
    first = records[0]
    of_variant: dict[str, Record] = {}
    for record in records:
        other = of_variant.setdefault(record.run.variant, record)
        if identity(other) != identity(record):
            raise UserError(
                f"{other.run.name} and {record.run.name} are evaluated and differ in more than the seed: compare one at a time"
            )
        tokens, known = ({result.origin.get("tokens") for result in one.evaluation} for one in (record, first))
        most, least = max(map(_number, tokens | known)), min(map(_number, tokens | known))
        if most > least * (1 + TOLERANCE):
            raise UserError(
                f"{first.run.name} and {record.run.name} were evaluated at {least:,} and {most:,} tokens: no fair comparison"
            )
        weights = {result.origin.get("weights") for one in (record, first) for result in one.evaluation}
        if len(weights) > 1:
            raise UserError(
                f"{first.run.name} and {record.run.name} were evaluated with {' and '.join(sorted(map(str, weights)))} weights"
            )


def _number(tokens: object) -> int:
    return tokens if isinstance(tokens, int) else 0


def unequal_settings(records: Sequence[Record]) -> list[str]:
    """Keys of the configuration, front-end and components aside, in which variants differ: to be told beside every comparison."""
    settings = {record.run.variant: flat_settings(record) for record in records}
    known = dict.fromkeys(key for flat in settings.values() for key in flat)
    shared = [key for key in known if not key.startswith(OF_VARIANT)]
    return [key for key in shared if len({json.dumps(flat.get(key)) for flat in settings.values()}) > 1]


def scatter_among(measured: Sequence[Mapping[str, Side]]) -> Scatter | None:
    """Between the seeds that all variants have, of the mean of one or several measures."""
    variants = sorted(set.intersection(*map(set, measured)))
    values = [[dict(zip(side[name].seeds, side[name].measures, strict=True)) for name in variants] for side in measured]
    seeds = sorted(set.intersection(*(set(by_seed) for one in values for by_seed in one))) if variants else []
    if not seeds:
        return None
    value_KCS = [[[by_seed[seed].value for seed in seeds] for by_seed in one] for one in values]
    return scatter_of_contrasts(np.mean(value_KCS, axis=0))


def means_table(compared: dict[Key, dict[str, Side]]) -> pd.DataFrame:
    """A row per measure and variant. ``n`` is the number of items of one seed.

    ``low`` and ``high``: with several seeds from a bootstrap over items and the scatter between the seeds of all variants, for
    shares never within Wilson's interval of one seed's items (seeds share them, and items that are all right do not scatter);
    with one seed the interval of the measure itself; empty where there is none.
    """
    rows = []
    for key, by_variant in compared.items():
        scatter = scatter_of_means([np.array([measure.value for measure in side.measures]) for side in by_variant.values()])
        for variant, side in by_variant.items():
            first = side.measures[0]
            low, high = first.low, first.high
            items_SI = side.items_of(side.seeds)
            if len(side.seeds) > 1:
                low, high = (None, None) if items_SI is None else _interval(items_SI, scatter, certain=first.low is None)
            value = float(np.mean([measure.value for measure in side.measures]))
            failures = sum(measure.failures for measure in side.measures)
            rows.append(
                (*key, variant, value, low, high, first.n, len(side.seeds), first.chance, first.ceiling, failures, first.note)
            )
    names = ["value", "low", "high", "n", "seeds", "chance", "ceiling", "failures", "note"]
    return pd.DataFrame(rows, columns=["kind", "benchmark", "split", "metric", "variant", *names])


def _interval(items_SI: np.ndarray, scatter: Scatter | None, certain: bool) -> tuple[float, float]:
    """``certain``: one seed's measure has no interval, so that items which do not scatter are what they are, and no shares."""
    low, high = joint_interval([items_SI], scatter, 1.0)
    if not ((items_SI >= 0) & (items_SI <= 1)).all():
        return low, high
    if not certain and np.isin(items_SI, (0, 1)).all():
        share, n = float(items_SI.mean()), items_SI.shape[1]
        wilson_low, wilson_high = wilson(round(share * n), n)
        low, high = min(low, wilson_low), max(high, wilson_high)
    return float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))


def differences_table(compared: dict[Key, dict[str, Side]]) -> pd.DataFrame:
    """A row per measure and two variants: ``a`` minus ``b`` over the seeds both have, paired by seed and item (same seeds see the
    same documents, all models the same items), with its 95% interval and whether that excludes zero. How runs scatter between
    seeds is estimated from all variants.

    Measures without items (a distance between sets of images) have the difference of their values and no interval.
    """
    rows = []
    for key, by_variant in compared.items():
        scatter = scatter_among([by_variant])
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
                own = scatter or scatter_among([{name: by_variant[name] for name in (a, b)}])
                low, high = joint_interval([items[0] - items[1]], own, 2.0)
            apart = low is not None and high is not None and (low > 0 or high < 0)
            rows.append((*key, a, b, float(values[0] - values[1]), low, high, len(seeds), apart))
    return pd.DataFrame(
        rows, columns=["kind", "benchmark", "split", "metric", "a", "b", "difference", "low", "high", "seeds", "apart"]
    )
