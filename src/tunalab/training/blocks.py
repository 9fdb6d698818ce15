"""The blocks of decoder and head: units that are recomputed, compiled and sharded as one.

Those of a front-end are recomputed only. It runs once for every image size of a batch, and ranks have
different sizes: gathering its blocks one by one, they would wait for each other in different places.

Fully sharded training (FSDP2): every rank holds a share of each parameter, and of its gradient,
average and moments. Blocks of decoder and head are units that are gathered when they run. Everything
else (tables, front-end, time, last layers) is one unit with the model itself, gathered from the
beginning of its forward pass to the end of its backward pass: the model calls these parts by other
ways than ``forward`` (``frontend.embed``, ``head.predict``, the table as output layer), which the
hooks of a unit of their own would not see. For the same reason frozen parts, which run before the
model, stay whole on every rank.

Gathering is a collective operation, so ranks must run the same blocks: ``UnifiedModel.every_part``
sees to that.

Shapes: B rows, L tokens, D width.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils.checkpoint import checkpoint

from tunalab.frontends.loading import Weight
from tunalab.model.attention import raise_recompile_limit
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import DistributionConfig


def blocks(model: UnifiedModel) -> list[nn.Module]:
    return [*model.decoder.model.layers, *model.head.blocks]


def recomputed(model: UnifiedModel) -> list[nn.Module]:
    """What activation checkpointing computes again: these, and the blocks of the front-end."""
    return [*blocks(model), *model.frontend.blocks()]


def prepare_blocks(model: UnifiedModel, recompute: bool, compiled: bool) -> None:
    """How blocks run in training; elsewhere they run as they are, and names of parameters stay too.

    ``recompute``: they keep their inputs alone and run again in the backward pass. ``compiled``: by kernels that torch makes for
    them, with as few passes over memory as it finds; also what is recomputed is then only what the backward pass reads.
    """
    if not recompute and not compiled:
        return
    run: Callable[..., Tensor] = _recomputed if recompute else _plain
    if compiled:
        raise_recompile_limit()
        # One function for all blocks, so that those of one kind share one compilation.
        run = torch.compile(run, fullgraph=True)
    for block in blocks(model):
        _replace_forward(block, run)
    if recompute:
        for block in model.frontend.blocks():
            _replace_forward(block, _recomputed)


def _replace_forward(block: nn.Module, run: Callable[..., Tensor]) -> None:
    plain = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        return run(block, *args, **kwargs)

    block.forward = forward  # type: ignore[method-assign]  # the instance's own, so that the hooks of sharding stay outside


def _plain(block: nn.Module, h_BLD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return type(block).forward(block, h_BLD, *args, **kwargs)


def _recomputed(block: nn.Module, h_BLD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    def run(h_BLD: Tensor) -> Tensor:
        return _plain(block, h_BLD, *args, **kwargs)

    # Nothing is drawn inside a block, so no generator's state need be kept.
    out: Tensor = checkpoint(run, h_BLD, use_reentrant=False, preserve_rng_state=False)
    return out


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


def allocate(model: nn.Module, device: torch.device) -> None:
    """Memory for every tensor that has none yet, of a sharded one for this rank's shard, without values."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                places.setdefault(parameter, []).append((module, name))
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor)
    for (first, own), *others in places.values():  # a table under two names has become two
        for module, name in others:
            module._parameters[name] = first._parameters[own]


@torch.no_grad()
def fill(model: nn.Module, weights: Mapping[str, Weight]) -> None:
    """Copy ``weights`` to the parameters and buffers of their names, one after another; of a sharded one each rank its rows."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, weight in weights.items():
        tensor = own[name]
        if not isinstance(tensor, DTensor):
            tensor.copy_(weight())
            continue
        (rows, *_), (first, *_) = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        if rows:
            tensor.to_local().copy_(weight(slice(first, first + rows)))


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
