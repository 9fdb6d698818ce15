"""Tables of what `tunalab evaluate` measured beside what was published; they never share a cell.

Published numbers are of models thousands of times larger, on the published benchmarks themselves.
They stand beside ours, never in one mean, difference or cell with them.

Markdown to read, CSV to compute with.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tunalab.analysis.evaluations import differences_table, evaluated, means_table, sides, unequal_settings
from tunalab.analysis.tables.claims import PUBLISHED as PAPERS
from tunalab.analysis.tables.training import markdown_row
from tunalab.data.scenes.vocabulary import BENCHMARKS as SCENES
from tunalab.errors import UserError
from tunalab.evaluation.published import BENCHMARKS as PUBLISHED
from tunalab.evaluation.published import RULED, RULES, metric
from tunalab.files import write_atomically
from tunalab.records.labels import Legend
from tunalab.records.record import Record
from tunalab.settings.layers import own_or_shipped

COLUMNS = ["kind", "benchmark", "metric", "model", "value", "setting", "source"]
MAIN_SETTING = "7B"  # the comparison of the paper's main tables; others are ablations

GENEVAL = ("overall", "single_object", "two_object", "counting", "colors", "position", "color_attr")  # categories, as it calls them

# Kind -> (benchmark, metric) of ours -> (benchmark, metric) of the published one whose skill it isolates.
Key = tuple[str, str]
SELF = {benchmark.title: benchmark.title for benchmark in PUBLISHED.values()}
COUNTERPARTS: dict[str, dict[Key, Key]] = {
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


def counterpart(kind: str, benchmark: str, split: str, metric: str) -> Key | None:
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
