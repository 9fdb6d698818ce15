"""What `tunalab evaluate` measured, compared between front-ends: means over seeds, differences item by item, and their tables.

Published numbers are of models thousands of times larger, on the published benchmarks themselves. They stand beside ours, never
in one mean, difference or cell with them.

Shapes: S seeds, I items.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from tunalab.analysis.curves import TOLERANCE
from tunalab.analysis.statistics import ALPHA, benjamini_hochberg, of_items, share_interval
from tunalab.analysis.written import markdown_table, with_interval, write_tables_to
from tunalab.data.scenes.vocabulary import BENCHMARKS as SCENES
from tunalab.errors import UserError
from tunalab.evaluation.measure import KINDS, Measure
from tunalab.evaluation.parts import OF_PARSER, PARSER, PARSER_REVISION, PARSER_SINCE
from tunalab.evaluation.published import BENCHMARKS as PUBLISHED
from tunalab.evaluation.published import RULED, RULES, metric
from tunalab.evaluation.whole import Evaluated
from tunalab.records.labels import Legend, compared, front_end_keys, identity
from tunalab.records.record import Record
from tunalab.settings.layers import own_or_shipped

Key = tuple[str, str, str, str]  # kind, benchmark, split, metric
Side = dict[int, Measure]  # of one variant, by seed
KEY = ["kind", "benchmark", "split", "metric"]


def items_of(side: Side, seeds: Sequence[int]) -> np.ndarray | None:
    """Values (S, I) of these seeds; None where a measure has no items, or runs have different ones."""
    rows = [side[seed].items for seed in side if seed in seeds]
    return np.array(rows, dtype=float) if rows[0] and len({len(row) for row in rows}) == 1 else None


def evaluated(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.evaluation]


def earlier_parser(result: Evaluated) -> str:
    """What must be said of a result that an earlier parser of scenes judged; empty of others."""
    if result.part not in OF_PARSER or result.settings.get(PARSER, 1) == PARSER_REVISION:
        return ""
    return f"measured with the parser of scenes before {PARSER_SINCE}, which called more wrong images right"


def sides(records: Sequence[Record]) -> dict[Key, dict[str, Side]]:
    """Key -> variant -> its measures by seed; keys by kind and then in the order in which they were measured.

    Raises UserError: two records are of the same variant and seed, seeds of a variant differ in more than the seed, or models were
    measured under different settings or at different numbers of tokens.
    """
    _check_comparable(records)
    compared: dict[Key, dict[str, Side]] = {}
    settings: dict[str, tuple[str, object]] = {}
    for record in sorted(records, key=lambda record: record.run.seed):
        variant, seed = record.run.variant, record.run.seed
        for result in record.evaluation:
            name, earlier = settings.setdefault(result.part, (record.run.name, result.settings))
            if earlier != result.settings:
                raise UserError(f"{result.part} of {name} and {record.run.name} was measured under different settings")
            for measure in result.measures:
                side = compared.setdefault(measure.key, {}).setdefault(variant, {})
                if seed in side:
                    raise UserError(f"two evaluated runs of {variant} with seed {seed}: give one folder of records each")
                side[seed] = replace(measure, note="; ".join(filter(None, (measure.note, earlier_parser(result)))))
    legend = Legend(records)
    keys = sorted(compared, key=lambda key: KINDS.index(key[0]))
    return {key: {name: compared[key][name] for name in legend.ordered(compared[key])} for key in keys}


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
        origins = [result.origin for one in (record, first) for result in one.evaluation]
        tokens = [count if isinstance(count := origin.get("tokens"), int) else 0 for origin in origins]
        least, most = min(tokens), max(tokens)
        if most > least * (1 + TOLERANCE):
            raise UserError(
                f"{first.run.name} and {record.run.name} were evaluated at {least:,} and {most:,} tokens: no fair comparison"
            )
        weights = {origin.get("weights") for origin in origins}
        if len(weights) > 1:
            raise UserError(
                f"{first.run.name} and {record.run.name} were evaluated with {' and '.join(sorted(map(str, weights)))} weights"
            )


def unequal_settings(records: Sequence[Record]) -> list[str]:
    """Keys of the configuration, front-end and components aside, in which variants differ: shown beside every comparison."""
    settings = {record.run.variant: flat for record, flat in zip(records, compared(records), strict=True)}
    own = front_end_keys(settings.values())
    keys = dict.fromkeys(key for flat in settings.values() for key in flat if key not in own)
    return [key for key in keys if len({json.dumps(flat.get(key)) for flat in settings.values()}) > 1]


def means_table(compared: dict[Key, dict[str, Side]]) -> pd.DataFrame:
    """A row per measure and variant. ``n`` is the number of items of one seed.

    ``low`` and ``high``: with several seeds Student's t over them and the error over items, for shares with Wilson's interval of
    one seed's items (statistics.share_interval); with one seed the interval of the measure itself; empty where there is none.
    """
    rows = []
    for key, by_variant in compared.items():
        for variant, side in by_variant.items():
            first = next(iter(side.values()))
            low, high = first.low, first.high
            if len(side) > 1:
                items_SI = items_of(side, list(side))
                low, high = (None, None) if items_SI is None else _interval(items_SI, certain=first.low is None)
            value = float(np.mean([measure.value for measure in side.values()]))
            failures = sum(measure.failures for measure in side.values())
            rows.append((*key, variant, value, low, high, first.n, len(side), first.chance, first.ceiling, failures, first.note))
    names = ["value", "low", "high", "n", "seeds", "chance", "ceiling", "failures", "note"]
    return pd.DataFrame(rows, columns=["kind", "benchmark", "split", "metric", "variant", *names])


def _interval(items_SI: np.ndarray, certain: bool) -> tuple[float | None, float | None]:
    """``certain``: one seed's measure has no interval, so that items which do not scatter are what they are, and no shares."""
    if not certain and np.isin(items_SI, (0, 1)).all():
        return share_interval(items_SI.mean(axis=1), items_SI.shape[1])
    found = of_items([items_SI], shares=False)
    within = ((items_SI >= 0) & (items_SI <= 1)).all() and found.low is not None and found.high is not None
    return (max(0.0, found.low), min(1.0, found.high)) if within else (found.low, found.high)  # type: ignore[type-var]


