"""The LightningModule of every variant: it wires model, objective and optimiser, and holds no maths of its own."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.frontends.loading import Weight
from tunalab.model.objective import check_fused_text_loss, draw, losses
from tunalab.model.unified import UnifiedModel, build_model
from tunalab.settings.schema import RunConfig
from tunalab.training.blocks import allocate, fill, gathered, prepare_blocks, reduce_gradients, shard, shard_mesh
from tunalab.training.clock import awake, peak_memory
from tunalab.training.distribution import ALONE, Ranks
from tunalab.training.joint import JointStep
from tunalab.training.optimisation import (
    Ema,
    learning_rate,
    learnt_parameters,
    local,
    make_optimizer,
    masks,
    matched_groups,
    set_trainable,
)


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
    """Trains any variant, under any ``lightning.Trainer``: ``Trainer(max_steps=20).fit(Harness(config), DataModule(config))``.

    Optimisation is manual because a loss is divided by the count over the whole step, all micro-batches and
    ranks together, which is known before the first forward pass. Losses per token (nats for text, mean squared error for flow),
    gradient norm and learning rate are logged to the Trainer's loggers, the losses shown in its progress bar. Averaged weights and
    progress are part of Lightning's own checkpoints too.

    ``model``: by default built from ``config``, with the components it names. ``ranks``, ``sharded``: of several processes.
    ``weights``: with what a model that was built without them (model.unified.build_deferred) is filled when it is sharded.
    Fitting raises UserError under a Trainer of other processes than ``ranks``, and NonFiniteLoss before the step it would spoil.
    """

    ema: Ema  # from the start of a fit on: parameters may be sharded and moved before

    def __init__(
        self,
        config: RunConfig,
        model: UnifiedModel | None = None,
        ranks: Ranks = ALONE,
        sharded: bool = False,
        weights: Mapping[str, Weight] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        if model is None:
            components = Components(config.components_seed)
            model = build_model(config, components, components.tokenizer_for(config.decoder).vocabulary)
        self.model = model
        self.ranks = ranks
        self.sharded = sharded
        self.weights = weights or {}
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and torch.cuda.is_available())
        self.progress = Progress()
        self._clock: float | None = None
        self._saved: dict[str, Any] | None = None  # of a checkpoint of Lightning's, until a fit starts
        matched_groups(self.learnt(), config.optimizer.groups)  # a mistake in them ends the run before it begins
        if config.fused_text_loss:
            check_fused_text_loss()

    def learnt(self) -> dict[str, nn.Parameter]:
        """Every parameter that some stage trains: all but the front-end's frozen parts."""
        return learnt_parameters(self.model)

    def configure_model(self) -> None:
        prepare_blocks(self.model, self.config.activation_checkpointing, self.config.compile_blocks)
        self.model.every_part = self.ranks.world_size > 1
        self.model.fused_text_loss = self.config.fused_text_loss
        if self.sharded:
            distribution = self.config.distribution
            device = self.trainer.strategy.root_device
            mesh = shard_mesh(device.type, self.ranks.world_size, distribution.shard_size)
            shard(self.model, mesh, distribution, self.bf16)
            allocate(self.model, device)
            with self.ranks.together(patient=True):  # files may be read, and they may be damaged
                fill(self.model, self.weights)
            self.weights = {}

    def on_fit_start(self) -> None:
        if self._trainer is not None and self._trainer.world_size != self.ranks.world_size:
            raise UserError(
                f"a Trainer of {self._trainer.world_size} processes, a Harness of {self.ranks.world_size}: "
                "give Trainer(devices=1), or train several processes by `torchrun -m tunalab train`"
            )
        self.ema = Ema(self.learnt(), self.config.optimizer.ema)
        if self._saved is not None:
            for name, tensor in self._saved["ema"].items():
                local(self.ema.shadow[name]).copy_(tensor)
            self.ema.updates = self._saved["updates"]
            self.progress = Progress(**self._saved["progress"])
            self.enter_stage(self.progress.stage)
            self._saved = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Of Lightning's own checkpoints, beside the raw weights."""
        checkpoint["tunalab"] = {"ema": self.ema.shadow, "updates": self.ema.updates, "progress": asdict(self.progress)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._saved = checkpoint.get("tunalab")

    def on_train_batch_end(self, outputs: Any, batch: JointStep, batch_idx: int) -> None:
        """What a user's own Trainer shows; ours has neither loggers nor Lightning's progress bar."""
        if self.trainer.loggers or self.trainer.progress_bar_callback is not None:
            shown = {f"train/{name}": float(value) for name, value in outputs.items()}
            losses = {name: value for name, value in shown.items() if name in ("train/text", "train/flow")}
            self.log_dict(losses, prog_bar=True, batch_size=1)
            self.log_dict({name: value for name, value in shown.items() if name not in losses}, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.config.optimizer)

    def transfer_batch_to_device(self, batch: JointStep, device: torch.device, dataloader_idx: int) -> JointStep:
        batch.mine.batches = [micro.to(device) for micro in batch.mine.batches]
        return batch

    def training_step(self, step: JointStep, batch_idx: int) -> dict[str, float]:
        """One optimiser step; returns the losses averaged over their tokens and the rates, for logging."""
        self._clock = self._clock or awake()
        stage = self.config.stages[step.stage]
        if step.stage != self.progress.stage:
            self.enter_stage(step.stage)
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        rate = learning_rate(stage, self.config.optimizer, step.stage_step, step.stage_progress)
        for entry in optimizer.param_groups:
            entry["lr"] = rate * entry["factor"]
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
        groups = {f"learning_rate/{name}": rate * group.lr for name, group in self.config.optimizer.groups.items()}
        return {**means, "gradient_norm": norm, "learning_rate": rate, **groups}

    def enter_stage(self, name: str) -> None:
        if name:
            set_trainable(self.model, self.config.stages[name].train, self.config.optimizer)
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
        # One look at the device per step. What every rank sees is equal, so that all of them stop or none.
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
        shrinks it by a share of learning rate x ``weight_decay`` per step until masking begins.
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
