"""What `tunalab evaluate` measured, compared between front-ends: means over seeds, and differences item by item.

Shapes: S seeds, I items.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from tunalab.analysis.statistics import Scatter, joint_interval, scatter_of_contrasts, scatter_of_means
from tunalab.analysis.tables import markdown_row
from tunalab.data.scenes.vocabulary import BENCHMARKS as SCENES
from tunalab.errors import UserError
from tunalab.evaluation.measure import KINDS, Measure
from tunalab.evaluation.parts import OF_PARSER, PARSER, PARSER_REVISION, PARSER_SINCE
from tunalab.evaluation.published import BENCHMARKS as PUBLISHED
from tunalab.evaluation.published import RULED, RULES, metric
from tunalab.evaluation.score import wilson
from tunalab.evaluation.whole import Evaluated
from tunalab.files import write_atomically
from tunalab.records.labels import OF_VARIANT, Legend, flat_settings, identity
from tunalab.records.record import Record
from tunalab.settings.layers import own_or_shipped

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
        counts = [count if isinstance(count, int) else 0 for count in tokens | known]
        most, least = max(counts), min(counts)
        if most > least * (1 + TOLERANCE):
            raise UserError(
                f"{first.run.name} and {record.run.name} were evaluated at {least:,} and {most:,} tokens: no fair comparison"
            )
        weights = {result.origin.get("weights") for one in (record, first) for result in one.evaluation}
        if len(weights) > 1:
            raise UserError(
                f"{first.run.name} and {record.run.name} were evaluated with {' and '.join(sorted(map(str, weights)))} weights"
            )


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


PAPER: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8"))
PAPERS: dict[str, str] = PAPER["published"]  # model of published.csv -> its spelling
COLUMNS = ["kind", "benchmark", "metric", "model", "value", "setting", "source"]
MAIN_SETTING = "7B"  # the comparison of the paper's main tables; others are ablations

GENEVAL = ("overall", "single_object", "two_object", "counting", "colors", "position", "color_attr")  # categories, as it calls them

# Kind -> (benchmark, metric) of ours -> (benchmark, metric) of the published one whose skill it isolates.
Result = tuple[str, str]
SELF = {benchmark.title: benchmark.title for benchmark in PUBLISHED.values()}
COUNTERPARTS: dict[str, dict[Result, Result]] = {
    # Of scenes the skill is the same, and the published benchmarks themselves stand beside themselves.
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
Measured here: mean over {seeds} seed(s) with its 95% interval, over items and, with several seeds, over seeds; n counts the
items of one seed (f: how many more could not be measured). Shares lie between 0 and 1. Bold, where more is better: ahead of
every other front-end by a difference, paired by seed and item, whose 95% interval excludes 0 (`differences.csv`); no correction
for the number of rows. Settings in which the runs differ besides the front-end: {unequal}. Published numbers are those of 7B
models on the published benchmarks, from `results/published.csv`: beside ours only their order can be compared. Chance of
understanding: the best of four guesses that never look at the image (`results/verification/chance.md`)."""
# A larger distance between images, or more attention, is not better by itself.
HIGHER_IS_BETTER = ("understanding", "generation", "editing", "judge")
BRIEF, ALL = ("attention",), "all"  # kinds of which the Markdown shows one benchmark
NO_DIRECTION = ("accuracy without image", "residual of right images", "rejected by residual")
KEY = ["kind", "benchmark", "split", "metric"]


