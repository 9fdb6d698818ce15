"""Runs in MLflow, kept thin and at arm's length: a copy of what the records hold, which may fail without harm."""

import re
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunalab.evaluation.whole import Evaluated, to_text
from tunalab.results.mlflow_client import connect, creation_lock, experiment_id, survive

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_ID = "mlflow_run_id"  # file of a run directory
PARAMETER_LIMIT = 500  # characters; MLflow's limit differs by store, and the whole configuration lies in the run directory
End = Literal["FINISHED", "FAILED", "KILLED"]


def prepare(uri: str, experiment: str) -> bool:
    """Create database and experiment, once, before parallel runs start. Returns whether the tracking server answered."""

    def create() -> None:
        with creation_lock(uri):
            experiment_id(connect(uri), uri, experiment)

    return survive(uri, create)[0]


def start_sweep(uri: str, experiment: str, sweep: str) -> str | None:
    """The id of a sweep's parent run, the same one when the sweep is started again; None where no server answers."""

    def start() -> str:
        with creation_lock(uri):
            client = connect(uri)
            experiment_number = experiment_id(client, uri, experiment)
            name = sweep.replace("'", "")
            found = client.search_runs([experiment_number], f"tags.sweep = '{name}' and tags.role = 'sweep'", max_results=1)
            if found:
                client.update_run(found[0].info.run_id, status="RUNNING")
                return str(found[0].info.run_id)
            tags = {"sweep": name, "experiment": experiment, "role": "sweep"}
            return str(client.create_run(experiment_number, tags=tags, run_name=sweep).info.run_id)

    return survive(uri, start)[1]


def end_sweep(uri: str, run_id: str | None, status: End) -> None:
    """Close the parent run of a sweep."""
    if run_id is not None:
        survive(uri, lambda: connect(uri).set_terminated(run_id, status=status))


def log_evaluation(uri: str, run_id: str, result: Evaluated, tokens: int, record: Path) -> None:
    """Every measure of a part as a metric ``evaluation/<kind>/<benchmark>/<split>/<metric>`` of a run that has ended.

    Its record is logged anew. A result that is logged already, as the tag ``evaluation.<part>`` knows, is left alone.
    """

    def log() -> None:
        from mlflow.entities import Metric

        client, now = connect(uri), int(time.time() * 1000)
        tag, stamp = f"evaluation.{result.part}", sha256(to_text(result).encode()).hexdigest()[:16]
        if client.get_run(run_id).data.tags.get(tag) == stamp:
            return
        names = {legal_name("/".join(["evaluation", *filter(None, one.key)])): one.value for one in result.measures}
        metrics = [Metric(name, value, now, tokens) for name, value in names.items()]
        for first in range(0, len(metrics), 1000):  # as many as a batch may hold
            client.log_batch(run_id, metrics=metrics[first : first + 1000])
        client.log_artifact(run_id, str(record))
        client.set_tag(run_id, tag, stamp)  # last: an interrupted one is logged again

    survive(uri, log)


