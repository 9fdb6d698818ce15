"""What two processes do together, started by test_distributed.py: `python two_ranks.py FOLDER SCENARIO`.

Starting a process costs more than all it trains here, so a scenario is a list of runs in one start. What the tests look at
afterwards lies in FOLDER: run directories, and what every rank returned, raised and printed.
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

from tests.training.conftest import MIX, QUICK, quick_config
from tunalab.config import RunConfig
from tunalab.data.stream import Step, StepLoader
from tunalab.errors import UserError
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.training.checkpoints import CheckpointStore
from tunalab.training.module import Harness
from tunalab.training.ranks import RankFailed, Ranks
from tunalab.training.run import train

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"distribution__strategy": "ddp"},
    "fsdp2": {"distribution__strategy": "fsdp2"},
    "hybrid": {
        "distribution__strategy": "fsdp2",
        "distribution__shard_size": 1,
        "distribution__reduce_always": True,
        "distribution__reshard": False,
        "activation_checkpointing": True,
    },
}
STOP_AT, KILL_AT = 3, 6  # steps; the checkpoint of the first evaluation lies between


def config_of(strategy: str, **changes: Any) -> RunConfig:
    """Frozen parts, stages that train other parts, two micro-batches a step; about eight steps, evaluated at the fourth and last.

    Rows are short, so that many a micro-batch has nothing to generate on one rank alone.
    """
    stages = {
        "whole": {"tokens": 4500, "masking": True, "mix": MIX},
        "connector": {"tokens": 1500, "train": "connector", "mix": MIX},
        "sft": {"tokens": 1500, "lr": 5e-4, "mix": {"scenes/vqa": 1.0, "scenes/text": 1.0}},
    }
    # AdamW divides by the root of the second moment: where a gradient is all rounding, so would be the step, but for a large eps.
    settings = {"stages": stages, "data__accumulate": 2, "optimizer__eps": 1e-3, "objective__masking__start": 0.0}
    return quick_config("tuna", **{**settings, **STRATEGIES.get(strategy, {}), **changes})


@contextlib.contextmanager
def at_step(step: int, action: Callable[[], None], losses: list[dict[str, float]] | None = None) -> Iterator[None]:
    """Do ``action`` when a run has taken ``step`` steps; keep what its steps return."""
    original = Harness.training_step

    def training_step(self: Harness, batch: Any, index: int) -> Any:
        if self.progress.steps == step:
            action()
        result = original(self, batch, index)
        if losses is not None:
            losses.append(result)
        return result

    Harness.training_step = training_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        Harness.training_step = original  # type: ignore[method-assign]


class Report:
    """Lines of FOLDER/<name>-rank<r>.json: what each rank saw."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}-rank{dist.get_rank()}.json"
        self.seen: dict[str, Any] = {}

    def note(self, key: str, action: Callable[[], Any]) -> None:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                outcome = action()
            except (UserError, RankFailed, OSError) as error:
                outcome = f"{type(error).__name__}: {error}"
        self.seen[key] = {"outcome": outcome, "printed": printed.getvalue()}
        self.path.write_text(json.dumps(self.seen))


def terminate_second_rank() -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def stop(folder: Path, strategy: str, report: Report) -> None:
    """A run with a checkpoint at every step, stopped by a signal that one rank alone receives."""
    losses: list[dict[str, float]] = []
    with at_step(STOP_AT - 1, terminate_second_rank, losses):
        report.note(f"{strategy} stopped", lambda: train(config_of(strategy, checkpoint_seconds=0.0), folder / strategy))
    report.note(f"{strategy} losses", lambda: losses)
    if dist.get_rank() == 0:
        shutil.copytree(folder / strategy, folder / f"{strategy}-stopped")
    dist.barrier()


def damage_second_shard(run_dir: Path) -> None:
    newest = CheckpointStore(run_dir / "checkpoints").steps()[-1]
    shard = newest / "tensors" / "__1_0.distcp"
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


def scenario_kill(folder: Path) -> None:
    with at_step(KILL_AT, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        train(config_of("fsdp2"), folder / "killed")


def scenario_all(folder: Path) -> None:
    dist.init_process_group("gloo")
    report = Report(folder, "all")
    report.note("fsdp2 whole", lambda: train(config_of("fsdp2"), folder / "fsdp2-whole"))
    report.note("killed resumed", lambda: train(config_of("fsdp2"), folder / "killed"))
    for strategy in STRATEGIES:
        stop(folder, strategy, report)
    if dist.get_rank() == 0:
        damage_second_shard(folder / "fsdp2")
    dist.barrier()
    report.note("fsdp2 resumed", lambda: train(config_of("fsdp2"), folder / "fsdp2"))
    report.note("ddp whole", lambda: train(config_of("ddp"), folder / "ddp-whole"))
    report.note("ddp resumed", lambda: train(config_of("ddp"), folder / "ddp"))
    report.note("failing source", lambda: failing_source(folder))
    report.note("full disk", lambda: full_disk(folder))
    dist.destroy_process_group()


if __name__ == "__main__":
    ComponentSettings.seeded = staticmethod(lambda seed: QUICK)  # type: ignore[method-assign]
    {"kill": scenario_kill, "all": scenario_all}[sys.argv[2]](Path(sys.argv[1]))
