"""Fully sharded training (FSDP2): every rank holds a share of each parameter, and of its gradient, average and moments.

Blocks of decoder and head are units that are gathered when they run. Everything else (tables, front-end, time, last layers) is
one unit with the model itself, gathered from the beginning of its forward pass to the end of its backward pass: the model calls
these parts by other ways than ``forward`` (``frontend.embed``, ``head.predict``, the table as output layer), which the hooks of
a unit of their own would not see. For the same reason frozen parts, which run before the model, stay whole on every rank.

Gathering is a collective operation, so ranks must run the same blocks: ``UnifiedModel.every_part`` sees to that.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from tunalab.config import DistributionConfig
from tunalab.model.unified import UnifiedModel
from tunalab.training.blocks import blocks


def shard(model: UnifiedModel, mesh: DeviceMesh, distribution: DistributionConfig, bf16: bool) -> None:
    """Shard in place, over the dimensions of ``mesh``.

    ``bf16``: blocks are gathered in bfloat16, half the traffic. Matrices and their biases would be cast to it anyway (autocast);
    gains of norms would not, and are rounded here when they are used (what is optimised stays float32): to keep them, a block's
    norms would have to be a unit of their own. Everything else stays in float32, and so does the residual stream, as without
    sharding. Gradients are summed in float32.
    """
    cast = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks(model):
        fully_shard(
            block,
            mesh=mesh,
            reshard_after_forward=distribution.reshard,
            mp_policy=cast if bf16 else MixedPrecisionPolicy(cast_forward_inputs=False),
        )
    frozen = {p for part in model.frontend.frozen_parts for p in model.frontend.get_submodule(part).parameters()}
    fully_shard(
        model,
        mesh=mesh,
        reshard_after_forward=False,
        mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False),
        ignored_params=frozen,
    )


def shard_mesh(device: str, world_size: int, shard_size: int) -> DeviceMesh:
    """All ranks in one dimension, or (copies, ranks of a copy)."""
    if shard_size in (0, world_size):
        return init_device_mesh(device, (world_size,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (world_size // shard_size, shard_size), mesh_dim_names=("replicate", "shard"))


@contextmanager
def gathered(model: UnifiedModel, bf16: bool) -> Iterator[None]:
    """Inside, every rank holds the whole model and can run any part of it alone; all ranks enter and leave together.

    Nothing happens to a model that is not sharded. Sharded blocks in bfloat16 need autocast, as in training.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    # Without its hooks a unit is a plain module. With them it would note down every run, to gather units ahead in the order of
    # the last runs, and a rank that evaluates alone would next wait for gathers that the others do not make.
    hooks = [(unit._forward_pre_hooks, unit._forward_hooks) for unit in units]
    for unit in units:
        unit.unshard()
        unit._forward_pre_hooks, unit._forward_hooks = OrderedDict(), OrderedDict()
    device = next(model.parameters()).device.type
    try:
        with torch.autocast(device, torch.bfloat16) if units and bf16 else nullcontext():
            yield
    finally:
        for unit, (before, after) in zip(units, hooks, strict=True):
            unit._forward_pre_hooks, unit._forward_hooks = before, after
            unit.reshard()


def reduce_gradients(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass sums gradients over ranks, or only adds them up on each."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
