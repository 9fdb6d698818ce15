"""Two processes train one run: over gloo on CPU, started as torchrun and SLURM start them (two_ranks.py says what they do)."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import QUICK
from tests.training.test_module import make_harness
from tests.training.test_resume import assert_same, final
from tests.training.two_ranks import KILL_AT, STOP_AT, STRATEGIES, config_of
from tunalab.data.stream import Step, StepLoader, open_stream
from tunalab.errors import EXIT_STOPPED, UserError
from tunalab.evaluation.suite import evaluate
from tunalab.exporting import load_run
from tunalab.frontends.components.handle import Components
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.model.flops import flop_costs
from tunalab.training.checkpoints import CheckpointStore
from tunalab.training.joint import JointSteps
from tunalab.training.run import train
from tunalab.training.state import read_saved
from tunalab.training.weights import learnt_weights

pytestmark = pytest.mark.timeout(900)  # the first test waits for all processes
SCRIPT = "tests.training.two_ranks"
ROOT = Path(__file__).parents[2]
# Launchers may leave their own variables behind; a test started inside SLURM must not be taken for a task of it.
FOREIGN = ("SLURM_", "TORCHELASTIC_", "MASTER_")


def environment(components: Path, **variables: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    return {**plain, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "TUNALAB_COMPONENTS": str(components), **variables}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def kill_both(folder: Path, components: Path) -> list[int]:
    """Two tasks of a SLURM step that are killed without warning; their exit codes."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
    place = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1"}
    port = free_port()
    command = [sys.executable, "-m", SCRIPT, str(folder), "kill"]
    tasks = []
    for rank in ("0", "1"):
        variables = {**step, **place, "MASTER_PORT": port, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        with (folder / f"kill-rank{rank}.log").open("w") as log:
            tasks.append(subprocess.Popen(command, env=environment(components, **variables), stdout=log, stderr=log, cwd=ROOT))
    return [task.wait(timeout=600) for task in tasks]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, quick_components: tuple[Path, ComponentSettings]) -> Path:
    """Where two_ranks.py has left its runs and reports."""
    folder = tmp_path_factory.mktemp("two_ranks")
    components = quick_components[0]
    codes = kill_both(folder, components)
    assert codes == [-signal.SIGKILL] * 2, (folder / "kill-rank0.log").read_text()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    done = subprocess.run(
        [*torchrun, "-m", SCRIPT, str(folder), "all"], env=environment(components), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def report(folder: Path, key: str) -> list[Any]:
    """What every rank returned or raised."""
    return [json.loads((folder / f"all-rank{rank}.json").read_text())[key]["outcome"] for rank in (0, 1)]


def printed(folder: Path, key: str, rank: int = 0) -> str:
    return str(json.loads((folder / f"all-rank{rank}.json").read_text())[key]["printed"])


@pytest.fixture(scope="session")
def one_process(
    folder: Path, quick_components: tuple[Path, ComponentSettings]
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The first steps of the same run on one process, which reads the documents of both ranks: losses, weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNALAB_COMPONENTS", str(quick_components[0]))
        patch.setattr(ComponentSettings, "seeded", staticmethod(lambda seed: QUICK))
        return first_steps(folder)


def first_steps(folder: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    config = config_of("none")
    components = Components(ComponentSettings.seeded(0))
    tokenizer = components.tokenizer_for(config.decoder)
    harness = make_harness(config)
    optimizer = harness.configure_optimizers()
    harness.optimizers = lambda: optimizer  # type: ignore[method-assign, assignment]
    pixels = harness.model.frontend.space.token_pixels
    rejects = folder / "rejects.jsonl"
    loaders = [StepLoader(open_stream(config, tokenizer, pixels, rejects, rank=rank, world_size=2), 0) for rank in (0, 1)]
    joint = JointSteps(loaders[0], list(config.stages), flop_costs(config, tokenizer.vocabulary))
    losses = []
    for number, (first, second) in enumerate(zip(*loaders)):
        if number == STOP_AT:
            break
        both = Step(first.stage, 0, 0.0, [*first.batches, *second.batches], 0, {})
        step = joint._joint(both, [joint._tell(first, None), joint._tell(second, None)])
        losses.append(harness.training_step(step, number))
    return losses, {name: tensor.detach() for name, tensor in harness.learnt().items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_compute_what_one_does(
    strategy: str, folder: Path, one_process: tuple[list[dict[str, float]], dict[str, torch.Tensor]]
) -> None:
    losses, weights = one_process
    for seen in report(folder, f"{strategy} losses"):
        assert len(seen) == STOP_AT
        for step, expected in zip(seen, losses, strict=True):
            assert step == pytest.approx(expected, rel=1e-6, abs=1e-6)
    stopped = CheckpointStore(folder / f"{strategy}-stopped" / "checkpoints").newest_valid()
    assert stopped is not None
    found = learnt_weights(stopped, raw=True)
    assert found.steps == STOP_AT
    assert weights.keys() <= found.weights.keys()
    moved = 0.0
    for name, expected in weights.items():
        torch.testing.assert_close(found.weights[name], expected, rtol=0, atol=1e-6, msg=name)
        moved = max(moved, (expected - learnt_weights(stopped).weights[name]).abs().max().item())
    assert moved > 1e-4  # the average is behind: the weights were trained


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_signal_on_one_rank_stops_both_with_a_checkpoint(strategy: str, folder: Path) -> None:
    assert report(folder, f"{strategy} stopped") == [EXIT_STOPPED] * 2
    assert "start the same run again" in printed(folder, f"{strategy} stopped")
    assert printed(folder, f"{strategy} stopped", rank=1) == ""
    newest = CheckpointStore(folder / f"{strategy}-stopped" / "checkpoints").newest_valid()
    assert newest is not None and newest.name == f"step-{STOP_AT:09d}"
    assert read_saved(newest).world_size == 2


def test_killed_without_warning_and_resumed_is_the_same_run(folder: Path) -> None:
    assert report(folder, "fsdp2 whole") == report(folder, "killed resumed") == [0, 0]
    resumed_from = printed(folder, "killed resumed").splitlines()[0]
    assert 0 < int(resumed_from.rsplit("step-")[1]) < KILL_AT
    assert_same(final(folder / "fsdp2-whole"), final(folder / "killed"))


def test_a_damaged_shard_is_named_and_the_checkpoint_before_it_used(folder: Path) -> None:
    said = printed(folder, "fsdp2 resumed")
    assert f"step-{STOP_AT:09d} is damaged (tensors/__1_0.distcp does not match its hash)" in said
    assert f"resuming from {folder / 'fsdp2' / 'checkpoints' / f'step-{STOP_AT - 1:09d}'}" in said
    assert_same(final(folder / "fsdp2-whole"), final(folder / "fsdp2"))


def test_stopped_and_resumed_replicas_are_the_same_run(folder: Path) -> None:
    assert report(folder, "ddp whole") == report(folder, "ddp resumed") == [0, 0]
    assert_same(final(folder / "ddp-whole"), final(folder / "ddp"))


def test_shards_are_shared_out(folder: Path) -> None:
    """Of a sharded run each rank writes about half of what there is."""
    newest = CheckpointStore(folder / "fsdp2-whole" / "checkpoints").steps()[-1]
    first, second = ((newest / "tensors" / f"__{rank}_0.distcp").stat().st_size for rank in (0, 1))
    assert 0.7 < first / second < 1.4


def test_evaluation_is_that_of_the_exported_weights(folder: Path) -> None:
    run_dir = folder / "fsdp2-whole"
    record = json.loads((run_dir / "record.json").read_text())
    assert record["environment"]["processes"] == 2 and len(record["points"]) == 2
    loaded = load_run(run_dir)
    expected = evaluate(loaded.model, loaded.tokenizer, loaded.config)
    point = record["points"][-1]
    assert point["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert {name: score["correct"] for name, score in point["benchmarks"].items()} == {
        name: score["correct"] for name, score in expected["benchmarks"].items()
    }


def test_another_number_of_processes_is_refused_unless_allowed(folder: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(folder / "fsdp2-stopped", run_dir)
    with pytest.raises(UserError, match="written by 2 processes, these are 1: .*distribution.other_world"):
        train(config_of("none"), run_dir)
    before = final_checkpoint(run_dir)
    assert train(config_of("none", distribution__other_world=True), run_dir) == 0
    after = final_checkpoint(run_dir)
    assert after.world_size == 1 and after.progress["steps"] > before.progress["steps"]
    assert after.progress["tokens"] >= 7500


def final_checkpoint(run_dir: Path) -> Any:
    newest = CheckpointStore(run_dir / "checkpoints").newest_valid()
    assert newest is not None
    return read_saved(newest)


def test_an_error_of_one_rank_ends_all(folder: Path) -> None:
    first, second = report(folder, "failing source")
    assert (
        second == "UserError: broken: 2 of 100 documents rejected"
        and first == "UserError: rank 1: broken: 2 of 100 documents rejected"
    )


def test_a_full_disk_of_one_rank_leaves_the_checkpoints_as_they_were(folder: Path) -> None:
    first, second = report(folder, "full disk")
    assert "No space left" in second and first.startswith("RankFailed: rank 1") and "No space left" in first
    store = CheckpointStore(folder / "store")
    assert [path.name for path in store.steps()] == ["step-000000001"] and store.newest_valid() is not None
    assert not list((folder / "store").glob(".*"))
