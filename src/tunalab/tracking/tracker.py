"""Runs in MLflow: a copy of what the run directories hold, which may fail without harm.

MLflow has a queue of its own, which gives a batch up at its first failure, and on exit waits out
every time limit of every batch when a server hangs. This one keeps what has not arrived, and is
left behind after its patience.
"""

import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from tunalab.files import write_atomically
from tunalab.tracking.client import (
    connect,
    creation_lock,
    existing,
    experiment_id,
    is_missing,
    is_refused,
    legal_name,
    parameters,
    survive,
    warn_failed,
    warn_once,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


T = TypeVar("T")

GATHER_SECONDS = 10.0  # what is logged within it travels together: one call takes 25 ms of a core, which may be the run's only one
RETRY_SECONDS = 30.0  # after a failure
PATIENCE_SECONDS = 60.0  # at the end of a run; a server that hangs takes half of it to fail once


class Sender(Generic[T]):
    """``deliver`` gets a list of what has not arrived, removes from its front what has, and raises where it fails."""

    def __init__(self, uri: str, deliver: Callable[[list[T]], None], failed_at_start: bool) -> None:
        self.uri = uri
        self.failing = failed_at_start
        self._deliver = deliver
        self._queue: SimpleQueue[T] = SimpleQueue()
        self._unsent: list[T] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="tunalab-mlflow")
        self._thread.start()

    def put(self, entry: T) -> None:
        """Takes microseconds, whatever the server does."""
        self._queue.put(entry)

    def close(self) -> int:
        """Deliver the rest, with one more attempt where the last has failed; returns how many entries have not arrived."""
        self._closing.set()
        self._thread.join(PATIENCE_SECONDS)
        return len(self._unsent) + self._queue.qsize()

    def _run(self) -> None:
        next_try = time.monotonic() + RETRY_SECONDS * self.failing
        closing = False
        while not closing:
            closing = self._closing.wait(GATHER_SECONDS)
            while not self._queue.empty():
                self._unsent.append(self._queue.get())
            if self._unsent and (closing or time.monotonic() >= next_try):
                self.failing = not survive(self.uri, lambda: self._deliver(self._unsent))[0]
                next_try = time.monotonic() + RETRY_SECONDS * self.failing


RUN_ID = "mlflow_run_id"  # file of a run directory
NOT_OURS = ("system/", "evaluation/")  # metrics of MLflow's own monitor, and of a model after its training
METRICS_A_BATCH, PARAMS_A_BATCH = 1000, 100  # as many as a server takes
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
        run_id = sweep_parent(uri, experiment, sweep)
        connect(uri).update_run(run_id, status="RUNNING")
        return run_id

    return survive(uri, start)[1]


