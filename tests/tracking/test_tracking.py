import socket
import time
from pathlib import Path

import pytest

from tunalab.evaluation.measure import share
from tunalab.evaluation.whole import Evaluated
from tunalab.tracking import client as mlflow_client
from tunalab.tracking import tracker as sender
from tunalab.tracking.client import connect, database_path, default_uri, legal_name, parameters
from tunalab.tracking.sync import log_evaluation
from tunalab.tracking.tracker import Tracker, end_sweep, log_files, prepare, start_sweep

TAGS = {"sweep": "mask_ratio", "experiment": "scenes", "variant": "tuna2", "mask_ratio": 0.25, "seed": 0}


@pytest.fixture(autouse=True)
def unwarned(monkeypatch):
    monkeypatch.setattr(mlflow_client, "_warned", set())


@pytest.fixture
def uri(store):
    return store


def history(uri, run_id, name):
    return sorted((metric.step, metric.value) for metric in connect(uri).get_metric_history(run_id, name))


def test_metrics_tags_and_parameters_arrive(uri):
    parent = start_sweep(uri, "scenes", "mask_ratio")
    sources = {"scenes/vqa": "2-abc", "manifest/mine": "f" * 64}
    tracker = Tracker(uri, "scenes", "tuna2-seed0", TAGS, parent_run_id=parent, sources=sources)
    tracker.log_params(
        {"objective": {"masking": {"ratio": 0.25}}, "prompts": "x" * 50_000, "many": {str(index): index for index in range(250)}}
    )
    tracker.log_metrics({"benchmark/count": 0.5, "one_step_psnr/0.3": 14.0}, tokens=1000)
    tracker.log_metrics({"benchmark/count": 0.6}, tokens=2500, at=1700000000.0)
    tracker.finish()
    run = connect(uri).get_run(tracker.run_id)
    assert tracker.active and run.info.status == "FINISHED" and tracker.added == 252 + 3
    assert history(uri, tracker.run_id, "benchmark/count") == [(1000, 0.5), (2500, 0.6)]
    times = {metric.step: metric.timestamp for metric in connect(uri).get_metric_history(tracker.run_id, "benchmark/count")}
    assert times[2500] == 1700000000000 < times[1000]
    assert {key: run.data.tags[key] for key in TAGS} == {key: str(value) for key, value in TAGS.items()}
    assert run.data.tags["mlflow.parentRunId"] == parent and run.data.tags["mlflow.runName"] == "tuna2-seed0"
    assert run.data.params["objective.masking.ratio"] == "0.25" and len(run.data.params) == 252
    assert len(run.data.params["prompts"]) <= 500 and "50000 long" in run.data.params["prompts"]
    read = {one.dataset.name: one.dataset.digest for one in run.inputs.dataset_inputs}
    assert read == {"scenes/vqa": "2-abc", "manifest/mine": "f" * 36}


def test_resume_goes_on_without_duplicates(uri, tmp_path):
    first = Tracker(uri, "scenes", "a", TAGS, id_file=tmp_path / "id")
    first.log_params({"a": 1})
    for tokens in (10, 20, 40):  # 30 was lost on its way
        first.log_metrics({"loss/text": 100.0 - tokens}, tokens)
    first.finish("KILLED")
    again = Tracker(uri, "scenes", "a", TAGS, id_file=tmp_path / "id")
    assert again.run_id == first.run_id and connect(uri).get_run(first.run_id).info.status == "RUNNING"
    again.log_params({"a": 2, "b": 1})  # a changed value would be refused by MLflow: parameters stay as first logged
    for tokens in (20, 30, 40, 50):  # repeated from the checkpoint
        again.log_metrics({"loss/text": 100.0 - tokens, "loss/flow": 1.0}, tokens)
    again.log_metrics({"loss/text": 50.0}, tokens=50)
    again.finish()
    run = connect(uri).get_run(first.run_id)
    assert again.active and run.info.status == "FINISHED" and run.data.params == {"a": "1", "b": "1"}
    assert history(uri, first.run_id, "loss/text") == [(tokens, 100.0 - tokens) for tokens in (10, 20, 30, 40, 50)]
    assert history(uri, first.run_id, "loss/flow") == [(tokens, 1.0) for tokens in (20, 30, 40, 50)]


