"""Real MLflow servers that are away, die and return; several processes at once; processes that are killed; and what it costs."""

import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from math import ceil
from pathlib import Path
from statistics import median

import pytest

from tunalab.records import log as training_log
from tunalab.records.log import Row, append_row, rewind
from tunalab.records.record import read_record
from tunalab.tracking import tracker as sender
from tunalab.tracking.client import connect, quiet_environment
from tunalab.tracking.sync import Kept, sync
from tunalab.tracking.tracker import RUN_ID, Tracker

pytestmark = [pytest.mark.mlflow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
SPAWN = multiprocessing.get_context("spawn")
TAGS = {"sweep": "", "variant": "tuna2"}


class Server:
    """`mlflow server` on a database of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self) -> None:
        stores = [
            "--backend-store-uri",
            f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination",
            str(self.folder / "files"),
        ]
        command = [sys.executable, "-m", "mlflow", "server", *stores, "--port", str(self.port), "--workers", "1"]
        self.process = subprocess.Popen(command, env=quiet_environment(os.environ), start_new_session=True)
        end = time.monotonic() + 300
        while True:
            try:
                return connect(self.uri) and None
            except OSError:
                assert time.monotonic() < end and self.process.poll() is None
                time.sleep(0.5)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path):
    one = Server(tmp_path)
    yield one
    one.kill()


def runs(uri, experiment="tunalab"):
    client = connect(uri)
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def curve(uri, run_id, name="train/text"):
    points = [(metric.step, metric.value) for metric in connect(uri).get_metric_history(run_id, name)]
    assert len({step for step, _ in points}) == len(points)
    return dict(points)


def log_rows(tracker, run_dir, first, last, pause=0.0):
    for tokens in range(first, last):
        row = Row(tokens, time.time(), {"train/text": float(tokens), "train/flow": -float(tokens)})
        append_row(run_dir, row)
        tracker.log_metrics(row.metrics, row.tokens, row.time)
        time.sleep(pause)


def test_a_server_that_is_away_at_the_start_dies_and_returns(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sender, "RETRY_SECONDS", 1.0)
    monkeypatch.setattr(sender, "GATHER_SECONDS", 0.2)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("seed: 0\n")
    tracker = Tracker(server.uri, "tunalab", "run", TAGS, id_file=run_dir / RUN_ID)
    assert not tracker.active
    tracker.log_artifact(run_dir / "config.yaml")
    log_rows(tracker, run_dir, 0, 50)
    server.start()
    until(lambda: tracker.active and tracker.added >= 100)
    server.kill()
    log_rows(tracker, run_dir, 50, 100)
    until(lambda: not tracker.active)
    server.start()
    log_rows(tracker, run_dir, 100, 150)
    tracker.finish()
    (run,) = runs(server.uri)
    assert run.info.run_id == (run_dir / RUN_ID).read_text().strip() and run.info.status == "FINISHED"
    assert curve(server.uri, run.info.run_id) == {tokens: float(tokens) for tokens in range(150)}
    assert [one.path for one in connect(server.uri).list_artifacts(run.info.run_id)] == ["config.yaml"]
    assert sum("warning: MLflow at" in line for line in capfd.readouterr().err.splitlines()) == 1


def test_a_server_that_is_gone_at_the_end_gets_the_rest_by_sync(server, tmp_path, record, capfd):
    from omegaconf import OmegaConf

    run_dir = tmp_path / "tuna2-seed0"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(record().config))
    server.start()
    tracker = Tracker(server.uri, "tunalab", "tuna2-seed0", TAGS, id_file=run_dir / RUN_ID)
    log_rows(tracker, run_dir, 0, 50)
    until(lambda: tracker.added == 100)
    server.kill()
    log_rows(tracker, run_dir, 50, 100)
    began = time.monotonic()
    tracker.finish()
    assert time.monotonic() - began < sender.PATIENCE_SECONDS
    assert f"tunalab mlflow-sync {run_dir}" in capfd.readouterr().err
    server.start()
    assert sync(server.uri, "tunalab", Kept.of_run_dir(run_dir)) > 100
    assert sync(server.uri, "tunalab", Kept.of_run_dir(run_dir)) == 0
    (run,) = runs(server.uri)
    assert curve(server.uri, run.info.run_id) == {tokens: float(tokens) for tokens in range(100)}


def begin_together(uri: str, number: int) -> None:
    tracker = Tracker(uri, "tunalab", f"run{number}", TAGS)
    tracker.log_metrics({"loss": float(number)}, 1)
    tracker.finish()
    sys.exit(not tracker.active)


def test_four_processes_begin_on_a_database_that_is_not_there(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    processes = [SPAWN.Process(target=begin_together, args=(uri, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(run.data.metrics["loss"] for run in runs(uri)) == [0.0, 1.0, 2.0, 3.0]


def train_like(uri: str, run_dir: Path, last: int) -> None:
    """A run without a model: a row a step, a checkpoint (the number of the step) every 20."""
    saved = run_dir / "checkpoint"
    first = int(saved.read_text()) if saved.exists() else 0
    kept = rewind(run_dir, first - 1)
    tracker = Tracker(uri, "tunalab", "run", TAGS, id_file=run_dir / RUN_ID)
    for row in kept:
        tracker.log_metrics(row.metrics, row.tokens, row.time)
    (run_dir / "began").touch()
    for tokens in range(first, last):
        log_rows(tracker, run_dir, tokens, tokens + 1, pause=0.02)
        if (tokens + 1) % 20 == 0:
            saved.write_text(str(tokens + 1))
    tracker.finish()


def test_killed_again_and_again_nothing_is_missing_and_nothing_twice(tmp_path):
    uri, last = f"sqlite:///{tmp_path}/mlflow.db", 400
    for wait in (0.3, 1.5, 5.5):
        process = SPAWN.Process(target=train_like, args=(uri, tmp_path, last))
        process.start()
        until(lambda: (tmp_path / "began").exists())
        time.sleep(wait + random.random() / 4)
        process.kill()
        process.join()
        (tmp_path / "began").unlink()
    process = SPAWN.Process(target=train_like, args=(uri, tmp_path, last))
    process.start()
    process.join()
    (run,) = runs(uri)
    assert run.info.status == "FINISHED"
    for name, sign in (("train/text", 1), ("train/flow", -1)):
        assert curve(uri, run.info.run_id, name) == {tokens: float(sign * tokens) for tokens in range(last)}
    assert [row.tokens for row in training_log.read_rows(tmp_path)] == list(range(last))


@pytest.mark.parametrize("kind", ["sqlite", "http"])
def test_logging_takes_less_than_a_hundredth_of_the_time_of_training(kind, server, tmp_path, monkeypatch, capsys):
    """Against the seconds that Tuna-2 trains for, at the tiny scale: a call, which training waits for, against a step; and the
    processor time of all threads, which takes from training where a run has a single core, against the whole run: once (imports,
    the run's beginning), a delivery of all rows that gather, and MLflow's system metrics. Deliveries follow one another here: a
    processor that wakes from idling takes up to ten times as long for the same, which says nothing of one that trains.
    """
    if kind == "http":
        server.start()
    totals = read_record(ROOT / "results" / "figure6" / "tuna2-seed0.json").totals
    row_seconds, step_seconds = totals.seconds / training_log.ROWS, totals.seconds / totals.steps
    rows = ceil(sender.GATHER_SECONDS / row_seconds)  # of a delivery
    monkeypatch.setattr(sender, "GATHER_SECONDS", 0.001)
    delivered, deliver = [], Tracker._deliver

    def timed(self, unsent):
        start = time.thread_time()
        deliver(self, unsent)
        delivered.append(time.thread_time() - start)

    monkeypatch.setattr(Tracker, "_deliver", timed)
    began = time.process_time()
    tracker = Tracker(
        server.uri if kind == "http" else f"sqlite:///{tmp_path}/mlflow.db", "tunalab", "run", TAGS, system_metrics=True
    )
    once = time.process_time() - began
    names, calls = [f"train/{name}" for name in ("text", "flow", "gradient_norm", "learning_rate")], []
    for number in range(50):
        before = len(delivered)
        for row in range(rows):
            start = time.perf_counter()
            tracker.log_metrics(dict.fromkeys(names, 1.0), rows * number + row)
            calls.append(time.perf_counter() - start)
        until(lambda: len(delivered) > before and not tracker._sender._unsent)  # noqa: B023
    began = time.process_time()
    for _ in range(20):
        tracker._monitor.collect_metrics()
    sample = (time.process_time() - began) / 20
    tracker.finish()
    assert tracker.active
    of_step, delivery = median(calls) / step_seconds, median(delivered[10:])
    samples = totals.seconds / tracker._monitor.sampling_interval
    deliveries = training_log.ROWS / rows + samples / tracker._monitor.samples_before_logging
    in_all = (once + deliveries * delivery + samples * sample) / totals.seconds
    with capsys.disabled():
        print(
            f"\n{kind}: a call takes {of_step:.3%} of a step; all threads {in_all:.2%} of the run: {once:.1f} s once, "
            f"{deliveries:.0f} deliveries of {1000 * delivery:.0f} ms, {samples:.0f} samples of {1000 * sample:.0f} ms"
        )
    assert of_step < 0.01 and in_all < 0.01  # calls: even if every step had a row


def until(true, seconds=300):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
