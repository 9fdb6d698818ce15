"""Into MLflow, afterwards: all that a run would have logged, and what `tunalab evaluate` measured.

A run that logs as it trains and a record that is brought there later look the same. What the store holds is left as it is, so
that a second time adds nothing.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunalab.errors import UserError
from tunalab.evaluation.whole import Evaluated, to_text
from tunalab.files import listed
from tunalab.frontends.looks import Look
from tunalab.records.log import Row, read_rows
from tunalab.records.record import CONFIG_FILE, RECORD_FILE, Point, Record, RunInfo, Totals, read_record
from tunalab.settings.loading import config_hash, read_config, to_plain
from tunalab.settings.schema import EvaluationConfig
from tunalab.settings.timeline import evaluation_tokens
from tunalab.tracking.client import (
    connect,
    creation_lock,
    existing,
    experiment_id,
    legal_name,
    reason_of,
    survive,
    without_password,
)
from tunalab.tracking.tracker import METRICS_A_BATCH, RUN_ID, Tracker, sweep_parent

if TYPE_CHECKING:
    from mlflow import MlflowClient


ACCURACY = "accuracy/"  # metrics at planned token counts, which runs of all seeds share


def run_tags(
    name: str,
    config: Mapping[str, Any],
    config_hash: str,
    environment: Mapping[str, Any],
    look: Look,
    lineage: Mapping[str, Any] | None = None,
) -> dict[str, object]:
    """What runs are found and grouped by: sweep, variant, arm (all but the seed) and so on; code and packages.

    ``config``: plain.
    """
    tracking = config["tracking"]
    tags: dict[str, object] = {
        "sweep": tracking["sweep"],
        "experiment": config["experiment"],
        "variant": config["variant"],
        "front_end": look.label,
        **{f"front_end.{factor}": level for factor, level in look.factors.items()},
        "arm": re.sub(r"-seed\d+(\+\w+)?$", "", name),
        "mask_ratio": config["objective"]["masking"]["ratio"],
        "seed": config["seed"],
        "config_hash": config_hash,
        "mlflow.source.name": "tunalab",
        "mlflow.source.type": "LOCAL",
    }
    if lineage:
        tags |= {f"lineage.{key}": lineage[key] for key in ("kind", "run", "config_hash", "tokens")}
        tags["lineage.settings"] = ", ".join(lineage["settings"])
    if environment.get("commit"):
        tags |= {"mlflow.source.git.commit": environment["commit"], "code.modified": environment.get("dirty")}
    tags |= {name: environment[name] for name in ("python", "cpu", "accelerator") if environment.get(name)}
    return tags | {f"package.{name}": version for name, version in environment.get("packages", {}).items() if version}


def point_metrics(points: Sequence[Point], config: Mapping[str, Any]) -> Iterator[tuple[Point, int, dict[str, float]]]:
    """Metrics by name of every evaluation, with the tokens they stand at.

    Accuracy comes twice: as ``benchmark/...`` at the tokens consumed, and as ``accuracy/...`` at the count that was planned.
    Runs of different seeds pass a planned count some documents apart, and MLflow's mean of a group of runs joins equal steps only.
    """
    for point, planned in zip(points, planned_tokens([point.tokens for point in points], config), strict=True):
        metrics = {f"benchmark/{name}": score.accuracy for name, score in point.benchmarks.items()}
        metrics |= {f"heldout/{name}": value for name, value in point.losses.items()}
        metrics |= {f"one_step_psnr/t{t}": value for t, value in point.one_step_psnr.items()}
        metrics |= {f"cost/{name}": float(getattr(point, name)) for name in ("steps", "images", "flops", "seconds")}
        yield point, point.tokens, metrics
        yield point, planned, {f"{ACCURACY}{name}": score.accuracy for name, score in point.benchmarks.items()}


def planned_tokens(tokens: Sequence[int], config: Mapping[str, Any]) -> list[int]:
    """For each evaluation, made at ``tokens``, the last count of the plan that was due; the next one where training ended short."""
    settings = EvaluationConfig(points=config["evaluation"]["points"], first=config["evaluation"]["first"])
    plan = evaluation_tokens(settings, sum(stage["tokens"] for stage in config["stages"].values()))
    planned, before = [], 0
    for now in tokens:
        due = [at for at in plan if before < at <= now]
        planned.append(due[-1] if due else min((at for at in plan if at > now), default=now))
        before = now
    return planned


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

    Its record is logged anew, its pictures go to its folder of artifacts. A result that is logged already, by the
    tag ``evaluation.<part>``, is left alone. ``at``: Unix seconds (now). Returns whether something was logged.
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
            client.log_artifact(run_id, str(path), f"evaluation/{result.part}")
        if record is not None:
            client.log_artifact(run_id, str(record))
        client.set_tag(run_id, tag, stamp)  # last: an interrupted one is logged again
        return True

    return bool(survive(uri, log)[1])


@dataclass(frozen=True)
class Kept:
    """What is kept of a run. ``files``: artifacts and the folders they go to; ``id_file``: of the id of its run in MLflow."""

    name: str
    record: Record
    rows: Sequence[Row] = ()
    files: Sequence[tuple[Path, str | None]] = ()
    id_file: Path | None = None

    @classmethod
    def of_record(cls, path: Path) -> "Kept":
        """Raises UserError: the record is missing or damaged."""
        record = read_record(path)
        return cls(record.run.name, record, files=[(path, None)])

    @classmethod
    def of_run_dir(cls, run_dir: Path) -> "Kept":
        """A run that has no record yet has its configuration and its training log.

        Raises UserError: the folder holds no run, or a damaged one.
        """
        path, rows, files = run_dir / RECORD_FILE, read_rows(run_dir), list(_files(run_dir))
        if path.exists():
            return cls(run_dir.name, read_record(path), rows, files, run_dir / RUN_ID)
        if not (run_dir / CONFIG_FILE).exists():
            raise UserError(f"{run_dir} is no run directory: it has neither {RECORD_FILE} nor {CONFIG_FILE}")
        config = read_config(run_dir / CONFIG_FILE)
        ratio, sweep = config.objective.masking.ratio, config.tracking.sweep
        info = RunInfo(
            run_dir.name, config.experiment, config.variant, config.seed, ratio, sweep or None, config_hash(config), False
        )
        record = Record(info, to_plain(config), {}, {}, {}, Totals(0, 0, 0, 0.0, 0.0, 0), [])
        return cls(run_dir.name, record, rows, files, run_dir / RUN_ID)


def run_directories(folder: Path) -> list[Path]:
    """Every run directory below a folder."""
    return sorted({path.parent for name in (RECORD_FILE, CONFIG_FILE) for path in folder.rglob(name)})


def check_answer(uri: str) -> None:
    """Raises UserError where no MLflow answers, before every run of a folder is tried."""
    with _in_one_line(uri):
        connect(uri).search_experiments(max_results=1)


def sync(uri: str, experiment: str | None, kept: Kept) -> int:
    """Bring a run to MLflow, ``experiment`` by default that of its settings; returns how much was added: 0 when all was there.

    It becomes the run of its id, or, where the store has none of that id or a deleted one, of the one that shows the same settings
    under the same name in the same sweep, or a new one.

    Raises:
        UserError: MLflow does not answer, or refuses something.
    """
    with _in_one_line(uri):
        return _sync(uri, experiment or kept.record.config["tracking"]["experiment"], kept)


@contextmanager
def _in_one_line(uri: str) -> Iterator[None]:
    """A failure of the store becomes a UserError. Every exception is meant: client.survive says why."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"MLflow at {without_password(uri)} failed: {reason_of(error, uri)}") from error


