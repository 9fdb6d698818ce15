"""Which processes train a run together, how, and what they exchange besides gradients.

The environment of the launcher (torchrun, or srun in SLURM) says what was started. Processes join before
anything can go wrong in one of them alone, so that a mistake is shown once and ends all. A few numbers and
words per step go over the CPU, in groups of their own: the GPUs need not be waited for.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]

from tunalab.errors import UserError
from tunalab.settings.schema import DistributionConfig, RunConfig
from tunalab.training import several_started

# A process that died is noticed at once, by its closed connections. Waiting finds the one that hangs, or whose machine is gone.
PATIENCE = timedelta(minutes=30)
LONG_PATIENCE = timedelta(hours=12)  # while the first rank evaluates, or shards are indexed
T = TypeVar("T")


class RankFailed(Exception):
    """Another rank could not go on; its own error is on its own output."""


class ReportedByFirst(UserError):
    """A mistake that the first rank raises too: this one has nothing to add but its exit code."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """This process among ``world_size``. Every method is called by all of them, in the same order.

    ``group`` is for what all do at about the same time, ``patient`` for waiting.
    """

    rank: int = 0
    world_size: int = 1
    group: "dist.ProcessGroup | None" = None
    patient: "dist.ProcessGroup | None" = None

    @classmethod
    def of_processes(cls) -> "Ranks":
        """All processes of the initialised default group."""
        group, patient = (dist.new_group(backend="gloo", timeout=timeout) for timeout in (PATIENCE, LONG_PATIENCE))
        assert isinstance(group, dist.ProcessGroup) and isinstance(patient, dist.ProcessGroup)  # this process is a member
        return cls(dist.get_rank(), dist.get_world_size(), group, patient)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, value: T, patient: bool = False) -> list[T]:
        """The value of every rank: anything that can be pickled."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.patient if patient else self.group)
        return values  # type: ignore[return-value]  # all of them are there now

    def broadcast(self, value: T) -> T:
        """The first rank's value."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def numbers(self, values: Sequence[float]) -> Tensor:
        """(ranks, len(values)), float64: exact for whole numbers below 2^53."""
        own = torch.tensor(values, dtype=torch.float64)
        if self.world_size == 1:
            return own[None]
        gathered = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(gathered, own, group=self.group)
        return torch.stack(gathered)

    @contextmanager
    def together(self, patient: bool = False) -> Iterator[None]:
        """All or nothing: if one rank raises inside, every rank raises. ``patient``: it may take some of them hours.

        Raises the rank's own error there, elsewhere RankFailed. A UserError is raised as one by the first
        rank, so that it is shown once, and as ReportedByFirst by all others. Without an error all ranks leave
        together.
        """
        try:
            yield
        except BaseException as error:
            self.gather((type(error).__name__, str(error), isinstance(error, UserError)), patient)
            if isinstance(error, UserError) and not self.first:
                raise ReportedByFirst(str(error)) from error
            raise
        failures = self.gather(("", "", False), patient)
        for rank, (kind, message, is_users) in enumerate(failures):
            if is_users:
                raise (UserError if self.first else ReportedByFirst)(f"rank {rank}: {message}")
            if kind:
                raise RankFailed(f"rank {rank}: {kind}: {message}")


ALONE = Ranks()


@dataclass(frozen=True, eq=False)
class Distribution:
    """``strategy``: none | ddp | fsdp2. ``devices`` on each of ``nodes``, as ``environment`` started them."""

    strategy: str
    devices: int
    nodes: int
    environment: ClusterEnvironment
    ranks: Ranks

    @classmethod
    def of(cls, settings: DistributionConfig, ranks: Ranks) -> "Distribution":
        """Raises UserError when settings, launcher and machine contradict each other."""
        environment, devices, nodes = launched()
        for name, set_to, found in (("devices", settings.devices, devices), ("nodes", settings.nodes, nodes)):
            if set_to not in (0, found):
                raise UserError(
                    f"distribution.{name}={set_to}, but {found} started: start it as torchrun --nproc-per-node "
                    f"{settings.devices or devices} --nnodes {settings.nodes or nodes} -m tunalab train ..., or with srun"
                )
        several = environment.world_size() > 1
        strategy = settings.strategy
        if strategy == "auto":
            strategy = "ddp" if several else "none"
        if strategy == "none" and several:
            raise UserError(f"distribution.strategy=none, but {environment.world_size()} processes started (choices: ddp, fsdp2)")
        if settings.shard_size and strategy != "fsdp2":
            raise UserError(f"distribution.shard_size={settings.shard_size} needs distribution.strategy=fsdp2, not {strategy}")
        if settings.shard_size and environment.world_size() % settings.shard_size:
            raise UserError(
                f"distribution.shard_size={settings.shard_size} does not divide the {environment.world_size()} processes"
            )
        if torch.cuda.is_available() and torch.cuda.device_count() < devices:
            raise UserError(
                f"{devices} processes started on a node, each sees {torch.cuda.device_count()} GPU(s): start one for every GPU, "
                "and let each see all of its node (srun --gpus-per-node, not --gpus-per-task)"
            )
        return cls(strategy, devices, nodes, environment, ranks)

    @property
    def sharded(self) -> bool:
        return self.strategy == "fsdp2"

    def trainer_arguments(self, config: RunConfig) -> dict[str, Any]:
        """What Lightning's Trainer must know of it."""
        strategies: dict[str, Any] = {"none": "auto"}
        # A parameter that a stage does not train gets no gradient; in any other case every parameter gets one on every rank.
        idle = any(stage.train != "all" for stage in config.stages.values())
        idle = idle or any(group.lr == 0 for group in config.optimizer.groups.values())
        if self.strategy == "ddp":
            strategies["ddp"] = DDPStrategy(find_unused_parameters=idle, gradient_as_bucket_view=True)
        if self.strategy == "fsdp2":
            strategies["fsdp2"] = ModelParallelStrategy(data_parallel_size=self.ranks.world_size, tensor_parallel_size=1)
        return {
            "strategy": strategies[self.strategy],
            "devices": self.devices,
            "num_nodes": self.nodes,
            "plugins": [self.environment],
        }


