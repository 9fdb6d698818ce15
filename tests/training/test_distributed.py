"""Two processes train one run: over gloo on CPU, started as torchrun and SLURM start them (two_ranks.py says what they do)."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tolerances import model_terms, relative
from tests.training.test_module import make_harness
from tests.training.test_resume import assert_same, final
from tests.training.two_ranks import KILL_AT, MUON, STOP_AT, config_of
from tunalab.data.stream import Step, StepLoader, open_stream
from tunalab.errors import EXIT_STOPPED, UserError
from tunalab.evaluation.along import evaluate
from tunalab.frontends.components.store import Components
from tunalab.model.flops import flop_costs
from tunalab.trained.model import load
from tunalab.training.checkpoints import CheckpointStore, learnt_weights, read_saved
from tunalab.training.joint import JointSteps
from tunalab.training.run import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first test waits for all processes
SCRIPT = "tests.training.two_ranks"
ROOT = Path(__file__).parents[2]
CLOSE = relative(model_terms(config_of("none"), 256))
# Launchers may leave their own variables behind; a test started inside SLURM must not be taken for a task of it.
FOREIGN = ("SLURM_", "TORCHELASTIC_", "MASTER_")


def environment(components: Path, **variables: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    return {**plain, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "TUNALAB_COMPONENTS": str(components), **variables}


def free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in probes]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, quick_components: Path) -> Path:
    """Where two_ranks.py has left its runs and reports."""
    folder = tmp_path_factory.mktemp("two_ranks")
    variables = environment(quick_components)
    ports = free_ports(2)
    started = []
    for rank in (0, 1):
        with log_of(folder, rank).open("w") as log:
            command = [sys.executable, "-m", SCRIPT, str(folder), str(rank), *ports]
            started.append(subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=ROOT))
    try:
        codes = [process.wait(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    # At last the second dies. No launcher is there to end the first: it must come to its end by itself.
    assert codes == [1, -signal.SIGKILL], "".join(log_of(folder, rank).read_text() for rank in (0, 1))
    return folder


def log_of(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.log"


def report(folder: Path, key: str) -> list[Any]:
    """What every rank returned or raised."""
    return [json.loads((folder / f"rank{rank}.json").read_text())[key]["outcome"] for rank in (0, 1)]


def printed(folder: Path, key: str, rank: int = 0, stream: str = "printed") -> str:
    return str(json.loads((folder / f"rank{rank}.json").read_text())[key][stream])


@pytest.fixture(scope="session")
def one_process(folder: Path, quick_components: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The same run on one process, which reads the documents of both ranks: losses of every step, weights at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNALAB_COMPONENTS", str(quick_components))
        return alone(folder)


def alone(folder: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    config = config_of("none")
    components = Components()
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
        both = Step(first.stage, 0, 0.0, [*first.batches, *second.batches], 0, {})
        step = joint._joint(both, [joint._summary(first, None), joint._summary(second, None)])
        losses.append(harness.training_step(step, number))
    return losses, {name: tensor.detach() for name, tensor in harness.learnt().items()}


def moved(steps: int) -> float:
    """How far weights may be apart: AdamW moves one by at most lr a step, and as far off as its gradient is.

    Forward and backward passes are three passes' sums one after the other.
    """
    return steps * max(stage.lr for stage in config_of("none").stages.values()) * relative(3 * model_terms(config_of("none"), 256))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_compute_what_one_does(
    strategy: str, folder: Path, one_process: tuple[list[dict[str, float]], dict[str, torch.Tensor]]
) -> None:
    losses, weights = one_process
    assert report(folder, f"{strategy} whole") == [0, 0]
    for observed in report(folder, f"{strategy} losses"):
        assert len(observed) == len(losses) > KILL_AT
        for step, expected in zip(observed, losses, strict=True):
            assert step == pytest.approx(expected, rel=CLOSE)
    (last,) = CheckpointStore(folder / f"{strategy}-whole" / "checkpoints").steps()[-1:]
    found, averaged = learnt_weights(last, raw=True), learnt_weights(last)
    assert found.steps == len(losses)
    assert weights.keys() <= found.weights.keys()
    for name, expected in weights.items():
        torch.testing.assert_close(found.weights[name], expected, rtol=0, atol=moved(len(losses)), msg=name)
    # The average is behind, which it would not be of weights that were not trained.
    assert max((expected - averaged.weights[name]).abs().max().item() for name, expected in weights.items()) > 1e-4


@pytest.mark.parametrize("strategy", ["ddp", "hybrid"])
def test_a_signal_on_one_rank_stops_both_with_a_checkpoint(strategy: str, folder: Path) -> None:
    assert report(folder, f"{strategy} stopped") == [EXIT_STOPPED] * 2
    assert "start the same run again" in printed(folder, f"{strategy} stopped")
    assert printed(folder, f"{strategy} stopped", rank=1) == ""
    newest = CheckpointStore(folder / f"{strategy}-stopped" / "checkpoints").newest_valid()
    assert newest is not None and newest.name == f"step-{STOP_AT:09d}"
    assert read_saved(newest).world_size == 2


def test_copies_of_shards_are_kept_equal(folder: Path) -> None:
    """Two copies of a model in one shard each (shard_size=1) are what two shards of one model are."""
    hybrid, ddp = (
        learnt_weights(CheckpointStore(folder / f"{strategy}-stopped" / "checkpoints").steps()[-1], raw=True).weights
        for strategy in ("hybrid", "ddp")
    )
    for name, expected in ddp.items():
        torch.testing.assert_close(hybrid[name], expected, rtol=0, atol=moved(STOP_AT), msg=name)


def test_killed_without_warning_and_resumed_is_the_same_run(folder: Path) -> None:
    """The newest checkpoint, of which a shard is damaged, is named, and the one before it used."""
    assert report(folder, "killed") == ["killed"] * 2
    assert report(folder, "killed resumed") == [0, 0]
    output = printed(folder, "killed resumed")
    assert f"step-{KILL_AT:09d} is damaged (tensors/shard-00002-model-00001-of-00001.safetensors does not match its hash)" in output
    assert f"resuming from {folder / 'killed' / 'checkpoints' / f'step-{KILL_AT - 1:09d}'}" in output
    assert_same(final(folder / "fsdp2-whole"), final(folder / "killed"))


def test_stopped_and_resumed_replicas_are_the_same_run(folder: Path) -> None:
    assert report(folder, "ddp resumed") == [0, 0]
    assert_same(final(folder / "ddp-whole"), final(folder / "ddp"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_branch_of_a_trunk_is_the_same_run(strategy: str, folder: Path) -> None:
    assert report(folder, f"{strategy} trunk") == report(folder, f"{strategy} branch") == [0, 0]
    assert "beginning from" in printed(folder, f"{strategy} branch")
    assert_same(final(folder / f"{strategy}-whole"), final(folder / f"{strategy}-branch"))
    record = json.loads((folder / f"{strategy}-branch" / "record.json").read_text())
    assert record["lineage"]["kind"] == "trunk" and len(record["points"]) == 2


def test_shards_are_shared_out(folder: Path) -> None:
    """Of a sharded run each rank writes about half of what there is."""
    newest = CheckpointStore(folder / "fsdp2-whole" / "checkpoints").steps()[-1]
    first, second = ((newest / "tensors" / f"shard-0000{rank}-model-00001-of-00001.safetensors").stat().st_size for rank in (1, 2))
    assert 0.7 < first / second < 1.4


def test_evaluation_is_that_of_the_exported_weights(folder: Path, tmp_path: Path) -> None:
    run_dir = folder / "fsdp2-whole"
    record = json.loads((run_dir / "record.json").read_text())
    assert record["environment"]["processes"] == 2 and len(record["points"]) == 2
    load(run_dir, "cpu").save_pretrained(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
    loaded = load(tmp_path / "out", "cpu")
    expected = evaluate(loaded.model, loaded.tokenizer, loaded.config)
    point = record["points"][-1]
    assert point["losses"] == pytest.approx(expected["losses"], rel=CLOSE)
    assert {name: score["correct"] for name, score in point["benchmarks"].items()} == {
        name: score["correct"] for name, score in expected["benchmarks"].items()
    }


def test_the_death_of_a_rank_ends_the_other(folder: Path) -> None:
    output = log_of(folder, 0).read_text()
    assert re.search("Connection (closed|reset) by peer", output)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("other devices", r"distribution.devices=3, but 2 started: start it as torchrun --nproc-per-node 3 "),
        ("locked", "locked is being trained by another process"),
        ("three refused", "was written by 3 processes, these are 2: .*distribution.other_world=true"),
    ],
)
def test_a_mistake_is_told_once_and_ends_both(key: str, message: str, folder: Path) -> None:
    assert report(folder, key) == [2, 2]
    assert re.fullmatch(f"error: .*{message}.*\n", printed(folder, key, stream="told"))
    assert printed(folder, key, rank=1, stream="told") == ""


def test_two_processes_go_on_with_what_three_wrote(folder: Path) -> None:
    assert report(folder, "three") == [EXIT_STOPPED] * 2
    assert "3 processes wrote it, 2 go on" in printed(folder, "three")
    last = final_checkpoint(folder / "three")
    assert last.world_size == 2 and last.progress["steps"] == STOP_AT + 1


def test_blocks_gathered_in_bfloat16_compute_about_the_same(folder: Path) -> None:
    assert report(folder, "bf16") == [0, 0]
    (halves, _), (whole, _) = report(folder, "bf16 losses"), report(folder, "fsdp2 losses")
    first, expected = ({name: step[name] for name in ("text", "flow", "gradient_norm")} for step in (halves[0], whole[0]))
    assert first == pytest.approx(expected, rel=2e-2) and first != expected
    assert {
        tensor.dtype for tensor in learnt_weights(CheckpointStore(folder / "bf16" / "checkpoints").steps()[-1]).weights.values()
    } == {torch.float32}


def test_moments_of_muon_survive_a_stop_in_shards(folder: Path) -> None:
    assert [report(folder, f"bf16 {how}") for how in ("stopped", "resumed")] == [[EXIT_STOPPED] * 2, [0, 0]]
    whole = final(folder / "bf16")
    assert any(name.endswith(".momentum_buffer") for name in whole["tensors"])
    assert_same(whole, final(folder / "bf16-parts"))


def test_muon_orthogonalises_whole_matrices_and_not_the_shards_of_each_rank(folder: Path, quick_components: object) -> None:
    """In the first step: each shard by itself would give a matrix with singular values from 0 to the root of 2."""
    (losses, _), config = report(folder, "bf16 losses"), config_of("fsdp2", **MUON)
    step = losses[0]
    before = make_harness(config_of("none", **MUON)).learnt()
    after = learnt_weights(folder / "bf16-parts" / "checkpoints" / "step-000000001", raw=True).weights
    name = "decoder.model.layers.0.self_attn.q_proj.weight"
    kept = before[name].detach() * (1 - step["learning_rate"] * config.optimizer.weight_decay)
    singular = torch.linalg.svdvals(after[name] - kept) / (step["learning_rate"] * 0.2 * 32**0.5)
    assert singular.median() > 0.5 and singular.max() < 1.3


def test_another_number_of_processes_is_refused_unless_allowed(folder: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(folder / "died", run_dir)
    with pytest.raises(UserError, match="written by 2 processes, these are 1: .*distribution.other_world"):
        train(config_of("none"), run_dir)
    before = final_checkpoint(run_dir)
    assert train(config_of("none", distribution__other_world=True), run_dir) == 0
    after = final_checkpoint(run_dir)
    assert after.world_size == 1 and after.progress["steps"] > before.progress["steps"]
    assert after.progress["tokens"] >= 4000


def final_checkpoint(run_dir: Path) -> Any:
    newest = CheckpointStore(run_dir / "checkpoints").newest_valid()
    assert newest is not None
    return read_saved(newest)


def test_an_error_of_one_rank_ends_all(folder: Path) -> None:
    first, second = report(folder, "failing source")
    assert first == "UserError: rank 1: broken: 2 of 100 documents rejected"
    assert second == "ReportedByFirst: broken: 2 of 100 documents rejected"


def test_a_full_disk_of_one_rank_leaves_the_checkpoints_as_they_were(folder: Path) -> None:
    first, second = report(folder, "full disk")
    assert "No space left" in second and first.startswith("RankFailed: rank 1") and "No space left" in first
    store = CheckpointStore(folder / "store")
    assert [path.name for path in store.steps()] == ["step-000000001"] and store.newest_valid() is not None
    assert not list((folder / "store").glob(".*"))
