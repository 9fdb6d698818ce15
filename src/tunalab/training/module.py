"""What a stage of training changes: which parameters learn, at what rate, and whether visual tokens are masked."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from tunalab.model.attention import raise_recompile_limit
from tunalab.model.objective import draw, losses
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import DistributionConfig, MaskingConfig, OptimizerConfig, RunConfig, StageConfig
from tunalab.training.clock import awake, peak_memory
from tunalab.training.distribution import ALONE, Ranks
from tunalab.training.joint import JointStep


def set_trainable(model: UnifiedModel, train: str) -> None:
    """Switch gradients on for the parts that a stage trains: all | connector | without_encoder (see StageConfig).

    A front-end without connector trains everything in every stage: its budget is spent, not skipped. Frozen and fixed parts never
    learn.
    """
    frontend = model.frontend
    whole = train == "all" or not frontend.connector_parts
    for name, parameter in model.named_parameters():
        part = name.split(".")[1] if name.startswith("frontend.") else None
        if part in (*frontend.frozen_parts, *frontend.fixed_parts):
            learns = False
        elif whole:
            learns = True
        elif train == "connector":
            learns = part in frontend.connector_parts
        else:
            learns = part is None or part in frontend.connector_parts
        parameter.requires_grad_(learns)


def learning_rate(stage: StageConfig, optimizer: OptimizerConfig, stage_step: int) -> float:
    """Linear warm-up from the start of the stage, then constant: so every point of a curve is a legitimate end of training."""
    return stage.lr * min(1.0, (stage_step + 1) / max(optimizer.warmup_steps, 1))


def masks(masking: MaskingConfig, stage: StageConfig, stage_progress: float) -> bool:
    """Whether visual tokens are masked at this point: only in the last part of a stage that masks."""
    return masking.ratio > 0 and stage.masking and stage_progress >= masking.start


# Exponential moving average of the trained weights: what is evaluated, while the raw weights go on training.


class Ema:
    """Shadow weights of the given parameters. The decay grows with the number of updates n as (1 + n) / (10 + n) up to ``decay``,

    so that the average does not remember the initial weights for thousands of steps. Of a sharded parameter every rank averages
    its own shard.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(
            [local(shadow) for shadow in self.shadow.values()], [local(p) for p in self.parameters.values()], 1 - decay
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averaged weights inside the block and its raw weights, the very same bits, after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Contents change places, not tensors: a sharded parameter is gathered from storage that its module keeps to itself.
        for name, p in self.parameters.items():
            shadow, weights = local(self.shadow[name]), local(p)
            averaged = shadow.clone()
            shadow.copy_(weights)
            weights.copy_(averaged)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor, any other as it is."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


# The blocks of decoder and head: the units in which activations are recomputed, kernels fused and parameters sharded.
#
# Those of a front-end are recomputed only. It runs once for every image size of a batch, and ranks have different
# sizes: gathering its blocks one by one, they would wait for each other in different places.
#
# Shapes: B rows, L tokens, D width.


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


# Fully sharded training (FSDP2): every rank holds a share of each parameter, and of its gradient, average and moments.
#
# Blocks of decoder and head are units that are gathered when they run. Everything else (tables, front-end, time, last
# layers) is one unit with the model itself, gathered from the beginning of its forward pass to the end of its backward
# pass: the model calls these parts by other ways than ``forward`` (``frontend.embed``, ``head.predict``, the table as
# output layer), which the hooks of a unit of their own would not see. For the same reason frozen parts, which run
# before the model, stay whole on every rank.
#
# Gathering is a collective operation, so ranks must run the same blocks: ``UnifiedModel.every_part`` sees to that.


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


# The LightningModule of every variant: it wires model, objective and optimiser, and holds no maths of its own.


class NonFiniteLoss(Exception):
    """The loss or the gradient is not a number: the run stops before the step, so the last checkpoint stays good."""


@dataclass
class Progress:
    """How far a run is, all ranks together. ``seconds`` is training time, without evaluation and without what the process was
    stopped for; ``points`` the curve so far; ``peak_memory`` in bytes, the most of all starts of the run and, as of a checkpoint,
    of all ranks. ``lanes`` (as TrainingStream's ``resume``) and ``next_lane`` are this rank's own. ``window``: sums of losses over
    the ``window_steps`` since the last row of the training log. ``read``: stage -> source -> what of it was
    read in all (a number for each of data.stream.COUNTS).
    """

    tokens: int = 0
    steps: int = 0
    images: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    stage: str = ""
    lanes: dict[int, dict[str, Any]] = field(default_factory=dict)
    next_lane: int = 0
    peak_memory: int = 0
    points: list[dict[str, Any]] = field(default_factory=list)
    window: dict[str, float] = field(default_factory=dict)
    window_steps: int = 0
    read: dict[str, dict[str, list[int]]] = field(default_factory=dict)


class Harness(LightningModule):
    """Trains any variant. Optimisation is manual because a loss is divided by the count over the whole step, all micro-batches and
    ranks together, which is known before the first forward pass.
    """

    ema: Ema  # from the start of a fit on: parameters may be sharded and moved before

    def __init__(self, config: RunConfig, model: UnifiedModel, ranks: Ranks = ALONE, sharded: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.model = model
        self.ranks = ranks
        self.sharded = sharded
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and torch.cuda.is_available())
        self.progress = Progress()
        self._clock: float | None = None

    def learnt(self) -> dict[str, nn.Parameter]:
        """Every parameter that some stage trains: all but the front-end's frozen parts."""
        return {name: p for name, p in self.model.named_parameters() if not self.is_frozen(name)}

    def is_frozen(self, name: str) -> bool:
        """Of an entry of the model's state."""
        return name.startswith(tuple(f"frontend.{part}." for part in self.model.frontend.frozen_parts))

    def configure_model(self) -> None:
        prepare_blocks(self.model, self.config.activation_checkpointing, self.config.compile_blocks)
        self.model.every_part = self.ranks.world_size > 1
        if self.sharded:
            distribution = self.config.distribution
            mesh = shard_mesh(self.trainer.strategy.root_device.type, self.ranks.world_size, distribution.shard_size)
            shard(self.model, mesh, distribution, self.bf16)

    def on_fit_start(self) -> None:
        self.ema = Ema(self.learnt(), self.config.optimizer.ema)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        o = self.config.optimizer
        return torch.optim.AdamW(
            self.learnt().values(), lr=0.0, betas=(o.beta1, o.beta2), eps=o.eps, weight_decay=o.weight_decay, fused=True
        )

    def transfer_batch_to_device(self, batch: JointStep, device: torch.device, dataloader_idx: int) -> JointStep:
        batch.mine.batches = [micro.to(device) for micro in batch.mine.batches]
        return batch

    def training_step(self, step: JointStep, batch_idx: int) -> dict[str, float]:
        """One optimiser step; returns the losses averaged over their tokens, for logging."""
        self._clock = self._clock or awake()
        stage = self.config.stages[step.stage]
        if step.stage != self.progress.stage:
            self.enter_stage(step.stage)
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage, self.config.optimizer, step.stage_step)
        means = self._backward(step)
        if not all(math.isfinite(mean) for mean in means.values()):
            raise NonFiniteLoss(f"loss is not finite at step {self.progress.steps}: {means}")
        norm = self._clip()
        if not math.isfinite(norm):
            raise NonFiniteLoss(f"gradient norm is {norm} at step {self.progress.steps} (losses: {means})")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self._advance(step)
        return {**means, "gradient_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]}

    def enter_stage(self, name: str) -> None:
        if name:
            set_trainable(self.model, self.config.stages[name].train)
        self.progress.stage = name

    def _backward(self, step: JointStep) -> dict[str, float]:
        """Gradients of the whole step, summed over ranks; returns each loss averaged over all its tokens."""
        objective = self.config.objective
        weights = {"text": objective.text_weight, "flow": objective.flow_weight}
        sums: dict[str, Tensor] = {name: torch.zeros((), device=self.device) for name in weights}
        masking = masks(objective.masking, self.config.stages[step.stage], step.stage_progress)
        for number, batch in enumerate(step.mine.batches):
            frontend = self.model.frontend
            draws = draw(batch, objective, self.config.seed, frontend.space, masking, frontend.sampled)
            with self._gradients_summed(number == len(step.mine.batches) - 1):
                parts = losses(self.model, batch, draws, objective)
                # Data-parallel training averages gradients over ranks, so each rank's share is scaled up to make it a sum.
                loss: Tensor = sum(  # type: ignore[assignment]
                    weights[name] * part.sum * self.ranks.world_size / max(step.counts[name], 1) for name, part in parts.items()
                )
                self.manual_backward(loss)
            for name, part in parts.items():
                sums[name] += part.sum.detach()
        self._forget_unused(step)
        # One look at the device a step. What every rank sees is equal, so that all of them stop or none.
        total = self.ranks.numbers([value.item() for value in sums.values()]).sum(0).tolist()
        return {name: value / max(step.counts[name], 1) for name, value in zip(sums, total, strict=True)}

    @contextmanager
    def _gradients_summed(self, now: bool) -> Iterator[None]:
        """Over ranks; before the last micro-batch each rank adds up its own."""
        if self.sharded:
            reduce_gradients(self.model, now or self.config.distribution.reduce_always)
        if now or self.ranks.world_size == 1:
            yield
            return
        strategy = self.trainer.strategy
        assert isinstance(strategy, ParallelStrategy)
        with strategy.block_backward_sync():
            yield

    def _forget_unused(self, step: JointStep) -> None:
        """A part that no document of the step could use has no gradient rather than one of zero, which several ranks would make of
        it: else the optimiser's weight decay would shrink it there and not on a single rank.

        Not so the mask token in a step with images of which none is masked: its gradient is zero on any number of ranks, and decay
        shrinks it by a share of learning rate x ``weight_decay`` a step until masking begins.
        """
        unused: list[nn.Module] = []
        if not step.images:
            unused += [self.model.frontend, self.model.mask_token, self.model.time]
        if not step.counts["flow"]:
            unused.append(self.model.head)
        for module in unused:
            module.zero_grad(set_to_none=True)

    def _clip(self) -> float:
        """Clip by the norm over all parameters, of all ranks' shards; returns the norm before."""
        norm = nn.utils.clip_grad_norm_(self.learnt().values(), self.config.optimizer.clip or float("inf"))
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    def _advance(self, step: JointStep) -> None:
        assert self._clock is not None
        now = awake()
        p = self.progress
        p.seconds += now - self._clock
        self._clock = now
        p.tokens += step.tokens
        p.images += step.images
        p.steps += 1
        p.flops += step.flops
        so_far = p.read.setdefault(step.stage, {})
        for source, numbers in step.read.items():
            so_far[source] = [a + b for a, b in zip(so_far.get(source, [0] * len(numbers)), numbers, strict=True)]
        p.lanes[step.mine.lane] = step.mine.lane_state
        p.next_lane = (step.mine.lane + 1) % max(1, self.config.data.workers)

    def gathered(self) -> AbstractContextManager[None]:
        """Inside, the model is whole on every rank."""
        return gathered(self.model, self.bf16)

    def pause_clock(self) -> None:
        """Evaluation and checkpoints are not training time."""
        self._clock = None

    def note_memory(self) -> None:
        self.progress.peak_memory = max(self.progress.peak_memory, peak_memory())