def write_evaluation_tables(records: Sequence[Record], published: Path, folder: Path, command: str) -> list[Path]:
    """Write ``evaluation.md``, ``evaluation.csv`` and ``differences.csv``; nothing where no run was evaluated.

    Raises UserError: runs cannot be compared (see ``sides``), or the published results cannot be read.
    """
    if not evaluated(records):
        return []
    compared = sides(evaluated(records))
    unequal = unequal_settings(evaluated(records))
    means, differences = means_table(compared), differences_table(compared)
    texts = {
        "evaluation.md": f"<!-- made by: {command} -->\n\n"
        + evaluation_markdown(means, differences, read_published(published), Legend(records), unequal),
        "evaluation.csv": f"# made by: {command}\n" + means.to_csv(index=False, float_format="%.6g"),
        "differences.csv": f"# made by: {command}\n" + differences.to_csv(index=False, float_format="%.6g"),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return [folder / name for name in texts]


def evaluation_markdown(
    means: pd.DataFrame,
    differences: pd.DataFrame,
    published: pd.DataFrame,
    legend: Legend,
    unequal: Sequence[str] = (),
) -> str:
    """A section a kind; columns: the variants as measured here, then the published result of the paper's variants.

    Published benchmarks without a measure of ours have rows of their own: what is not measured should be seen.
    """
    variants = legend.ordered(means["variant"])
    main = published[published["setting"] == MAIN_SETTING]
    kinds = list(dict.fromkeys([*means["kind"], *main["kind"]]))
    head = ["benchmark", *(legend.label(name) for name in variants), "chance", "ceiling", "n"]
    head += ["published benchmark", *(f"{name}, published" for name in PAPERS.values())]
    lines = []
    for kind in kinds:
        lines += [f"## {kind}", "", markdown_row(head), markdown_row(["---"] + ["---:"] * (len(head) - 1))]
        shown = set()
        for key, part in means[_shown(means) & (means["kind"] == kind)].groupby(KEY, sort=False):
            theirs = counterpart(*map(str, key))
            shown.add(theirs)
            ahead = _ahead(differences, key) if kind in HIGHER_IS_BETTER and key[-1] not in NO_DIRECTION else set()
            by_variant = {row["variant"]: row for row in part.to_dict("records")}
            cells = [_measured(by_variant[name], name in ahead) if name in by_variant else "" for name in variants]
            counts = [_of_each(part, "chance"), _of_each(part, "ceiling"), _counts(part)]
            lines.append(markdown_row([_label(*key[1:]), *cells, *counts, *_published(main, kind, theirs)]))
        others = main[main["kind"] == kind].groupby(["benchmark", "metric"], sort=False)
        for theirs, _ in others:
            if theirs not in shown:
                lines.append(markdown_row([""] * (4 + len(variants)) + _published(main, kind, theirs)))
        lines += ["", *_notes(means[_shown(means) & (means["kind"] == kind) & (means["note"] != "")], legend)]
        if not _shown(means)[means["kind"] == kind].all():
            lines.append("- Further rows stand in `evaluation.csv`.")
        lines.append("")
    seeds = "/".join(str(count) for count in sorted(set(means["seeds"])))
    lines.append(NOTE.format(seeds=seeds, unequal=", ".join(unequal) or "none"))
    return "\n".join(lines) + "\n"


def _shown(means: pd.DataFrame) -> "pd.Series[bool]":
    """Rows of the Markdown: of attention, which has a hundred for each variant, those over all questions."""
    return ~means["kind"].isin(BRIEF) | means["benchmark"].eq(ALL)


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


def _ahead(differences: pd.DataFrame, key: Any) -> set[str]:
    """The variant with a higher value than each other, every interval excluding zero."""
    rows = differences
    for name, word in zip(KEY, key, strict=True):
        rows = rows[rows[name] == word]
    names = set(rows["a"]) | set(rows["b"])
    beaten = {name: set() for name in names}  # type: dict[str, set[str]]
    for row in rows[rows["apart"]].to_dict("records"):
        winner, loser = (row["a"], row["b"]) if row["difference"] > 0 else (row["b"], row["a"])
        beaten[winner].add(loser)
    return {name for name, others in beaten.items() if others and others == names - {name}}


def _measured(row: dict[Any, Any], ahead: bool) -> str:
    value = f"**{_number(row['value'])}**" if ahead else _number(row["value"])
    return value if pd.isna(row["low"]) else f"{value} [{_number(row['low'])}, {_number(row['high'])}]"


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
