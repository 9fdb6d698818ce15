"""What two processes do together, started by test_distributed.py: `python -m tests.training.two_ranks FOLDER RANK PORT PORT`.

Starting a process costs more than all it trains here, so they do everything in one start: as two tasks of a SLURM step first, then
as two workers of torchrun. What the tests look at afterwards lies in FOLDER: run directories, and what every rank returned, raised
and printed.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tests.training.conftest import MIX, quick_config
from tunalab.cli import main
from tunalab.data.stream import Step, StepLoader
from tunalab.errors import UserError
from tunalab.model.deferred import Deferred
from tunalab.settings.loading import to_yaml
from tunalab.settings.schema import RunConfig
from tunalab.settings.timeline import Place
from tunalab.sweeps.cells import take_lock
from tunalab.training.checkpoints import MANIFEST, PROGRESS, CheckpointStore, write_whole
from tunalab.training.distribution import RankFailed, Ranks, joined
from tunalab.training.module import Harness, Progress
from tunalab.training.run import train

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"distribution__strategy": "ddp"},
    "fsdp2": {"distribution__strategy": "fsdp2", "activation_checkpointing": True},
    "hybrid": {
        "distribution__strategy": "fsdp2",
        "distribution__shard_size": 1,
        "distribution__reduce_always": True,
        "distribution__reshard": False,
    },
}
STOP_AT, KILL_AT = 2, 3  # steps
GROUPS: dict[str, Any] = {
    "optimizer__weight_decay_on": "matrices",
    "optimizer__groups": {
        "encoder": {"match": "frontend.encoder", "lr": 0.25, "weight_decay": 0.5},
        "still": {"match": "time.*", "lr": 0},
    },
}


def config_of(strategy: str, **changes: Any) -> RunConfig:
    """Frozen parts, stages that train other parts, steps of four rows; about five steps, evaluated on the way and at the last.

    Rows are short, so that many a micro-batch has nothing to generate on one rank alone.
    """
    stages = {
        "whole": {"tokens": 2000, "masking": True, "mix": MIX, "schedule": "cosine", "final_lr": 0.5},
        "connector": {"tokens": 1000, "train": "connector", "mix": MIX},
        "sft": {"tokens": 1000, "lr": 5e-4, "mix": {"scenes/vqa": 1.0, "scenes/text": 1.0}},
    }
    # AdamW divides by the root of the second moment: where a gradient is all rounding, so would be the step, but for a large eps.
    settings = {"stages": stages, "data__step_tokens": 1024, "optimizer__eps": 1e-3, "objective__masking__start": 0.0}
    few = {"evaluation__groups": 1, "evaluation__loss_documents": 2, "evaluation__psnr_images": 1, "evaluation__sample_prompts": 1}
    settings["frontend__vae_posterior"] = "sample"
    settings |= GROUPS
    return quick_config("tuna", **{**settings, **few, **STRATEGIES.get(strategy, {}), **changes})


# A run of two steps, by Muon, its blocks gathered in bfloat16.
MUON: dict[str, Any] = {
    "precision": "bf16",
    "optimizer__name": "muon",
    "stages": {"whole": {"tokens": 1800, "masking": True, "mix": MIX}},
}


@contextlib.contextmanager
def at_step(step: int, action: Callable[[], None]) -> Iterator[None]:
    """Do ``action`` when a run has taken ``step`` steps."""

    def before(progress: Progress) -> None:
        if progress.steps == step:
            action()

    with around_steps(before, lambda losses: None):
        yield


@contextlib.contextmanager
def around_steps(before: Callable[[Progress], None], after: Callable[[dict[str, float]], None]) -> Iterator[None]:
    original = Harness.training_step

    def training_step(self: Harness, batch: Any, index: int) -> Any:
        before(self.progress)
        result = original(self, batch, index)
        after(result)
        return result

    Harness.training_step = training_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        Harness.training_step = original  # type: ignore[method-assign]


class Report:
    """What this rank saw."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: dict[str, Any] = {}

    def note(self, key: str, action: Callable[[], Any]) -> None:
        printed, messages = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(messages):
            try:
                outcome = action()
            except (UserError, RankFailed, OSError) as error:
                outcome = f"{type(error).__name__}: {error}"
        self.seen[key] = {"outcome": outcome, "printed": printed.getvalue(), "told": messages.getvalue()}
        self.path.write_text(json.dumps(self.seen))