def differences_table(compared: dict[Key, dict[str, Side]]) -> pd.DataFrame:
    """A row per measure and two variants: ``a`` minus ``b`` over the seeds both have, paired by seed and item (same seeds see the
    same documents, all models the same items), with its 95% interval. ``q``: its p-value after Benjamini and Hochberg's correction
    for all rows; ``apart``: below .05.

    Measures without items (a distance between sets of images) have the difference of their values and no interval.
    """
    rows = []
    for key, by_variant in compared.items():
        for a, b in combinations(by_variant, 2):
            pair = {name: by_variant[name] for name in (a, b)}
            seeds = sorted(pair[a].keys() & pair[b].keys())
            if not seeds:
                continue
            first, second = (np.mean([side[seed].value for seed in seeds]) for side in pair.values())
            gap_SI = item_gaps(pair, a, b)
            found: tuple[float | None, ...] = (None, None, None)
            if gap_SI is not None:
                one = of_items([gap_SI], shares=in_shares(gap_SI))
                found = (one.low, one.high, one.p)
            rows.append((*key, a, b, float(first - second), *found, len(seeds)))
    table = pd.DataFrame(rows, columns=[*KEY, "a", "b", "difference", "low", "high", "p", "seeds"])
    table = table.astype(dict.fromkeys(("low", "high", "p"), float))
    table["q"] = pd.Series(benjamini_hochberg(table["p"].tolist()), dtype=float)
    return table.assign(apart=table["q"] < ALPHA)


def in_shares(gap_SI: np.ndarray) -> bool:
    """Whether the values are differences of right and wrong."""
    return bool(np.isin(gap_SI, (-1, 0, 1)).all())


def item_gaps(by_variant: Mapping[str, Side], more: str, less: str) -> np.ndarray | None:
    """Differences (S, I) over the seeds that both have; None where it was not measured, or not item by item."""
    if not {more, less} <= by_variant.keys():
        return None
    seeds = sorted(by_variant[more].keys() & by_variant[less].keys())
    first, second = (items_of(by_variant[name], seeds) if seeds else None for name in (more, less))
    return None if first is None or second is None or first.shape != second.shape else first - second


PAPER: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8"))
PAPERS: dict[str, str] = PAPER["published"]  # model of published.csv -> its spelling
COLUMNS = ["kind", "benchmark", "metric", "model", "value", "setting", "source"]
MAIN_SETTING = "7B"  # the comparison of the paper's main tables; others are ablations

GENEVAL = ("overall", "single_object", "two_object", "counting", "colors", "position", "color_attr")  # categories, as it calls them

