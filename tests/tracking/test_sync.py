"""Records and run directories on their way into a store that knows nothing of them, or part of it."""

from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.evaluation.measure import share
from tunalab.evaluation.whole import Evaluated
from tunalab.records.log import Row, append_row
from tunalab.records.record import read_record, write_record
from tunalab.tracking.client import connect
from tunalab.tracking.sync import Kept, sync
from tunalab.tracking.tracker import RUN_ID, Tracker


def runs_of(uri, experiment, role=None):
    client = connect(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=100)
    return [run for run in found if run.data.tags.get("role") == role]


def histories(uri, run):
    """Metric -> its (step, value), each once."""
    client, found = connect(uri), {}
    for name in run.data.metrics:
        points = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert len({step for step, _ in points}) == len(points), name
        found[name] = dict(points)
    return found


@pytest.fixture
def run_dir(tmp_path, record):
    """A finished run as it lies on disk: record, configuration, training log, pictures; MLflow has never seen it."""
    folder = tmp_path / "runs" / "mine" / "tuna2-seed0"
    for inner in ("samples", "evaluation/editing-ab12"):
        (folder / inner).mkdir(parents=True)
    one = record()
    measured = Evaluated("editing", {}, {"tokens": one.totals.tokens}, 1.0, [share("editing", "move", [True, False])])
    one = replace(one, evaluation=[measured])
    write_record(folder / "record.json", one)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(one.config))
    (folder / "samples" / "tokens-1.png").write_bytes(b"grid")
    (folder / "evaluation" / "editing-ab12" / "move.png").write_bytes(b"edits")
    for tokens in (1000, 2000, 3000):
        append_row(folder, Row(tokens, 1700000000.0 + tokens, {"train/text": 4000.0 / tokens}))
    return folder


def test_a_run_directory_becomes_the_run_that_it_would_have_logged(store, run_dir):
    kept = Kept.of_run_dir(run_dir)
    assert sync(store, "directory", kept) > 100 and sync(store, "directory", kept) == 0
    (run,) = runs_of(store, "directory")
    assert (run_dir / RUN_ID).read_text().strip() == run.info.run_id and run.info.status == "FINISHED"
    assert run.info.start_time == 1700001000000
    logged = histories(store, run)
    assert logged["train/text"] == {1000: 4.0, 2000: 2.0, 3000: 4 / 3}
    assert logged["benchmark/ocr"] == {point.tokens: point.benchmarks["ocr"].accuracy for point in kept.record.points}
    assert logged["evaluation/editing/move/accuracy"] == {kept.record.points[-1].tokens: 0.5}
    assert run.data.tags["variant"] == "tuna2" and run.data.params["objective.masking.ratio"] == "0.25"
    client = connect(store)
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == {"config.yaml", "record.json", "samples", "evaluation"}
    assert [one.path for one in client.list_artifacts(run.info.run_id, "evaluation/editing")] == ["evaluation/editing/move.png"]


def test_what_a_run_lost_on_its_way_is_added_and_nothing_else(store, run_dir):
    kept = Kept.of_run_dir(run_dir)
    tags = {"sweep": "", "variant": "tuna2"}
    live = Tracker(store, "lost", kept.name, tags, id_file=run_dir / RUN_ID)
    for tokens in (1000, 3000):
        live.log_metrics({"train/text": 4000.0 / tokens}, tokens)
    live.finish("KILLED")
    assert sync(store, "lost", kept) > 0 and sync(store, "lost", kept) == 0
    (run,) = runs_of(store, "lost")
    assert run.info.run_id == live.run_id and run.info.status == "FINISHED" and run.data.tags["arm"] == "tuna2"
    assert histories(store, run)["train/text"] == {1000: 4.0, 2000: 2.0, 3000: 4 / 3}


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_what_was_deleted_there_is_brought_again(store, run_dir, capsys, what):
    name = f"deleted {what}"
    assert main(["mlflow-sync", str(run_dir), "--uri", store, "--experiment", name]) == 0
    (run,) = runs_of(store, name)
    client = connect(store)
    client.delete_run(run.info.run_id) if what == "run" else client.delete_experiment(run.info.experiment_id)
    assert main(["mlflow-sync", str(run_dir), "--uri", store, "--experiment", name]) == 0
    (again,) = runs_of(store, name if what == "run" else f"{name} (2)")
    assert again.info.run_id != run.info.run_id and histories(store, again) == histories(store, run)
    capsys.readouterr()
    assert main(["mlflow-sync", str(run_dir), "--uri", store, "--experiment", name]) == 0
    assert "nothing to add" in capsys.readouterr().out


