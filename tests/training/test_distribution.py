"""What is found of the launcher, and which settings contradict it. None of these starts a process."""

import pytest
import torch
import torch.distributed as dist

from tests.training.conftest import quick_config
from tunalab.errors import UserError
from tunalab.training import several_started
from tunalab.training.distribution import ALONE, Distribution, ReportedByFirst, joined, launched

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
}
SLURM_JOB = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}
SLURM_STEP = {
    **SLURM_JOB,
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, (1, 0, 1, 1)),
        (TORCHRUN, (8, 5, 4, 2)),
        (SLURM_STEP, (8, 5, 4, 2)),
        # A batch script is no task of a step: what it starts without srun, such as a sweep, is one process each.
        (SLURM_JOB, (1, 0, 1, 1)),
    ],
    indirect=["variables"],
)
def test_what_a_launcher_has_started(variables: None, found: tuple[int, int, int, int]) -> None:
    environment, devices, nodes = launched()
    assert (environment.world_size(), environment.global_rank(), devices, nodes) == found
    assert several_started() == (found[0] > 1)


@pytest.mark.parametrize(
    ("variables", "settings", "message"),
    [
        ({}, {"devices": 2}, "distribution.devices=2, but 1 started: start it as torchrun --nproc-per-node 2"),
        (TORCHRUN, {"nodes": 3}, "distribution.nodes=3, but 2 started"),
        (TORCHRUN, {"strategy": "none"}, "distribution.strategy=none, but 8 processes started"),
        (TORCHRUN, {"strategy": "ddp", "shard_size": 4}, "distribution.shard_size=4 needs distribution.strategy=fsdp2, not ddp"),
        (TORCHRUN, {"strategy": "fsdp2", "shard_size": 3}, "distribution.shard_size=3 does not divide the 8 processes"),
    ],
    indirect=["variables"],
)
def test_settings_that_contradict_the_launcher_are_refused(variables: None, settings: dict[str, object], message: str) -> None:
    config = quick_config(**{f"distribution__{name}": value for name, value in settings.items()})
    with pytest.raises(UserError, match=message):
        Distribution.of(config.distribution, ALONE)


@pytest.mark.parametrize("variables", [TORCHRUN], indirect=True)
def test_gpus_that_a_process_cannot_see_are_missed_before_anything_is_built(
    variables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="4 processes started on a node, each sees 1 GPU"):
        Distribution.of(quick_config().distribution, ALONE)


@pytest.mark.parametrize(("task", "error"), [("0", UserError), ("5", ReportedByFirst)])
def test_a_step_that_does_not_tell_its_size_is_refused(task: str, error: type[UserError], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SLURM_STEP, "SLURM_NTASKS_PER_NODE": "", "SLURM_PROCID": task}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="SLURM_NTASKS_PER_NODE is not set") as caught, joined():
        pass
    assert type(caught.value) is error


def test_one_process_is_alone_without_a_group() -> None:
    with joined() as ranks:
        distribution = Distribution.of(quick_config().distribution, ranks)
        assert (distribution.strategy, distribution.sharded) == ("none", False)
        assert ranks is ALONE and not dist.is_initialized()