# Kind -> (benchmark, metric) of ours -> (benchmark, metric) of the published one whose skill it isolates. Of scenes the skill is
# the same, and the published benchmarks themselves stand beside themselves.
Result = tuple[str, str]
SELF = {benchmark.title: benchmark.title for benchmark in PUBLISHED.values()}
COUNTERPARTS: dict[str, dict[Result, Result]] = {
    "understanding": {(ours, "accuracy"): (theirs, "accuracy") for ours, theirs in (SCENES | SELF).items()}
    | {(title, metric(rules)): (title, "accuracy") for title in (PUBLISHED[task].title for task in RULED) for rules in RULES},
    "generation": {(ours, metric): ("GenEval", metric) for ours in ("scene prompts", "GenEval") for metric in GENEVAL}
    | {(ours, "overall"): ("DPG-Bench", "overall") for ours in ("dense prompts", "DPG-Bench, official rule")},
    "reconstruction": {
        (ours, metric): ("ImageNet val 512 px", metric) for ours in ("scenes", "photographs") for metric in ("PSNR", "SSIM", "rFID")
    },
}
SPLITS = ("", "test")  # of ours that have a counterpart


def published_file() -> Path:
    """The user's own in the working directory, else the shipped one."""
    return own_or_shipped("results/published.csv") or Path("results/published.csv")