class Tracker:
    """One run in MLflow. After the first failure it is silent: one warning line, and the run goes on with its local record.

    Use it from one process of a run only (rank 0).
    """

    def __init__(self, uri: str, run_id: str | None) -> None:
        self.uri = uri
        self.run_id = run_id
        self._client: MlflowClient | None = None
        self._pending: list[Any] = []
        self._logged_until: dict[str, int] = {}  # metric -> the last step that is logged
        self._parameters: set[str] = set()

    @classmethod
    def start(
        cls,
        uri: str,
        experiment: str,
        run_name: str,
        tags: Mapping[str, object],
        parent_run_id: str | None = None,
        run_id: str | None = None,
    ) -> "Tracker":
        """Start a run, or go on with ``run_id``: its status returns to RUNNING, what it holds is not logged again.

        A ``run_id`` that the store does not know (a new database) becomes a new run: look at the tracker's ``run_id`` and keep
        that. ``tags`` should hold sweep, experiment, variant, mask_ratio and seed: nested runs are hidden in charts until
        expanded, tags can always be grouped by.
        """
        tracker = cls(uri, run_id)

        def begin() -> None:
            with creation_lock(uri):
                client = connect(uri)
                experiment_number = experiment_id(client, uri, experiment)
            if run_id is None or not tracker._resume(client, run_id):
                parent = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
                tracker.run_id = str(client.create_run(experiment_number, tags=_tags(tags) | parent, run_name=run_name).info.run_id)
            tracker._client = client

        survive(uri, begin)
        return tracker

    @property
    def active(self) -> bool:
        """False after a failure: everything is local only from there on."""
        return self._client is not None

    def log_params(self, config: Mapping[str, Any]) -> None:
        """Log a nested configuration as ``objective.masking.ratio`` and the like, each key once, values cut to a safe length."""
        if not self.active:
            return
        from mlflow.entities import Param

        new = {key: value for key, value in flatten(config).items() if key not in self._parameters}
        self._parameters |= set(new)
        entries = [Param(key, value) for key, value in new.items()]
        for start in range(0, len(entries), 100):  # as many as a batch may hold
            self._send(params=entries[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, float], tokens: int) -> None:
        """Log numbers at step = tokens consumed, in the background; a step that is already logged is left alone.

        Names with a slash (``benchmark/count``) are grouped in the UI.
        """
        if not self.active:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = {legal_name(name): float(value) for name, value in metrics.items()}
        new = {name: value for name, value in new.items() if tokens > self._logged_until.get(name, -1)}
        self._logged_until |= dict.fromkeys(new, tokens)
        if new:
            self._send(metrics=[Metric(name, value, now, tokens) for name, value in new.items()])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts."""
        self._guard(lambda client, run: client.log_artifact(run, str(path), folder))

    def finish(self, status: End = "FINISHED") -> None:
        """Wait until everything logged has arrived, then close the run."""
        for operation in self._pending:
            self._guard(lambda _, __, sent=operation: sent.wait())  # type: ignore[misc]
        self._pending = []
        self._guard(lambda client, run: client.set_terminated(run, status=status))

    def _resume(self, client: "MlflowClient", run_id: str) -> bool:
        """Go on with a run of the store; False if it has none of this id."""
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        client.update_run(run_id, status="RUNNING")
        self._parameters = set(run.data.params)
        for name in run.data.metrics:
            self._logged_until[name] = max(metric.step for metric in client.get_metric_history(run_id, name))
        return True

    def _send(self, **entities: list[Any]) -> None:
        # Sent batches are looked at here, so that a server that died is noticed at the next call and not at the end.
        still_going = []
        for operation in self._pending:
            if all(future.done() for future in operation._operation_futures):
                self._guard(lambda _, __, sent=operation: sent.wait())  # type: ignore[misc]
            else:
                still_going.append(operation)
        self._pending = still_going
        operation = self._guard(lambda client, run: client.log_batch(run, synchronous=False, **entities))
        if operation is not None:
            self._pending.append(operation)

    def _guard(self, action: "Callable[[MlflowClient, str], Any]") -> Any:
        """``action`` with the client and the run's id; nothing after the first failure."""
        client, run_id = self._client, self.run_id
        if client is None or run_id is None:
            return None
        fine, value = survive(self.uri, lambda: action(client, run_id))
        if not fine:
            self._client = None
        return value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names with text values. A long value is cut and says so; lists stay one value."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = legal_name(f"{prefix}{key}")
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
            continue
        text = str(value)
        flat[name] = text if len(text) <= PARAMETER_LIMIT else f"{text[: PARAMETER_LIMIT - 20]}... ({len(text)} long)"
    return flat


def legal_name(name: str) -> str:
    """A name that MLflow accepts: other characters become underscores, and a path may not leave its folder."""
    clean = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)
    return re.sub(r"/+", "/", clean.replace("..", "__")).strip("/")[:250] or "_"


def _tags(tags: Mapping[str, object]) -> dict[str, str]:
    return {name: "" if value is None else str(value) for name, value in tags.items()}
