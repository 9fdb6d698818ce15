"""A sweep of real runs, whose cells and whose driver are killed (kill -9) at random places, ends as an undisturbed one does.

`make test-chaos`. What counts is progress, not time: a kill comes when the sweep has saved so many more steps since the one before,
so a slow or loaded machine takes longer and sees as many kills.
"""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.sweeps import nursery

from tunalab.records.log import read_rows
from tunalab.records.record import Record, read_record
from tunalab.sweeps.cells import is_locked, newest_step, read_history

CELLS, PARALLEL, KILLS, SEED = 24, 2, 24, 5
UNTIL = 0.9  # of all steps: the last kill comes before, so that it finds something to kill
TOKENS = 20_000
EXPERIMENT = f"""\
checkpoint_seconds: 0.3
data: {{rows: 1, row_tokens: 256, lookahead: 12}}
decoder: {{width: 32, layers: 2, mlp: 48}}
head: {{blocks: 1, head_dim: 16, heads: 2, kv_heads: 1, mlp: 48}}
optimizer: {{warmup_steps: 2}}
stages:
  pretrain: {{tokens: {TOKENS * 4 // 5}, masking: true, mix: {{scenes/caption: 0.3, scenes/vqa: 0.5, scenes/text_to_image: 0.2}}}}
  sft: {{tokens: {TOKENS // 5}, lr: 5.0e-4, mix: {{scenes/vqa: 1.0}}}}
sampling: {{steps: 2}}
evaluation: {{points: 2, first: 0.4, levels: [1], groups: 1, easy_vqa: 0, loss_documents: 2, psnr_images: 1, sample_prompts: 0}}
tracking: {{system_metrics: false}}
"""
SWEEP = """\
experiment: tiny
variants: [tuna2]
seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
factors: {objective.masking.ratio: [0.0, 0.5]}
"""
ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]


class Sweep:
    """A checkout with the sweep, and a driver that is started again whenever it is gone."""

    def __init__(self, folder: Path, sweep: str = SWEEP, retries: int = 99) -> None:
        for name, text in (("experiments/tiny", EXPERIMENT), ("sweeps/chaos", sweep)):
            (folder / name).parent.mkdir(parents=True)
            (folder / f"{name}.yaml").write_text(text)
        (folder / "variants").symlink_to(ROOT / "variants")
        self.folder, self.runs, self.retries = folder, folder / "runs" / "chaos", retries
        self.driver: nursery.Nursed | None = None
        self.starts = 0

    def finish(self, *options: str) -> int:
        """The exit code of one driver that is left alone."""
        while (code := self.drive(*options)) is None:
            time.sleep(0.1)
        self.driver = None
        return code

    def drive(self, *options: str) -> int | None:
        """Start the driver where there is none; its exit code once it has ended by itself."""
        if self.driver is not None:
            code = self.driver.poll()
            if code is None or code >= 0:
                return code
        self.starts += 1
        argv = ["python", "-m", "tunalab", "sweep", "chaos", "--parallel", str(PARALLEL)]
        argv += ["--retries", str(self.retries), *options]
        where = {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db",
            "TUNALAB_COMPONENTS": str(self.folder.parent / "components"),
            "PWD": str(self.folder),
        }
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            with (self.folder / "driver.txt").open("ab") as output:
                self.driver = nursery.Nursed(argv, stdout=output, env=os.environ | where)
        finally:
            os.chdir(before)
        return None

    def training(self) -> list[int]:
        """Process ids of cells that run."""
        held = [lock.parent for lock in self.runs.glob("*/lock") if is_locked(lock.parent)]
        attempts = [read_history(run_dir).open for run_dir in held]
        return [int(attempt.job) for attempt in attempts if attempt is not None and attempt.job]

    def saved(self, steps: Mapping[str, int]) -> int:
        """Steps that a kill cannot undo, of all cells: in a checkpoint or in a record. ``steps``: of each, when it is finished."""
        finished = {name for name in steps if (self.runs / name / "record.json").exists()}
        return sum(count if name in finished else min(count, newest_step(self.runs / name)) for name, count in steps.items())

    def records(self) -> dict[str, Record]:
        return {path.parent.name: read_record(path) for path in sorted(self.runs.glob("*/record.json"))}

    def log(self) -> str:
        return (self.folder / "driver.txt").read_text()


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[bytes]"]:
    monkeypatch.setenv(nursery.PLACE, "")  # put back afterwards
    place = tmp_path / "nursery"
    process = nursery.start(place, tmp_path)
    yield process
    place.unlink()
    process.wait(timeout=60)


def results(record: Record) -> dict[str, Any]:
    """All of a record that a run computes; what is left out are seconds, bytes and where it ran."""
    points = [{key: value for key, value in asdict(point).items() if key != "seconds"} for point in record.points]
    return {"points": points, "tokens": record.totals.tokens, "steps": record.totals.steps, "hash": record.run.config_hash}