@contextmanager
def joined(alone_too: bool = False) -> Iterator[Ranks]:
    """Join the other processes that a launcher started, and leave with them: it ends all when the first one ends.

    A process alone has nobody to join; ``alone_too`` makes it a group of one, which strategies for several need. A process group
    that is there already is used and left as it is.

    Raises UserError when SLURM does not tell what it started.
    """
    if not several_started() and not alone_too:
        yield ALONE
        return
    there = dist.is_initialized()
    if not there:
        _connect(launched()[0])
    ranks = Ranks.of_processes()
    parted = False
    try:
        yield ranks
        ranks.gather(None)
        parted = True
    except UserError:  # every rank has raised it
        parted = True
        raise
    finally:
        # After another error this process just ends, which the others notice: some backends would wait for them first.
        if parted and not there:
            dist.destroy_process_group()


def launched() -> tuple[ClusterEnvironment, int, int]:
    """The launcher's environment, processes on each node, nodes. Raises UserError when a SLURM step does not say so."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment(), int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
    if several_started():
        if not os.environ.get("SLURM_NTASKS_PER_NODE"):
            first = os.environ.get("SLURM_PROCID") == "0"
            raise (UserError if first else ReportedByFirst)(
                "SLURM_NTASKS_PER_NODE is not set: start the run with srun --nodes N --ntasks-per-node M"
            )
        return (
            SLURMEnvironment(auto_requeue=False),
            int(os.environ["SLURM_NTASKS_PER_NODE"]),
            int(os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES", "1"))),
        )
    return LightningEnvironment(), 1, 1


def _connect(environment: ClusterEnvironment) -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    rank, world_size = environment.global_rank(), environment.world_size()
    if world_size == 1:  # nobody to meet
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=PATIENCE)
        return
    os.environ["MASTER_ADDR"] = environment.main_address
    os.environ["MASTER_PORT"] = str(environment.main_port)
    dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=PATIENCE)
