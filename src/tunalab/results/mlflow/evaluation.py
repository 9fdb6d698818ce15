"""Into MLflow, beside the run that trained a model: what `tunalab evaluate` measured of it."""

import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from tunalab.errors import UserError
from tunalab.evaluation.whole import Evaluated, to_text
from tunalab.results.mlflow.client import connect, existing, survive
from tunalab.results.mlflow.names import legal_name
from tunalab.results.mlflow.tracking import METRICS_A_BATCH


def evaluation_folder(part: str) -> str:
    """The artifact folder of the pictures of a part."""
    return f"evaluation/{part}"


def log_evaluation(
    uri: str,
    run_id: str,
    result: Evaluated,
    tokens: int,
    record: Path | None,
    pictures: Sequence[Path] = (),
    at: float | None = None,
) -> bool:
    """Every measure of a part as a metric ``evaluation/<kind>/<benchmark>/<split>/<metric>`` of a run that has ended.

    Its record is logged anew, its pictures go to its :func:`evaluation_folder`. A result that is logged already, as the tag
    ``evaluation.<part>`` knows, is left alone. ``at``: Unix seconds (now). Returns whether something was logged.
    """

    def log() -> bool:
        from mlflow.entities import Metric

        client, now = connect(uri), int((time.time() if at is None else at) * 1000)
        tag, stamp = f"evaluation.{result.part}", sha256(to_text(result).encode()).hexdigest()[:16]
        run = existing(client, run_id)
        if run is None:
            raise UserError("its run is deleted there: `tunalab mlflow-sync RUN_DIR` makes a new one, evaluation included")
        if run.data.tags.get(tag) == stamp:
            return False
        names = {legal_name("/".join(["evaluation", *filter(None, one.key)])): one.value for one in result.measures}
        # Those of an attempt that was interrupted stand there already.
        there = {metric.key: (metric.value, metric.step) for metric in run.data._metric_objs}
        metrics = [Metric(name, value, now, tokens) for name, value in names.items() if there.get(name) != (value, tokens)]
        for first in range(0, len(metrics), METRICS_A_BATCH):
            client.log_batch(run_id, metrics=metrics[first : first + METRICS_A_BATCH])
        for path in pictures:
            client.log_artifact(run_id, str(path), evaluation_folder(result.part))
        if record is not None:
            client.log_artifact(run_id, str(record))
        client.set_tag(run_id, tag, stamp)  # last: an interrupted one is logged again
        return True

    return bool(survive(uri, log)[1])