def terminate_second_rank() -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def whole(folder: Path, strategy: str, report: Report) -> None:
    """A run that nothing disturbs, and what its steps returned."""
    losses: list[dict[str, float]] = []
    with around_steps(lambda progress: None, losses.append):
        report.note(f"{strategy} whole", lambda: train(config_of(strategy), folder / f"{strategy}-whole"))
    report.note(f"{strategy} losses", lambda: losses)


def stopped_at(step: int, config: RunConfig, run_dir: Path) -> int:
    """A run that is stopped after so many steps by a signal which one rank alone receives."""
    with at_step(step - 1, terminate_second_rank):
        return train(config, run_dir)


def stop(folder: Path, strategy: str, report: Report) -> None:
    report.note(f"{strategy} stopped", lambda: stopped_at(STOP_AT, config_of(strategy), folder / strategy))
    in_first(lambda: shutil.copytree(folder / strategy, folder / f"{strategy}-stopped"))


def in_first(action: Callable[[], Any]) -> None:
    """While the other waits."""
    if dist.get_rank() == 0:
        action()
    dist.barrier()


class Killed(BaseException):
    """What a kill -9 looks like from inside: nothing after it runs. Not an Exception, so nothing handles it."""


def kill() -> None:
    raise Killed


def killed(folder: Path) -> str:
    """Both ranks end without warning, after a checkpoint at every step."""
    try:
        with at_step(KILL_AT, kill):
            train(config_of("fsdp2", checkpoint_seconds=0.0), folder / "killed")
    except Killed:
        return "killed"
    return "not killed"


def damage_second_shard(run_dir: Path) -> None:
    newest = CheckpointStore(run_dir / "checkpoints").steps()[-1]
    shard = newest / "tensors" / "shard-00002-model-00001-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:3000] + bytes(64) + shard.read_bytes()[3064:])


def failing_source(folder: Path) -> int:
    original = StepLoader.__iter__

    def fails(self: StepLoader) -> Iterator[Step]:
        for number, step in enumerate(original(self)):
            if number == 1 and dist.get_rank() == 1:
                raise UserError("broken: 2 of 100 documents rejected")
            yield step

    StepLoader.__iter__ = fails  # type: ignore[method-assign]
    try:
        return train(config_of("ddp"), folder / "failing")
    finally:
        StepLoader.__iter__ = original  # type: ignore[method-assign]


def full_disk(folder: Path) -> str:
    ranks = Ranks.of_processes()
    store = CheckpointStore(folder / "store", ranks=ranks)

    def write(folder: Path) -> None:
        (folder / f"shard{ranks.rank}").write_bytes(bytes([ranks.rank]) * 100)

    def write_half(folder: Path) -> None:
        write(folder)
        if ranks.rank == 1:
            raise OSError(28, "No space left on device")

    store.save(1, write)
    store.save(2, write_half)
    return "saved"


def written_by_three(run_dir: Path, target: Path) -> None:
    """A copy of a run whose newest checkpoint looks as if another rank had taken part."""
    newest = CheckpointStore(run_dir / "checkpoints").newest_valid()
    assert newest is not None
    saved = json.loads((newest / PROGRESS).read_text())
    for of_every_rank in ("lanes", "next_lane"):
        saved[of_every_rank].append(saved[of_every_rank][-1])

    def write(folder: Path) -> None:
        shutil.copytree(newest, folder, dirs_exist_ok=True)
        (folder / MANIFEST).unlink()
        (folder / PROGRESS).write_text(json.dumps(saved))

    write_whole(target / "checkpoints" / newest.name, write, {})


