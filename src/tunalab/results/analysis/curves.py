"""Records into one tidy table: a row per run, evaluation and benchmark."""

from collections.abc import Sequence

import pandas as pd

from tunalab.errors import UserError
from tunalab.results.analysis.grid import joined
from tunalab.results.records import Record
from tunalab.results.settings import identity, told_apart

# ``setting`` is the label of what tells a run from the others of the table, ``identity`` of all that may not differ in a mean.
COLUMNS = [
    *("variant", "seed", "setting", "tokens", "benchmark", "accuracy", "n", "chance", "low", "high"),
    *("correct", "steps", "images", "flops", "seconds", "mask_ratio", "identity", "run"),
]
RUN = ["variant", "seed", "setting"]


def curves(records: Sequence[Record]) -> pd.DataFrame:
    """One row per run, point and benchmark, with the columns of ``COLUMNS``.

    Raises:
        UserError: two records are the same run: a mean over both would count it twice.
    """
    owner: dict[tuple[str, int, str], str] = {}
    rows = []
    for record, setting in zip(records, told_apart(records), strict=True):
        run = record.run
        key = (run.variant, run.seed, setting.label)
        if key in owner:
            raise UserError(
                f"records {owner[key]} and {run.name} are the same run: variant {run.variant}, seed {run.seed}, no setting differs"
            )
        owner[key] = run.name
        of_run = (run.mask_ratio, identity(record), run.name)
        for point in record.points:
            for benchmark, score in point.benchmarks.items():
                rows.append(
                    (*key, point.tokens, benchmark, score.accuracy, score.n, score.chance, score.low, score.high, score.correct)
                    + (point.steps, point.images, point.flops, point.seconds, *of_run)
                )
    return pd.DataFrame(rows, columns=COLUMNS)


def align_tokens(frame: pd.DataFrame, tolerance: float = 0.02) -> pd.DataFrame:
    """The same table with token counts that differ by less than ``tolerance`` set to their largest.

    An evaluation happens at the end of the batch that reaches its threshold, and batches hold different numbers of tokens,
    so that seeds reach "the same" point some tokens apart. Of two points of one run that fall together the later stays.
    """
    where = joined(frame["tokens"].tolist(), tolerance)
    order = frame.sort_values("tokens", kind="stable")
    aligned = order.assign(tokens=order["tokens"].map(where))
    aligned = aligned.drop_duplicates([*RUN, "benchmark", "tokens"], keep="last")
    return aligned.reset_index(drop=True)


def last_common_tokens(aligned: pd.DataFrame) -> int:
    """The largest aligned token count that every run of the table reached: where they can be compared fairly.

    Raises:
        UserError: there is none, or no benchmark was evaluated.
    """
    if aligned.empty:
        raise UserError("no evaluated benchmark in these records")
    runs = aligned.groupby("tokens")[RUN].apply(lambda part: len(part.drop_duplicates()))
    total = len(aligned[RUN].drop_duplicates())
    common = [int(tokens) for tokens, count in runs.items() if count == total]  # type: ignore[call-overload]
    if not common:
        raise UserError("the records share no point at equal tokens: were they trained with different budgets or evaluations?")
    return max(common)