def logged(sweep: Sweep) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """What MLflow holds: run -> metric -> (step, value) in order; runs of one name are an error."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{sweep.folder}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "tunalab"]
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        if run.data.tags.get("role") == "sweep":
            continue
        assert run.info.run_name not in found, f"{run.info.run_name} is there twice"
        assert run.info.status == "FINISHED", run.info.run_name
        metrics = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        found[run.info.run_name] = {name: sorted((one.step, one.value) for one in history) for name, history in metrics.items()}
    return found


def drive_through(storm: Sweep, steps: Mapping[str, int]) -> tuple[Counter[str], list[int]]:
    """Run the sweep to its end and kill cells and drivers meanwhile: how many of each, and how many steps were saved at each kill.

    The next place is drawn within what is left, so there are ``KILLS``, each after progress, however fast the machine is.
    """
    draws = random.Random(SEED)
    killed: Counter[str] = Counter()
    places: list[int] = []
    began, due = time.monotonic(), 0.0
    while (code := storm.drive()) is None:
        time.sleep(0.02)
        saved, cells = storm.saved(steps), storm.training()
        if saved < due or not cells or len(places) == KILLS or saved == (places or [-1])[-1]:
            continue
        time.sleep(draws.uniform(0, 0.3))  # anywhere between two checkpoints
        cells = storm.training()
        if not cells:
            continue
        what = draws.choices(["cell", "driver", "both"], weights=[6, 2, 1])[0]
        assert storm.driver is not None
        victims = {"cell": [draws.choice(cells)], "driver": [storm.driver.pid], "both": [draws.choice(cells), storm.driver.pid]}[
            what
        ]
        for pid in victims:
            with suppress(ProcessLookupError):  # it ended by itself just now
                os.kill(pid, signal.SIGKILL)
                killed["driver" if pid == storm.driver.pid else "cell"] += 1
        print(f"{time.monotonic() - began:7.2f} s, {saved} of {sum(steps.values())} steps: kill -9 of {what}", flush=True)
        places.append(saved)
        left = max(0, UNTIL * sum(steps.values()) - saved)
        due = saved + draws.uniform(0.2, 1.8) * left / (KILLS - len(places) + 1)
    assert code == 0, storm.log()
    return killed, places


def compare(calm: Sweep, storm: Sweep, killed: Counter[str]) -> int:
    """Everything that both computed is equal, and told once. Returns the number of attempts that were lost."""
    expected, found = calm.records(), storm.records()
    assert len(expected) == CELLS and found.keys() == expected.keys()
    for name in expected:
        assert found[name].run.finished and results(found[name]) == results(expected[name]), name
        rows = [[(row.tokens, row.metrics) for row in read_rows(sweep.runs / name)] for sweep in (calm, storm)]
        assert rows[0] == rows[1], name
        history = read_history(storm.runs / name)
        ends = [attempt.how for attempt in history.attempts]
        assert ends.count("finished") == 1 and ends[-1] == "finished" and set(ends) <= {"killed", "finished"}, (name, ends)
        assert found[name].attempts == history.summary(), name
    deaths = sum(record.attempts.get("killed", 0) for record in found.values())
    # What had its record already is finished; of a driver that dies while it starts a cell, that attempt is lost too.
    assert deaths <= killed.total()
    points, undisturbed = logged(storm), logged(calm)
    assert points.keys() == undisturbed.keys() == expected.keys()
    for name, metrics in points.items():
        for metric, history_of_metric in metrics.items():
            steps = [step for step, _ in history_of_metric]
            assert len(set(steps)) == len(steps), f"{name}: {metric} has a step twice"
        timed = {"cost/seconds"}
        assert {key: metrics[key] for key in metrics.keys() - timed} == {
            key: undisturbed[name][key] for key in undisturbed[name].keys() - timed
        }, name
    return deaths


def test_killed_at_random_it_ends_as_if_undisturbed(tmp_path: Path, processes: object) -> None:
    calm, storm = Sweep(tmp_path / "calm"), Sweep(tmp_path / "storm")
    began = time.monotonic()
    code = calm.finish()
    calm_seconds = time.monotonic() - began
    assert code == 0 and calm.starts == 1, calm.log()
    began = time.monotonic()
    killed, places = drive_through(storm, {name: record.totals.steps for name, record in calm.records().items()})
    seconds = time.monotonic() - began
    assert len(set(places)) == KILLS, places
    deaths = compare(calm, storm, killed)
    print(
        f"{CELLS} cells, {PARALLEL} at a time: {killed['cell']} cells and {killed['driver']} drivers killed, {deaths} attempts "
        f"lost, {storm.starts} drivers; {calm_seconds:.0f} s undisturbed, {seconds:.0f} s with kills"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """``small_disk(size)``: a file system of so many bytes; called again, it has another size from now on."""
    place = tmp_path / "disk"

    def sized(size: int) -> Path:
        options = f"size={size}" if place.exists() else f"size={size},mode=0755"
        made = ["-o", f"remount,{options}"] if place.exists() else ["-t", "tmpfs", "-o", options, "tmpfs"]
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", *made, place], check=True)
        return place

    yield sized
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path, processes: object, small_disk: Callable[[int], Path]) -> None:
    """As root: the run directories lie on a disk that is too small, which is made larger when the sweep has given up."""
    two = "experiment: tiny\nvariants: [tuna2]\nseeds: [0, 1]\n"
    calm, full = Sweep(tmp_path / "calm", two), Sweep(tmp_path / "full", two, retries=1)
    assert calm.finish() == 0, calm.log()
    needed = sum(path.stat().st_size for path in calm.runs.rglob("*") if path.is_file())
    full.runs.parent.mkdir()
    full.runs.symlink_to(small_disk(needed // 3))
    assert full.finish() == 1
    histories = [read_history(path) for path in sorted(full.runs.glob("tuna2-seed?"))]
    assert len(histories) == 2 and all([one.how for one in history.attempts] == ["failed"] * 2 for history in histories)
    assert all("No space left on device" in one.reason for history in histories for one in history.attempts), full.log()
    small_disk(3 * needed)
    assert full.finish("--retry") == 0, full.log()
    expected, found = calm.records(), full.records()
    assert {name: results(one) for name, one in found.items()} == {name: results(one) for name, one in expected.items()}