def command(folder: Path, name: str, config: RunConfig) -> int:
    """`tunalab train` of a saved configuration, in the directory ``name``."""
    saved = folder / f"{name}.yaml"
    in_first(lambda: saved.write_text(to_yaml(config)))
    return main(["train", "--config", str(saved), "--run-dir", str(folder / name)])


def locked(folder: Path) -> int:
    lock = take_lock(folder / "locked") if dist.get_rank() == 0 else contextlib.nullcontext()
    assert lock is not None
    with lock:
        return command(folder, "locked", config_of("ddp"))


def slurm(rank: int) -> dict[str, str]:
    """What a task of a SLURM step finds, of two."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
    place = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NODEID": "0"}
    return {**step, **place, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}


def torchrun(rank: int) -> dict[str, str]:
    """What a worker of torchrun finds, of two."""
    group = {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)}


@contextlib.contextmanager
def started_by(launcher: dict[str, str], port: str) -> Iterator[None]:
    variables = {**launcher, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update(variables)
    with joined():
        yield
    for name in variables:
        del os.environ[name]


def branch(folder: Path, strategy: str, report: Report) -> None:
    """A trunk of another last stage, and the run of the whole test as its branch."""
    other = config_of(strategy)
    other.stages["sft"].lr = 1e-3
    trunk = folder / f"{strategy}-trunk"
    report.note(f"{strategy} trunk", lambda: train(other, trunk, until=Place(2, 0.0)))
    report.note(f"{strategy} branch", lambda: train(config_of(strategy), folder / f"{strategy}-branch", trunk=trunk))


def replicas(folder: Path, report: Report) -> None:
    report.note("other devices", lambda: command(folder, "other-devices", config_of("ddp", distribution__devices=3)))
    report.note("locked", lambda: locked(folder))
    whole(folder, "ddp", report)
    branch(folder, "ddp", report)
    stop(folder, "ddp", report)
    report.note("ddp resumed", lambda: train(config_of("ddp"), folder / "ddp"))
    report.note("failing source", lambda: failing_source(folder))
    report.note("full disk", lambda: full_disk(folder))


def shards(folder: Path, report: Report) -> None:
    whole(folder, "fsdp2", report)
    branch(folder, "fsdp2", report)
    report.note("killed", lambda: killed(folder))
    in_first(lambda: damage_second_shard(folder / "killed"))
    report.note("killed resumed", lambda: train(config_of("fsdp2"), folder / "killed"))
    stop(folder, "hybrid", report)
    in_first(lambda: written_by_three(folder / "hybrid-stopped", folder / "three"))
    report.note("three refused", lambda: command(folder, "three", config_of("fsdp2")))
    other_world = config_of("fsdp2", distribution__other_world=True)
    report.note("three", lambda: stopped_at(STOP_AT + 1, other_world, folder / "three"))
    halves: list[dict[str, float]] = []
    with around_steps(lambda progress: None, halves.append):
        report.note("bf16", lambda: train(config_of("fsdp2", **MUON), folder / "bf16"))
    report.note("bf16 losses", lambda: halves)
    halved = config_of("fsdp2", **MUON)
    report.note("bf16 stopped", lambda: stopped_at(1, halved, folder / "bf16-parts"))
    report.note("bf16 resumed", lambda: train(halved, folder / "bf16-parts"))
    with at_step(STOP_AT, lambda: os.kill(os.getpid(), signal.SIGKILL) if dist.get_rank() == 1 else None):
        train(config_of("fsdp2", checkpoint_seconds=0.0), folder / "died")


if __name__ == "__main__":
    FOLDER, RANK, *PORTS = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    Deferred.least = 1  # as if the tiny model's tensors were large
    REPORT = Report(FOLDER / f"rank{RANK}.json")
    with started_by(slurm(RANK), PORTS[0]):
        replicas(FOLDER, REPORT)
    with started_by(torchrun(RANK), PORTS[1]):
        shards(FOLDER, REPORT)
