"""How weights move: which of them learn in a stage, at what rate, by which rule, and their average.

A rate is the stage's, times its warm-up and schedule, times the factor of the parameter's group
(``optimizer.groups``). Nothing here has state that a checkpoint would have to keep besides the
optimiser's and the average's, which are stored by the names of parameters: groups are made anew from
the settings at every start.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tunalab.errors import UserError
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import MaskingConfig, OptimizerConfig, ParameterGroupConfig, StageConfig
from tunalab.training.blocks import recomputed


def learnt_parameters(model: UnifiedModel) -> dict[str, nn.Parameter]:
    """Every parameter that some stage trains: all but the front-end's frozen parts."""
    return {name: p for name, p in model.named_parameters() if not is_frozen(model, name)}


def is_frozen(model: UnifiedModel, name: str) -> bool:
    """Of an entry of the model's state."""
    return name.startswith(tuple(f"frontend.{part}." for part in model.frontend.frozen_parts))


def set_trainable(model: UnifiedModel, train: str, optimizer: OptimizerConfig) -> None:
    """Switch gradients on for the parts that a stage trains: all | connector | without_encoder (see
    StageConfig), and off for groups of rate 0.

    A front-end without connector trains everything in every stage: its budget is spent, not skipped.
    Frozen and fixed parts never learn.
    """
    frontend = model.frontend
    whole = train == "all" or not frontend.connector_parts
    groups = matched_groups(learnt_parameters(model), optimizer.groups)
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
        still = name in groups and optimizer.groups[groups[name]].lr == 0
        parameter.requires_grad_(learns and not still)


def learning_rate(stage: StageConfig, optimizer: OptimizerConfig, stage_step: int, stage_progress: float) -> float:
    """The stage's rate after ``stage_step`` of its steps and the share ``stage_progress`` of its tokens.

    Linear warm-up from the start of the stage, times the schedule. At a constant rate every point of a
    curve is a legitimate end of training; with another schedule only the last one is.
    """
    warmup = min(1.0, (stage_step + 1) / max(optimizer.warmup_steps, 1))
    at, end = min(stage_progress, 1.0), stage.final_lr  # data processes may go on a little past 1
    if stage.schedule == "cosine":
        share = end + (1 - end) * (1 + math.cos(math.pi * at)) / 2
    elif stage.schedule == "wsd":  # warm-up, stable, decay
        share = 1 - (1 - end) * max(0.0, 1 - (1 - at) / stage.cooldown)
    else:
        share = 1.0
    return stage.lr * optimizer.lr_factor * warmup * share


def masks(masking: MaskingConfig, stage: StageConfig, stage_progress: float) -> bool:
    """Whether visual tokens are masked at this point: only in the last part of a stage that masks."""
    return masking.ratio > 0 and stage.masking and stage_progress >= masking.start


def matched_groups(names: Mapping[str, nn.Parameter], groups: Mapping[str, ParameterGroupConfig]) -> dict[str, str]:
    """Parameter -> group, for every parameter that a group matches.

    Raises UserError, one line: a group matches nothing, or two groups match one parameter.
    """
    owner: dict[str, str] = {}
    for group, settings in groups.items():
        matched = [name for name in names if _matches(settings.match, name)]
        if not matched:
            choices = ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
            raise UserError(
                f"optimizer.groups.{group}.match={settings.match} matches no parameter that is trained "
                f"(their names begin with {choices})"
            )
        for name in matched:
            if name in owner:
                raise UserError(
                    f"optimizer.groups.{group}.match={settings.match} matches {name}, which group "
                    f"{owner[name]} (match={groups[owner[name]].match}) matches too: a parameter "
                    "has one group"
                )
            owner[name] = group
    return owner


def _matches(match: str, name: str) -> bool:
    """As a pattern where it holds one of ``*?[``, else as the whole name or its first parts."""
    if any(letter in match for letter in "*?["):
        return fnmatchcase(name, match)
    return name == match or name.startswith(f"{match}.")


def parameter_groups(model: UnifiedModel, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    """What torch's optimisers take, one entry for all that is treated alike: ``params``, ``name``,
    ``factor`` of the stage's rate, ``weight_decay``, and whether ``muon`` moves them.

    Without groups, with decay on all and with AdamW that is one entry of all parameters.

    Raises UserError as :func:`matched_groups`.
    """
    learnt = learnt_parameters(model)
    owner = matched_groups(learnt, optimizer.groups)
    tables = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    hidden = {p for block in recomputed(model) for p in block.parameters()}
    made: dict[tuple[str | None, bool, bool], dict[str, Any]] = {}
    for name, p in learnt.items():
        group = owner.get(name)
        settings = optimizer.groups[group] if group is not None else ParameterGroupConfig()
        decay = optimizer.weight_decay if settings.weight_decay < 0 else settings.weight_decay
        # Not by dimensions alone: learnt positions and class tokens of an encoder have two and more.
        matrix = p.ndim >= 2 and name.endswith("weight") and p not in tables
        muon = optimizer.name == "muon" and matrix and p.ndim == 2 and p in hidden
        spared = optimizer.weight_decay_on == "matrices" and not matrix
        key = (group, muon, spared)
        if key not in made:
            label = (group or "others") + ("/muon" if muon else "") + ("/no decay" if spared else "")
            made[key] = {"params": [], "name": label, "factor": settings.lr, "muon": muon}
            made[key]["weight_decay"] = 0.0 if spared else decay
        made[key]["params"].append(p)
    return list(made.values())


def make_optimizer(model: UnifiedModel, optimizer: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon for matrices inside blocks beside AdamW for everything else. All rates are 0 yet."""
    entries = parameter_groups(model, optimizer)
    rest, hidden = ([entry for entry in entries if entry["muon"] == muon] for muon in (False, True))
    betas = (optimizer.beta1, optimizer.beta2)
    adamw = torch.optim.AdamW(rest, lr=0.0, betas=betas, eps=optimizer.eps, weight_decay=optimizer.weight_decay, fused=True)
    if not hidden:
        return adamw
    # Updates as large as AdamW's, so that a stage's rate and weight decay mean the same for both.
    muon = torch.optim.Muon(hidden, lr=0.0, momentum=optimizer.momentum, adjust_lr_fn="match_rms_adamw")
    return Combined([adamw, muon])


class Combined(torch.optim.Optimizer):
    """Optimisers of different parameters as one, which shares its groups and its state with them."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


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