def read_published(path: Path) -> pd.DataFrame:
    """Columns as ``COLUMNS``, ``value`` a float. Raises UserError: the file is missing or not of this form."""
    try:
        table = pd.read_csv(path, comment="#", keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: published results cannot be read: {error}") from error
    if list(table.columns) != COLUMNS:
        raise UserError(f"{path}: columns are {', '.join(table.columns)}, not {', '.join(COLUMNS)}")
    wrong = table[pd.to_numeric(table["value"], errors="coerce").isna()]
    if len(wrong):
        raise UserError(f"{path}: value {wrong['value'].iloc[0]!r} of {wrong['benchmark'].iloc[0]} is no number")
    table["value"] = table["value"].astype(float)
    return table


def counterpart(kind: str, benchmark: str, split: str, metric: str) -> Result | None:
    """(benchmark, metric) of the published result that stands beside a measure; None where there is none."""
    return COUNTERPARTS.get(kind, {}).get((benchmark, metric)) if split in SPLITS else None


NOTE = """\
Measured here: mean over {seeds} with its 95% interval, over items and, with several seeds, over seeds; n counts the
items of one seed (f: how many more could not be measured). Shares lie between 0 and 1. Bold, where more is better: ahead of
every other front-end by a difference, paired by seed and item, after Benjamini and Hochberg's correction for the rows of
`differences.csv`. Settings in which the runs differ besides the front-end: {unequal}. Published numbers are those of 7B
models on the published benchmarks, from `results/published.csv`: beside ours only their order can be compared. Chance of
understanding: the best of four guesses that never look at the image (`results/verification/chance.md`)."""
# A larger distance between images, or more attention, is not better by itself.
HIGHER_IS_BETTER = ("understanding", "generation", "editing", "judge")
BRIEF, ALL = ("attention",), "all"  # kinds of which the Markdown shows one benchmark
NO_DIRECTION = ("accuracy without image", "residual of right images", "rejected by residual")


def write_evaluation_tables(records: Sequence[Record], published: Path, folder: Path, command: str) -> list[Path]:
    """Write ``evaluation.md``, ``evaluation.csv`` and ``differences.csv``; nothing where no run was evaluated.

    Raises UserError: runs cannot be compared (see ``sides``), or the published results cannot be read.
    """
    if not (measured := evaluated(records)):
        return []
    compared, unequal = sides(measured), unequal_settings(measured)
    means, differences = means_table(compared), differences_table(compared)
    text = evaluation_markdown(means, differences, read_published(published), Legend(records), unequal)
    tables: dict[str, str | pd.DataFrame] = {"evaluation.md": text, "evaluation.csv": means, "differences.csv": differences}
    return write_tables_to(folder, command, tables)


def evaluation_markdown(
    means: pd.DataFrame,
    differences: pd.DataFrame,
    published: pd.DataFrame,
    legend: Legend,
    unequal: Sequence[str] = (),
) -> str:
    """A section a kind; columns: the variants as measured here, then the published result of the paper's variants.

    Published benchmarks without a measure of ours have rows of their own: what is not measured should show.
    """
    variants = legend.ordered(means["variant"])
    main = published[published["setting"] == MAIN_SETTING]
    kinds = list(dict.fromkeys([*means["kind"], *main["kind"]]))
    head = ["benchmark", *(legend.label(name) for name in variants), "chance", "ceiling", "n"]
    head += ["published benchmark", *(f"{name}, published" for name in PAPERS.values())]
    text, leaders = [], _leaders(differences)
    for kind in kinds:
        of_kind = means[means["kind"] == kind]
        brief = of_kind[of_kind["benchmark"] == ALL] if kind in BRIEF else of_kind
        rows, counterparts = [], set()
        for key, part in brief.groupby(KEY, sort=False):
            theirs = counterpart(*map(str, key))
            counterparts.add(theirs)
            ahead = leaders.get(key) if kind in HIGHER_IS_BETTER and key[-1] not in NO_DIRECTION else None
            by_variant = {row["variant"]: row for row in part.to_dict("records")}
            cells = [
                with_interval([row[name] for name in ("value", "low", "high")], _number, row["variant"] == ahead) if row else ""
                for row in map(by_variant.get, variants)
            ]
            counts = [_of_each(part, "chance"), _of_each(part, "ceiling"), _counts(part)]
            rows.append([_label(*key[1:]), *cells, *counts, *_published(main, kind, theirs)])
        others = main[main["kind"] == kind].groupby(["benchmark", "metric"], sort=False)
        rows += [[""] * (4 + len(variants)) + _published(main, kind, theirs) for theirs, _ in others if theirs not in counterparts]
        notes = _notes(brief[brief["note"] != ""], legend)
        if len(brief) < len(of_kind):
            notes.append("- Further rows stand in `evaluation.csv`.")
        text += [f"## {kind}", "", markdown_table(head, rows), "", *notes, ""]
    number = "/".join(str(count) for count in sorted(set(means["seeds"])))
    of = "one seed" if number == "1" else f"{number} seeds"
    return "\n".join([*text, NOTE.format(seeds=of, unequal=", ".join(unequal) or "none")]) + "\n"


def _notes(rows: pd.DataFrame, legend: Legend) -> list[str]:
    """A line a note, with the rows (and the variants, where not all have it) that it is of."""
    lines = []
    variants = set(rows["variant"])
    for note, part in rows.groupby("note", sort=False):
        labels = list(dict.fromkeys(_label(*row) for row in zip(part["benchmark"], part["split"], part["metric"], strict=True)))
        named = "; ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
        of = legend.ordered(part["variant"])
        whose = "" if set(of) == variants else f" ({', '.join(legend.label(name) for name in of)})"
        lines.append(f"- {named}{whose}: {note}")
    return lines


def _of_each(part: pd.DataFrame, column: str) -> str:
    """One number, or one a variant in the order of the columns where they differ (a ceiling through a VAE is lower)."""
    values = [_number(value) for value in part[column]]
    return values[0] if len(set(values)) == 1 else " / ".join(value or "-" for value in values)


def _leaders(differences: pd.DataFrame) -> dict[Any, str]:
    """Of each measure the variant with a higher value than each other one, every difference standing after the correction."""
    leaders = {}
    for key, rows in differences.groupby(KEY, sort=False):
        beaten: dict[str, set[str]] = {name: set() for name in {*rows["a"], *rows["b"]}}
        for row in rows[rows["apart"]].to_dict("records"):
            winner, loser = (row["a"], row["b"]) if row["difference"] > 0 else (row["b"], row["a"])
            beaten[winner].add(loser)
        for name, others in beaten.items():
            if len(others) == len(beaten) - 1:
                leaders[key] = name
    return leaders


def _published(main: pd.DataFrame, kind: str, theirs: Any) -> list[str]:
    if theirs is None:
        return [""] * (1 + len(PAPERS))
    benchmark, metric = theirs
    rows = main[(main["kind"] == kind) & (main["benchmark"] == benchmark) & (main["metric"] == metric)]
    values = dict(zip(rows["model"], rows["value"], strict=True))
    name = benchmark if metric == "accuracy" else f"{benchmark} {metric}"
    return [name, *(_number(values[variant]) if variant in values else "" for variant in PAPERS)]


def _label(benchmark: str, split: str, metric: str) -> str:
    return ", ".join([benchmark, *([split] if split not in ("", "test") else []), *([metric] if metric != "accuracy" else [])])


def _counts(part: pd.DataFrame) -> str:
    n = "/".join(str(count) for count in sorted(set(part["n"])))
    failures = int(part["failures"].sum())
    return f"{n} (f {failures})" if failures else n


def _number(value: Any) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