def test_an_evaluation_joins_the_run_that_has_ended_and_is_logged_once(uri, tmp_path, capsys):
    tracker = Tracker(uri, "scenes", "evaluated", TAGS)
    tracker.finish()
    record, picture = tmp_path / "record.json", tmp_path / "colors.png"
    for path in (record, picture):
        path.write_text("{}")

    def result(right):
        measures = [share("understanding", "count@3", [True] * right + [False], split=split) for split in ("test", "composition")]
        return Evaluated("understanding", {}, {}, 1.0, [*measures, share("editing", "move", [True])])

    logged = [log_evaluation(uri, tracker.run_id, result(right), 5000, record, [picture]) for right in (1, 1, 3)]
    assert logged == [True, False, True]
    connect(uri).delete_tag(tracker.run_id, "evaluation.understanding")  # as after a kill before it was set
    assert log_evaluation(uri, tracker.run_id, result(3), 5000, record, [picture])
    assert history(uri, tracker.run_id, "evaluation/understanding/count_3/composition/accuracy") == [(5000, 0.5), (5000, 0.75)]
    run = connect(uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics["evaluation/editing/move/accuracy"] == 1
    assert [file.path for file in connect(uri).list_artifacts(tracker.run_id)] == ["evaluation", "record.json"]
    assert [file.path for file in connect(uri).list_artifacts(tracker.run_id, "evaluation/understanding")]
    assert not log_evaluation(uri, "0" * 32, result(1), 5000, record)  # a run of another store
    assert "going on without it" in capsys.readouterr().err


def test_an_unknown_run_id_becomes_a_new_run(uri, tmp_path):
    (tmp_path / "id").write_text("0" * 32)
    tracker = Tracker(uri, "scenes", "b", TAGS, id_file=tmp_path / "id")
    assert tracker.active and tracker.run_id != "0" * 32
    tracker.finish()
    assert (tmp_path / "id").read_text().strip() == tracker.run_id
    assert connect(uri).get_run(tracker.run_id).data.tags["variant"] == "tuna2"


def until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_run_that_is_deleted_while_it_trains_becomes_a_new_one_with_all_of_it(uri, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sender, "GATHER_SECONDS", 0.01)
    (tmp_path / "config.yaml").write_text("seed: 0", encoding="utf-8")
    tracker = Tracker(uri, "scenes", "deleted", TAGS, id_file=tmp_path / "id", sources={"scenes/vqa": "2"})
    tracker.log_params({"a": 1})
    tracker.log_artifact(tmp_path / "config.yaml")
    tracker.log_metrics({"loss": 1.0}, 1)
    until(lambda: tracker.added == 2)
    first, client = tracker.run_id, connect(uri)
    client.delete_run(first)
    tracker.log_metrics({"loss": 2.0}, 2)
    until(lambda: tracker.run_id not in (None, first) and tracker.added == 5)
    client.delete_run(tracker.run_id)  # and once more, at its very end
    tracker.finish()
    run = client.get_run(tracker.run_id)
    assert tracker.active and run.info.status == "FINISHED" and run.info.lifecycle_stage == "active"
    assert history(uri, tracker.run_id, "loss") == [(1, 1.0), (2, 2.0)] and run.data.params == {"a": "1"}
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["config.yaml"] and run.inputs.dataset_inputs
    assert (tmp_path / "id").read_text().strip() == tracker.run_id
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and f"`mlflow runs restore --run-id {first}` brings the deleted one back" in lines[0]


def test_a_run_deleted_between_two_starts_becomes_a_new_one(uri, tmp_path):
    first = Tracker(uri, "scenes", "between", TAGS, id_file=tmp_path / "id")
    first.finish("KILLED")
    connect(uri).delete_run(first.run_id)
    again = Tracker(uri, "scenes", "between", TAGS, id_file=tmp_path / "id")
    again.log_metrics({"loss": 1.0}, 1)
    again.finish()
    assert again.active and again.run_id != first.run_id and (tmp_path / "id").read_text().strip() == again.run_id
    assert connect(uri).get_run(first.run_id).info.lifecycle_stage == "deleted"


def test_an_experiment_that_is_deleted_has_another_in_its_place(uri, monkeypatch, capfd):
    monkeypatch.setattr(sender, "GATHER_SECONDS", 0.01)
    client = connect(uri)
    parent = start_sweep(uri, "thrown away", "s")
    tracker = Tracker(uri, "thrown away", "a", TAGS, parent_run_id=parent)
    tracker.log_metrics({"loss": 1.0}, 1)
    until(lambda: tracker.added == 1)
    deleted = client.get_experiment_by_name("thrown away").experiment_id
    client.delete_experiment(deleted)
    tracker.log_metrics({"loss": 2.0}, 2)
    tracker.finish()
    end_sweep(uri, parent, "FINISHED")
    found = client.get_experiment(client.get_run(tracker.run_id).info.experiment_id)
    assert tracker.active and found.name == "thrown away (2)" and history(uri, tracker.run_id, "loss") == [(1, 1.0), (2, 2.0)]
    assert f"`mlflow experiments restore --experiment-id {deleted}`" in capfd.readouterr().err
    assert prepare(uri, "thrown away") and start_sweep(uri, "thrown away", "s") not in (None, parent)
    assert client.get_experiment(deleted).lifecycle_stage == "deleted"


def test_an_evaluation_of_a_deleted_run_says_how_it_gets_there(uri, capsys):
    tracker = Tracker(uri, "scenes", "gone", TAGS)
    tracker.finish()
    connect(uri).delete_run(tracker.run_id)
    result = Evaluated("understanding", {}, {}, 1.0, [share("understanding", "count@3", [True])])
    assert not log_evaluation(uri, tracker.run_id, result, 1, None)
    assert "its run is deleted there: `tunalab mlflow-sync RUN_DIR`" in capsys.readouterr().err


def test_a_sweep_started_again_is_the_same_parent_and_gets_its_figures(uri, tmp_path):
    first = start_sweep(uri, "scenes", "again")
    end_sweep(uri, first, "KILLED")
    assert connect(uri).get_run(first).info.status == "KILLED"
    assert start_sweep(uri, "scenes", "again") == first and start_sweep(uri, "scenes", "other") != first
    assert connect(uri).get_run(first).info.status == "RUNNING"
    (tmp_path / "figure6.png").write_bytes(b"picture")
    log_files(uri, first, [tmp_path / "figure6.png"])
    log_files(uri, None, [tmp_path / "figure6.png"])
    assert [file.path for file in connect(uri).list_artifacts(first)] == ["figure6.png"]


def test_artifacts_lie_beside_the_database(uri, tmp_path):
    tracker = Tracker(uri, "scenes", "artifacts", TAGS)
    (tmp_path / "config.yaml").write_text("seed: 0")
    tracker.log_artifact(tmp_path / "config.yaml")
    (tmp_path / "000010.png").write_bytes(b"picture")
    tracker.log_artifact(tmp_path / "000010.png", "samples")
    tracker.log_artifact(tmp_path / "gone.png", "samples")
    tracker.finish()
    client = connect(uri)
    assert tracker.active and {entry.path for entry in client.list_artifacts(tracker.run_id)} == {"config.yaml", "samples"}
    assert len(list((database_path(uri).parent / "mlruns").rglob("000010.png"))) == 1


def test_the_machine_is_watched(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    tracker = Tracker(uri, "scenes", "watched", TAGS, system_metrics=True)
    watched = "system/cpu_utilization_percentage"
    end = time.monotonic() + 60
    while watched not in connect(uri).get_run(tracker.run_id).data.metrics:
        assert time.monotonic() < end
        time.sleep(0.05)
    tracker.finish()
    steps = [step for step, _ in history(uri, tracker.run_id, watched)]
    assert tracker.active and steps == sorted(set(steps)) and connect(uri).get_run(tracker.run_id).info.status == "FINISHED"


def test_a_dead_server_is_told_once_and_no_delay(capsys, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    assert not prepare(uri, "scenes")
    parent = start_sweep(uri, "scenes", "s")
    tracker = Tracker(uri, "scenes", "a", TAGS, parent_run_id=parent, id_file=tmp_path / "run" / "id", system_metrics=True)
    tracker.log_params({"a": 1})
    tracker.log_metrics({"loss": 1.0}, tokens=1)
    tracker.log_artifact(Path("a.png"))
    tracker.finish()
    end_sweep(uri, parent, "FINISHED")
    assert time.monotonic() - began < 5 and not tracker.active and parent is None and tracker.run_id is None
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 2 and lines[0].startswith("warning: MLflow at http://127.0.0.1") and "secret" not in lines[0]
    assert f"4 entries of a are not in MLflow: `tunalab mlflow-sync {tmp_path / 'run'}`" in lines[1]


def test_a_store_that_dies_and_returns_during_the_run_has_everything_once(uri, capfd, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setattr(sender, "GATHER_SECONDS", 0.01)
    monkeypatch.setattr(sender, "RETRY_SECONDS", 0.1)
    tracker = Tracker(uri, "scenes", "dies", TAGS)
    send, answers = MlflowClient.log_batch, 0

    def gone(self, *args, **named):
        nonlocal answers
        answers += 1
        if answers == 1:
            send(self, *args, **named)  # it arrives, its answer does not
        raise ConnectionError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", gone)
        for tokens in range(5):
            tracker.log_metrics({"loss": float(tokens)}, tokens)
        end = time.monotonic() + 60
        while answers < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert not tracker.active
    tracker.log_metrics({"loss": 5.0}, 5)
    tracker.finish()
    assert tracker.active and history(uri, tracker.run_id, "loss") == [(tokens, float(tokens)) for tokens in range(6)]
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1 and "connection lost" in lines[0]


def test_what_a_server_refuses_holds_nothing_else_up(uri, capsys):
    tracker = Tracker(uri, "scenes", "refused", TAGS)
    tracker.log_params({"a": 1})
    tracker._deliver([])
    tracker.log_metrics({"loss": 1.0}, -1)
    connect(uri).log_param(tracker.run_id, "b", "old")
    tracker.log_params({"b": "new"})  # another process was first
    tracker.log_metrics({"loss": 2.0}, 2)
    tracker.finish()
    assert (2, 2.0) in history(uri, tracker.run_id, "loss") and not tracker.active and tracker.lost
    assert connect(uri).get_run(tracker.run_id).info.status == "FINISHED"
    assert "are not in MLflow" in capsys.readouterr().err


def test_names_and_parameters_are_legal():
    assert legal_name("benchmark/count") == "benchmark/count"
    assert legal_name("V*@1/../x//y/") == "V__1/__/x/y"
    assert parameters({"a": {"b": [1, 2], "c": {}}, "d": None}) == {"a.b": "[1, 2]", "a.c": "{}", "d": "None"}


def test_the_environment_wins_over_the_default(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_uri() == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example:5000")
    assert default_uri() == "http://example:5000"


def test_the_file_behind_a_uri_is_the_one_that_the_database_opens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri, name in (
        ("sqlite:///q.db", "q.db"),
        ("sqlite:///q.db?timeout=20", "q.db"),
        (f"sqlite:///{tmp_path}/deep/q.db", "deep/q.db"),
    ):
        assert database_path(uri) == tmp_path / name
    assert database_path("sqlite:///:memory:") is None and database_path("http://localhost:5000") is None