def test_a_run_without_a_record_has_its_curve(store, run_dir):
    (run_dir / "record.json").unlink()
    sync(store, "unfinished", Kept.of_run_dir(run_dir))
    (run,) = runs_of(store, "unfinished")
    assert run.info.status == "KILLED" and set(histories(store, run)["train/text"]) == {1000, 2000, 3000}
    with pytest.raises(UserError, match="no run directory"):
        Kept.of_run_dir(run_dir.parent)


def test_records_made_elsewhere_become_runs_once(store, tmp_path, records, capsys):
    made = [replace(one, config={**one.config, "tracking": {**one.config["tracking"], "sweep": "far"}}) for one in records(seeds=1)]
    for one in made:
        write_record(tmp_path / f"{one.run.name}.json", one)
    call = ["mlflow-sync", "--records", str(tmp_path), "--uri", store, "--experiment", "elsewhere"]
    assert main(call) == 0 and capsys.readouterr().out.count(" added\n") == 3
    assert main(call) == 0 and capsys.readouterr().out.count("nothing to add") == 3
    runs = runs_of(store, "elsewhere")
    assert {run.data.tags["variant"] for run in runs} == {"tuna", "tuna_r", "tuna2"} and len(runs) == 3
    (parent,) = runs_of(store, "elsewhere", role="sweep")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id} and parent.info.status == "FINISHED"
    for run in runs:
        assert len(histories(store, run)["accuracy/ocr"]) == len(made[0].points)


def test_the_command_takes_all_runs_and_leaves_those_in_training_alone(store, run_dir, tmp_path, monkeypatch, capsys):
    from tunalab.sweeps.cells import take_lock

    monkeypatch.chdir(tmp_path)
    call = ["mlflow-sync", "--uri", store, "--experiment", "command"]
    lock = take_lock(run_dir)
    assert main(call) == 0 and "is being trained" in capsys.readouterr().out
    lock.close()
    assert main(call) == 0 and "runs/mine/tuna2-seed0: " in capsys.readouterr().out
    (run_dir / "record.json").write_text("{}")
    assert main(call) == 1 and "record.json: schema" in capsys.readouterr().err
    assert main([*call, "--records", "nowhere"]) == 2 and main([*call, str(run_dir), "--records", "nowhere"]) == 2
    assert main(["mlflow-sync", "--uri", "http://127.0.0.1:9"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines) and "http://127.0.0.1:9 failed" in lines[2]


def test_a_mistyped_run_directory_makes_no_database(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["mlflow-sync", "runs/nowhere", "--uri", f"sqlite:///{tmp_path}/mlflow.db"]) == 2
    assert capsys.readouterr().err == "error: runs/nowhere: there is no such run directory\n" and not list(tmp_path.iterdir())


def test_a_run_goes_to_its_own_store(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = read_record(run_dir / "record.json")
    for uri, code in (("sqlite:///own.db", 0), ("http://127.0.0.1:9", 1)):
        config = {**made.config, "tracking": {**made.config["tracking"], "uri": uri}}
        write_record(run_dir / "record.json", replace(made, config=config))
        assert main(["mlflow-sync", str(run_dir)]) == code
        assert (tmp_path / "own.db").exists() and not (tmp_path / "mlflow.db").exists()
    assert "127.0.0.1:9" in capsys.readouterr().err
