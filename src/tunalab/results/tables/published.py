"""What others published: rows of ``results/published.csv``, and which of our measures stands beside which of them.

Published numbers are of models thousands of times larger, on the published benchmarks themselves. They stand beside ours, never in
one mean, difference or cell with them.
"""

from pathlib import Path

import pandas as pd

from tunalab.data.scenes.vocabulary import BENCHMARKS as SCENES
from tunalab.errors import UserError
from tunalab.evaluation.lmms.catalogue import BENCHMARKS as PUBLISHED
from tunalab.evaluation.lmms.rules import RULED, RULES, metric

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
