"""What is found of the launcher, and which settings contradict it. None of these starts a process."""

import pytest

from tests.training.conftest import quick_config
from tunalab.errors import UserError
from tunalab.training.distribution import joined, launched, starts_first

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
    assert starts_first() == (found[1] == 0)


@pytest.mark.parametrize(
    ("variables", "settings", "message"),
    [
        ({}, {"devices": 2}, "distribution.devices=2, but 1 started: start it as torchrun --nproc-per-node 2"),
        (TORCHRUN, {"nodes": 3}, "distribution.nodes=3, but 2 started"),
        (TORCHRUN, {"strategy": "none"}, "distribution.strategy=none, but 8 processes were started"),
        (TORCHRUN, {"strategy": "ddp", "shard_size": 4}, "distribution.shard_size=4 needs distribution.strategy=fsdp2, not ddp"),
        ({**SLURM_STEP, "SLURM_NTASKS_PER_NODE": ""}, {}, "SLURM_NTASKS_PER_NODE is not set"),
    ],
    indirect=["variables"],
)
def test_settings_that_contradict_the_launcher_are_refused(variables: None, settings: dict[str, object], message: str) -> None:
    config = quick_config(**{f"distribution__{name}": value for name, value in settings.items()})
    with pytest.raises(UserError, match=message), joined(config):
        pass


def test_one_process_is_alone_without_a_group() -> None:
    with joined(quick_config()) as distribution:
        assert (distribution.strategy, distribution.ranks.world_size, distribution.sharded) == ("none", 1, False)