def _sync(uri: str, experiment: str, kept: Kept) -> int:
    record = kept.record
    sweep = record.config["tracking"]["sweep"]
    parent = sweep_parent(uri, experiment, sweep) if sweep else None
    client, seconds = connect(uri), record.totals.seconds
    tracker = Tracker(
        uri,
        experiment,
        kept.name,
        run_tags(kept.name, record.config, record.run.config_hash, record.environment, record.look, record.lineage),
        id_file=kept.id_file,
        run_id=_find(client, uri, experiment, kept),
        parent_run_id=parent,
        sources=record.environment.get("data"),
        reopen=False,
        start_time=kept.rows[0].time if kept.rows else time.time() - seconds,
    )
    tracker.log_params(record.config)
    for row in kept.rows:
        tracker.log_metrics(row.metrics, row.tokens, row.time)
    for point, tokens, metrics in point_metrics(record.points, record.config):
        tracker.log_metrics(metrics, tokens, tracker.start_time + point.seconds)
    end = tracker.start_time + seconds
    tracker.finish("FINISHED" if record.run.finished else "KILLED", end)
    if not tracker.active or tracker.run_id is None:
        raise UserError(f"{kept.name} did not reach MLflow at {without_password(uri)} whole: try again when it answers")
    added = tracker.added + _add_files(client, tracker.run_id, kept.files)
    last = record.points[-1].tokens if record.points else 0
    for result in record.evaluation:
        at = int(result.origin.get("tokens") or last)
        added += log_evaluation(uri, tracker.run_id, result, at, None, at=end)
    return added


def _find(client: "MlflowClient", uri: str, experiment: str, kept: Kept) -> str | None:
    """The id of the run in this store."""
    if kept.id_file is not None and kept.id_file.exists():
        run_id = kept.id_file.read_text(encoding="utf-8").strip()
        if existing(client, run_id) is not None:
            return run_id
    with creation_lock(uri):
        number = experiment_id(client, uri, experiment)
    same = f"tags.config_hash = '{kept.record.run.config_hash}'"
    for run in client.search_runs([number], same, order_by=["attributes.start_time DESC"]):
        if run.info.run_name == kept.name and run.data.tags.get("sweep", "") == kept.record.config["tracking"]["sweep"]:
            return str(run.info.run_id)
    return None


def _files(run_dir: Path) -> Iterator[tuple[Path, str | None]]:
    """Configuration, record, sample grids, and what the parts of an evaluation drew."""
    for name in (CONFIG_FILE, RECORD_FILE):
        if (run_dir / name).exists():
            yield run_dir / name, None
    yield from ((path, "samples") for path in listed(run_dir / "samples", "*.png"))
    for folder in listed(run_dir / "evaluation", "*-*"):
        part = folder.name.rpartition("-")[0]
        yield from ((path, f"evaluation/{part}") for path in listed(folder, "*.png"))


def _add_files(client: "MlflowClient", run_id: str, files: Sequence[tuple[Path, str | None]]) -> int:
    """Files that are not there; those that are small and change, records and settings, are brought again where sizes differ."""
    there: dict[str, int | None] = {}
    for folder in {folder for _, folder in files}:
        there |= {legal_name(one.path): one.file_size for one in client.list_artifacts(run_id, folder)}
    added = 0
    for path, folder in files:
        if there.get(legal_name(f"{folder or ''}/{path.name}")) != path.stat().st_size:
            client.log_artifact(run_id, str(path), folder)
            added += 1
    return added
