"""The LightningModule of every variant: it wires model, objective and optimiser, and holds no maths of its own."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from tunalab.config import RunConfig
from tunalab.data.stream import Step
from tunalab.model.flops import FlopCosts
from tunalab.model.objective import draw, loss_counts, losses
from tunalab.model.unified import UnifiedModel
from tunalab.training.ema import Ema
from tunalab.training.memory import peak_memory
from tunalab.training.stages import learning_rate, masks, set_trainable


class NonFiniteLoss(Exception):
    """The loss or the gradient is not a number: the run stops before the step, so the last checkpoint stays good."""


@dataclass
class Progress:
    """How far a run is. ``seconds`` is training time without evaluation; ``lanes`` as TrainingStream's ``resume``;
    ``peak_memory`` in bytes, the most of all starts of the run.
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


class Harness(LightningModule):
    """Trains any variant. Optimisation is manual because a loss is divided by the count over the whole step, all micro-batches and
    ranks together, which is known before the first forward pass.
    """

    def __init__(self, config: RunConfig, model: UnifiedModel, costs: FlopCosts) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.model = model
        self.costs = costs
        self.progress = Progress()
        self.ema = Ema(self.learnt(), config.optimizer.ema)
        self._clock: float | None = None

    def learnt(self) -> dict[str, nn.Parameter]:
        """Every parameter that some stage trains: all but the front-end's frozen parts."""
        frozen = tuple(f"frontend.{part}." for part in self.model.frontend.frozen_parts)
        return {name: p for name, p in self.model.named_parameters() if not name.startswith(frozen)}

    def on_fit_start(self) -> None:
        self.ema.follow()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        o = self.config.optimizer
        return torch.optim.AdamW(
            self.learnt().values(), lr=0.0, betas=(o.beta1, o.beta2), eps=o.eps, weight_decay=o.weight_decay, fused=True
        )

    def transfer_batch_to_device(self, batch: Step, device: torch.device, dataloader_idx: int) -> Step:
        batch.batches = [micro.to(device) for micro in batch.batches]
        return batch

    def training_step(self, step: Step, batch_idx: int) -> dict[str, float]:
        """One optimiser step; returns the losses averaged over their tokens, for logging."""
        self._clock = self._clock or time.perf_counter()
        stage = self.config.stages[step.stage]
        if step.stage != self.progress.stage:
            set_trainable(self.model, stage.train)
            self.progress.stage = step.stage
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage, self.config.optimizer, step.stage_step)
        means = self._backward(step)
        norm = nn.utils.clip_grad_norm_(self.learnt().values(), self.config.optimizer.clip or float("inf"))
        if not torch.isfinite(norm):
            raise NonFiniteLoss(f"gradient norm is {norm.item()} at step {self.progress.steps} (losses: {means})")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self._advance(step)
        return {**means, "gradient_norm": norm.item(), "learning_rate": optimizer.param_groups[0]["lr"]}

    def _backward(self, step: Step) -> dict[str, float]:
        objective = self.config.objective
        weights = {"text": objective.text_weight, "flow": objective.flow_weight}
        totals = self._total_counts(step)
        means = dict.fromkeys(weights, 0.0)
        masking = masks(objective.masking, self.config.stages[step.stage], step.stage_progress)
        for batch in step.batches:
            draws = draw(batch, objective, self.config.seed, self.model.frontend.space, masking)
            parts = losses(self.model, batch, draws, objective)
            # Data-parallel training averages gradients over ranks, so each rank's share is scaled up to make it a sum.
            loss: Tensor = sum(  # type: ignore[assignment]
                weights[name] * part.sum * self.trainer.world_size / max(totals[name], 1) for name, part in parts.items()
            )
            if not torch.isfinite(loss):
                values = {name: part.sum.item() for name, part in parts.items()}
                raise NonFiniteLoss(f"loss is not finite at step {self.progress.steps}: {values}")
            self.manual_backward(loss)
            for name, part in parts.items():
                means[name] += part.sum.item() / max(totals[name], 1)
        return means

    def _total_counts(self, step: Step) -> dict[str, int]:
        counts = [loss_counts(batch) for batch in step.batches]
        totals = {name: sum(count[name] for count in counts) for name in counts[0]}
        if self.trainer.world_size == 1:
            return totals
        summed = self.trainer.strategy.reduce(torch.tensor(list(totals.values()), device=self.device), reduce_op="sum")
        return dict(zip(totals, summed.tolist(), strict=True))  # type: ignore[union-attr]

    def _advance(self, step: Step) -> None:
        assert self._clock is not None
        now = time.perf_counter()
        p = self.progress
        p.seconds += now - self._clock
        self._clock = now
        p.tokens += step.tokens
        p.images += step.images
        p.steps += 1
        p.flops += sum(self.costs.step(batch) for batch in step.batches)
        p.lanes[step.lane] = step.lane_state
        p.next_lane = (step.lane + 1) % max(1, self.config.data.workers)

    def pause_clock(self) -> None:
        """Evaluation and checkpoints are not training time."""
        self._clock = None

    def note_memory(self) -> None:
        self.progress.peak_memory = max(self.progress.peak_memory, peak_memory())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Frozen parts are rebuilt from their component, never stored."""
        self.note_memory()
        frozen = self._frozen_prefixes()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith(frozen)}
        checkpoint["tunalab"] = {"progress": asdict(self.progress), "ema": self.ema.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = self._frozen_prefixes()
        present = {k: v for k, v in self.state_dict().items() if k.startswith(frozen)}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **present}
        self.progress = Progress(**checkpoint["tunalab"]["progress"])
        self.ema.load_state_dict(checkpoint["tunalab"]["ema"])
        if self.progress.stage:
            set_trainable(self.model, self.config.stages[self.progress.stage].train)

    def _frozen_prefixes(self) -> tuple[str, ...]:
        # str.startswith(()) is False, so no frozen part means nothing is left out.
        return tuple(f"model.frontend.{part}." for part in self.model.frontend.frozen_parts)
