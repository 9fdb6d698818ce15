import socket
import time
from pathlib import Path

import pytest

from tunalab.evaluation.measure import share
from tunalab.evaluation.whole import Evaluated
from tunalab.results import mlflow_client
from tunalab.results.mlflow_client import connect, database_path, default_uri
from tunalab.results.tracking import Tracker, end_sweep, flatten, legal_name, log_evaluation, prepare, start_sweep

TAGS = {"sweep": "mask_ratio", "experiment": "scenes", "variant": "tuna2", "mask_ratio": 0.25, "seed": 0}


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One database for the module: creating it takes seconds. Each test uses an experiment of its own."""
    where = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"
    assert prepare(where, "scenes") and prepare(where, "scenes")
    return where


@pytest.fixture(autouse=True)
def unwarned(monkeypatch):
    monkeypatch.setattr(mlflow_client, "_warned", set())


def history(uri, run_id, name):
    return [(metric.step, metric.value) for metric in connect(uri).get_metric_history(run_id, name)]


def test_metrics_tags_and_parameters_arrive(uri):
    parent = start_sweep(uri, "scenes", "mask_ratio")
    tracker = Tracker.start(uri, "scenes", "tuna2-seed0", TAGS, parent_run_id=parent)
    tracker.log_params(
        {"objective": {"masking": {"ratio": 0.25}}, "prompts": "x" * 50_000, "many": {str(index): index for index in range(250)}}
    )
    tracker.log_metrics({"benchmark/count": 0.5, "one_step_psnr/0.3": 14.0}, tokens=1000)
    tracker.log_metrics({"benchmark/count": 0.6}, tokens=2500)
    tracker.finish()
    run = connect(uri).get_run(tracker.run_id)
    assert tracker.active and run.info.status == "FINISHED"
    assert history(uri, tracker.run_id, "benchmark/count") == [(1000, 0.5), (2500, 0.6)]
    assert {key: run.data.tags[key] for key in TAGS} == {key: str(value) for key, value in TAGS.items()}
    assert run.data.tags["mlflow.parentRunId"] == parent and run.data.tags["mlflow.runName"] == "tuna2-seed0"
    assert run.data.params["objective.masking.ratio"] == "0.25" and len(run.data.params) == 252
    assert len(run.data.params["prompts"]) <= 500 and "50000 long" in run.data.params["prompts"]


def test_resume_goes_on_without_duplicates(uri):
    first = Tracker.start(uri, "scenes", "a", TAGS)
    first.log_params({"a": 1})
    first.log_metrics({"loss/text": 3.0}, tokens=10)
    first.log_metrics({"loss/text": 2.0}, tokens=20)
    first.finish("KILLED")
    again = Tracker.start(uri, "scenes", "a", TAGS, run_id=first.run_id)
    assert again.run_id == first.run_id and connect(uri).get_run(first.run_id).info.status == "RUNNING"
    again.log_params({"a": 2, "b": 1})  # a changed value would be refused by MLflow: parameters stay as first logged
    again.log_metrics({"loss/text": 2.0, "loss/flow": 1.0}, tokens=20)  # replayed from the checkpoint
    again.log_metrics({"loss/text": 1.0}, tokens=30)
    again.finish()
    run = connect(uri).get_run(first.run_id)
    assert again.active and run.info.status == "FINISHED" and run.data.params == {"a": "1", "b": "1"}
    assert history(uri, first.run_id, "loss/text") == [(10, 3.0), (20, 2.0), (30, 1.0)]
    assert history(uri, first.run_id, "loss/flow") == [(20, 1.0)]


def test_an_evaluation_joins_the_run_that_has_ended_and_is_logged_once(uri, tmp_path, capsys):
    tracker = Tracker.start(uri, "scenes", "evaluated", TAGS)
    tracker.finish()
    record = tmp_path / "record.json"
    record.write_text("{}")

    def result(right):
        measures = [share("understanding", "count@3", [True] * right + [False], split=split) for split in ("test", "composition")]
        return Evaluated("understanding", {}, {}, 1.0, [*measures, share("editing", "move", [True])])

    for right in (1, 1, 3):
        log_evaluation(uri, tracker.run_id, result(right), 5000, record)
    assert history(uri, tracker.run_id, "evaluation/understanding/count_3/composition/accuracy") == [(5000, 0.5), (5000, 0.75)]
    run = connect(uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics["evaluation/editing/move/accuracy"] == 1
    assert [file.path for file in connect(uri).list_artifacts(tracker.run_id)] == ["record.json"]
    log_evaluation(uri, "0" * 32, result(1), 5000, record)  # a run of another store
    assert "going on without it" in capsys.readouterr().err


def test_an_unknown_run_id_becomes_a_new_run(uri):
    tracker = Tracker.start(uri, "scenes", "b", TAGS, run_id="0" * 32)
    assert tracker.active and tracker.run_id != "0" * 32
    tracker.finish()
    assert connect(uri).get_run(tracker.run_id).data.tags["variant"] == "tuna2"


def test_a_sweep_started_again_is_the_same_parent(uri):
    first = start_sweep(uri, "scenes", "again")
    end_sweep(uri, first, "KILLED")
    assert connect(uri).get_run(first).info.status == "KILLED"
    assert start_sweep(uri, "scenes", "again") == first and start_sweep(uri, "scenes", "other") != first
    assert connect(uri).get_run(first).info.status == "RUNNING"


def test_artifacts_lie_beside_the_database(uri, tmp_path):
    tracker = Tracker.start(uri, "scenes", "artifacts", TAGS)
    (tmp_path / "config.yaml").write_text("seed: 0")
    tracker.log_artifact(tmp_path / "config.yaml")
    (tmp_path / "000010.png").write_bytes(b"picture")
    tracker.log_artifact(tmp_path / "000010.png", "samples")
    tracker.finish()
    client = connect(uri)
    assert {entry.path for entry in client.list_artifacts(tracker.run_id)} == {"config.yaml", "samples"}
    assert len(list((database_path(uri).parent / "mlruns").rglob("000010.png"))) == 1


def test_a_dead_server_is_one_warning_line_and_no_delay(capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    assert not prepare(uri, "scenes")
    parent = start_sweep(uri, "scenes", "s")
    tracker = Tracker.start(uri, "scenes", "a", TAGS, parent_run_id=parent)
    tracker.log_params({"a": 1})
    tracker.log_metrics({"loss": 1.0}, tokens=1)
    tracker.log_artifact(Path("a.png"))
    tracker.finish()
    end_sweep(uri, parent, "FINISHED")
    assert time.monotonic() - began < 5 and not tracker.active and parent is None
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("warning: MLflow at http://127.0.0.1") and "secret" not in lines[0]


def test_a_store_that_dies_during_the_run_is_survived(uri, capfd, monkeypatch):
    tracker = Tracker.start(uri, "scenes", "dies", TAGS)
    queue = tracker._client._tracking_client.store._async_logging_queue

    def gone(*_, **__):
        raise ConnectionError("connection lost")

    monkeypatch.setattr(queue, "_logging_func", gone)
    tracker.log_metrics({"loss": 1.0}, tokens=1)
    tracker.finish()
    assert not tracker.active
    tracker.log_metrics({"loss": 1.0}, tokens=2)
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1 and "connection lost" in lines[0]


def test_names_and_parameters_are_legal():
    assert legal_name("benchmark/count") == "benchmark/count"
    assert legal_name("V*@1/../x//y/") == "V__1/__/x/y"
    assert flatten({"a": {"b": [1, 2], "c": {}}, "d": None}) == {"a.b": "[1, 2]", "a.c": "{}", "d": "None"}


def test_the_environment_wins_over_the_default(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_uri() == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example:5000")
    assert default_uri() == "http://example:5000"
