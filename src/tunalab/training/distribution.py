"""Which processes train a run together, and how: found from the launcher (torchrun, or srun in SLURM) and the settings."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed import HashStore  # type: ignore[attr-defined]

from tunalab.config import RunConfig
from tunalab.errors import UserError
from tunalab.training.ranks import ALONE, Ranks


@dataclass(frozen=True, eq=False)
class Distribution:
    """``strategy``: none | ddp | fsdp2. ``devices`` on each of ``nodes``, as ``environment`` started them."""

    strategy: str
    devices: int
    nodes: int
    environment: ClusterEnvironment
    ranks: Ranks

    @property
    def sharded(self) -> bool:
        return self.strategy == "fsdp2"

    def trainer_arguments(self, config: RunConfig) -> dict[str, Any]:
        """What Lightning's Trainer must know of it."""
        strategies: dict[str, Any] = {"none": "auto"}
        # A parameter that a stage does not train gets no gradient; in any other case every parameter gets one on every rank.
        idle = any(stage.train != "all" for stage in config.stages.values())
        if self.strategy == "ddp":
            strategies["ddp"] = DDPStrategy(find_unused_parameters=idle, broadcast_buffers=False)
        if self.strategy == "fsdp2":
            strategies["fsdp2"] = ModelParallelStrategy(data_parallel_size=self.ranks.world_size, tensor_parallel_size=1)
        return {
            "strategy": strategies[self.strategy],
            "devices": self.devices,
            "num_nodes": self.nodes,
            "plugins": [self.environment],
        }


@contextmanager
def joined(config: RunConfig) -> Iterator[Distribution]:
    """Join the other processes, and leave with them: a launcher ends the others when the first one ends.

    A process group that is there already is used and left as it is.

    Raises UserError when settings and launcher contradict each other.
    """
    environment, devices, nodes = launched()
    settings = config.distribution
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
        raise UserError(f"distribution.strategy=none, but {environment.world_size()} processes were started (choices: ddp, fsdp2)")
    if settings.shard_size and strategy != "fsdp2":
        raise UserError(f"distribution.shard_size={settings.shard_size} needs distribution.strategy=fsdp2, not {strategy}")
    if strategy == "none":
        yield Distribution(strategy, 1, 1, environment, ALONE)
        return
    there = dist.is_initialized()
    if not there:
        _connect(environment)
    ranks = Ranks.of_processes()
    try:
        yield Distribution(strategy, devices, nodes, environment, ranks)
        ranks.gather(None)
    finally:
        if not there:
            dist.destroy_process_group()


def launched() -> tuple[ClusterEnvironment, int, int]:
    """The launcher's environment, processes on each node, nodes. Raises UserError when a SLURM step does not say so."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment(), int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
    # Of a batch script itself, SLURM tells how many tasks srun would start; of a step, how many it has started.
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        if not os.environ.get("SLURM_NTASKS_PER_NODE"):
            raise UserError("SLURM_NTASKS_PER_NODE is not set: start the run with srun --nodes N --ntasks-per-node M")
        return (
            SLURMEnvironment(auto_requeue=False),
            int(os.environ["SLURM_NTASKS_PER_NODE"]),
            int(os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES", "1"))),
        )
    return LightningEnvironment(), 1, 1


def starts_first() -> bool:
    """Whether this is the first of the processes that were started, before any has joined the others."""
    return launched()[0].global_rank() == 0


def _connect(environment: ClusterEnvironment) -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(environment.local_rank())
        backend = "cpu:gloo,cuda:nccl"
    rank, world_size = environment.global_rank(), environment.world_size()
    if world_size == 1:  # nobody to meet
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return
    os.environ["MASTER_ADDR"] = environment.main_address
    os.environ["MASTER_PORT"] = str(environment.main_port)
    dist.init_process_group(backend, rank=rank, world_size=world_size)