def sweep_parent(uri: str, experiment: str, sweep: str) -> str:
    """The id of a sweep's parent run, made if there is none, its status as it was."""
    with creation_lock(uri):
        client = connect(uri)
        experiment_number = experiment_id(client, uri, experiment)
        name = sweep.replace("'", "")
        found = client.search_runs([experiment_number], f"tags.sweep = '{name}' and tags.role = 'sweep'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {"sweep": name, "experiment": experiment, "role": "sweep"}
        run_id = str(client.create_run(experiment_number, tags=tags, run_name=sweep).info.run_id)
        client.set_terminated(run_id)
        return run_id


def end_sweep(uri: str, run_id: str | None, status: End) -> None:
    """Close the parent run of a sweep."""
    if run_id is not None:
        survive(uri, lambda: connect(uri).set_terminated(run_id, status=status))


def log_files(uri: str, run_id: str | None, paths: Sequence[Path], folder: str | None = None) -> None:
    """Copy files into the artifacts of a run that has ended, such as the figures of a sweep into its parent run."""

    def log() -> None:
        client = connect(uri)
        for path in paths:
            client.log_artifact(run_id, str(path), folder)

    if run_id is not None:
        survive(uri, log)


class Number(NamedTuple):
    name: str
    value: float
    tokens: int
    time: float  # Unix seconds


class Parameter(NamedTuple):
    name: str
    value: str


class Artifact(NamedTuple):
    path: Path
    folder: str | None


class Closing(NamedTuple):
    status: End
    time: float | None  # Unix seconds


Entry = Number | Parameter | Artifact | Closing


class Tracker:
    """One run in MLflow. Nothing here waits for a server: a thread carries entries there and tries again after a failure.

    What never arrives costs a warning line, and `tunalab mlflow-sync` makes up for it from the run directory. What the run in the
    store holds already is not logged again: numbers go by name and step. Use it from one process of a run only (rank 0).
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        name: str,
        tags: Mapping[str, object],
        *,
        id_file: Path | None = None,
        run_id: str | None = None,
        parent_run_id: str | None = None,
        sources: Mapping[str, str] | None = None,
        system_metrics: bool = False,
        reopen: bool = True,
        start_time: float | None = None,
    ) -> None:
        """Start a run, or go on with that of ``run_id`` (else of the id in ``id_file``).

        An id that the store does not know (a new database), or whose run was deleted there, becomes a new run, now or while this
        one is logged; ``id_file`` always gets the id. ``tags`` should hold sweep, experiment, variant, mask_ratio and seed:
        nested runs are hidden in charts until expanded, tags can always be grouped by. ``sources``: what the run reads -> a digest
        that changes with its content. ``reopen``: the status of a run that goes on returns to RUNNING. ``start_time``: of a new
        run, Unix seconds.
        """
        self.uri, self.experiment, self.name = uri, experiment, name
        self.tags = {key: "" if value is None else str(value) for key, value in tags.items()}
        self.id_file = id_file
        self.run_id = run_id or (id_file.read_text(encoding="utf-8").strip() if id_file is not None and id_file.exists() else None)
        self.sources, self.system_metrics, self.reopen = sources, system_metrics, reopen
        self.start_time = time.time() if start_time is None else start_time
        self.added = 0  # entries that were new to the store
        self.lost = 0  # entries that the server refused
        if parent_run_id:
            self.tags["mlflow.parentRunId"] = parent_run_id
        self._client: MlflowClient | None = None
        self._monitor: SystemMetricsMonitor | None = None
        self._steps: dict[str, set[int]] = {}  # of each metric, those that are logged
        self._parameters: set[str] = set()
        self._status = "RUNNING"
        self._delivered: list[Entry] = []  # what a new run needs if somebody deletes this one
        began = survive(uri, self._begin)[0]
        self._sender = Sender(uri, self._deliver, failed_at_start=not began)

    @property
    def active(self) -> bool:
        """Whether everything so far has arrived or is on its way."""
        return not (self._sender.failing or self.lost)

    def log_params(self, config: Mapping[str, Any]) -> None:
        """Log a nested configuration as ``objective.masking.ratio`` and the like, each key once, values cut to a safe length."""
        for name, value in parameters(config).items():
            self._sender.put(Parameter(name, value))

    def log_metrics(self, metrics: Mapping[str, float], tokens: int, at: float | None = None) -> None:
        """Log numbers at step = tokens consumed; a step that is already logged is left alone. ``at``: Unix seconds (now).

        Names with a slash (``benchmark/count``) are grouped in the UI.
        """
        now = time.time() if at is None else at
        for name, value in metrics.items():
            self._sender.put(Number(legal_name(name), float(value), tokens, now))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts, as it is when its turn comes."""
        self._sender.put(Artifact(path, folder))

    def finish(self, status: End = "FINISHED", at: float | None = None) -> None:
        """Close the run when everything logged has arrived; says so in a line where it has not. ``at``: Unix seconds (now)."""
        self._sender.put(Closing(status, at))
        missing = self._sender.close() + self.lost
        if missing:
            where = shlex.quote(str(self.id_file.parent)) if self.id_file else "RUN_DIR"
            print(
                f"warning: {missing} entries of {self.name} are not in MLflow: `tunalab mlflow-sync {where}` adds them later",
                file=sys.stderr,
                flush=True,
            )

    def _begin(self) -> "MlflowClient":
        with creation_lock(self.uri):
            client = connect(self.uri)
            number = experiment_id(client, self.uri, self.experiment)
        run = None if self.run_id is None else existing(client, self.run_id)
        if run is None:
            run = client.create_run(number, int(self.start_time * 1000), tags=self.tags, run_name=self.name)
        else:
            self._take_up(client, run)
        self.run_id = run_id = str(run.info.run_id)
        if self.id_file is not None:
            write_atomically(self.id_file, run_id + "\n")
        if self.sources and not (run.inputs and run.inputs.dataset_inputs):
            client.log_inputs(run_id, _inputs(self.sources))
        if self.system_metrics:
            self._monitor = _monitor(self.uri, run_id)
        self._client = client
        return client

    def _take_up(self, client: "MlflowClient", run: "Run") -> None:
        from mlflow.entities import RunTag

        run_id, self._status, self.start_time = run.info.run_id, run.info.status, run.info.start_time / 1000
        if self.reopen and self._status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
            self._status = "RUNNING"
        missing = [RunTag(name, value) for name, value in self.tags.items() if name not in run.data.tags]
        if missing:  # of a run that an earlier version began
            client.log_batch(run_id, tags=missing)
            self.added += len(missing)
        self._parameters = set(run.data.params)
        for name in run.data.metrics:
            if not name.startswith(NOT_OURS):
                self._steps[name] = {metric.step for metric in client.get_metric_history(run_id, name)}

    def _deliver(self, unsent: list[Entry]) -> None:
        """In the sender's thread. Raises what a store raises; what has arrived by then is gone from the list."""
        from mlflow.exceptions import MlflowException

        client = self._client or self._begin()
        while unsent:
            batch = _batch(unsent)
            try:
                self._send(client, batch)
            except MlflowException as error:
                if not (is_refused(error) or is_missing(error)):
                    raise
                if existing(client, str(self.run_id)) is None:
                    client = self._begin_again(unsent)
                    continue
                warn_failed(self.uri, error)
                self.lost += len(batch)
            self._delivered += batch
            del unsent[: len(batch)]

    def _begin_again(self, unsent: list[Entry]) -> "MlflowClient":
        """A new run in place of one that was deleted, which gets all of it: put before what is to be delivered."""
        warn_once(
            f"{self.uri} {self.run_id}",
            f"run {self.name} was deleted in MLflow and is logged as a new one; `mlflow runs restore --run-id {self.run_id}` "
            "brings the deleted one back",
        )
        if self._monitor is not None:
            self._monitor.finish()
        self.run_id, self._status, self._steps, self._parameters = None, "RUNNING", {}, set()
        client = self._begin()
        unsent[:0] = self._delivered
        self._delivered.clear()
        return client

    def _send(self, client: "MlflowClient", batch: list[Entry]) -> None:
        from mlflow.entities import Metric, Param

        run_id = str(self.run_id)
        first = batch[0]
        if isinstance(first, Closing):
            if self._monitor is not None:
                self._monitor.finish()
            if self._status != first.status:
                client.set_terminated(run_id, first.status, None if first.time is None else int(first.time * 1000))
        elif isinstance(first, Artifact):
            if first.path.exists():
                client.log_artifact(run_id, str(first.path), first.folder)
        else:
            numbers = {(one.name, one.tokens): one for one in batch if isinstance(one, Number)}
            new = [one for (name, step), one in numbers.items() if step not in self._steps.get(name, ())]
            parameters = {one.name: one.value for one in batch if isinstance(one, Parameter) and one.name not in self._parameters}
            metrics = [Metric(one.name, one.value, int(one.time * 1000), one.tokens) for one in new]
            if new or parameters:
                client.log_batch(run_id, metrics, [Param(name, value) for name, value in parameters.items()])
            for one in new:
                self._steps.setdefault(one.name, set()).add(one.tokens)
            self._parameters |= set(parameters)
            self.added += len(new) + len(parameters)


def _batch(unsent: list[Entry]) -> list[Entry]:
    """The first entries, as many as travel together."""
    kind = type(unsent[0])
    most = {Number: METRICS_A_BATCH, Parameter: PARAMS_A_BATCH}.get(kind, 1)
    alike = next((index for index, entry in enumerate(unsent[:most]) if type(entry) is not kind), most)
    return unsent[:alike]


def _inputs(sources: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    tags = [InputTag("mlflow.data.context", "training")]
    return [DatasetInput(Dataset(name, digest[:36], "tunalab", name), tags) for name, digest in sources.items()]


def _monitor(uri: str, run_id: str) -> "SystemMetricsMonitor":
    """MLflow's own: CPU, memory, disk, network, and GPUs where their library is installed; seconds, and samples to a point."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, 10, samples_before_logging=3, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor
