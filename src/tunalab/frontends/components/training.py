"""How components are trained: batches from a split that no run sees, one loop that can be stopped and goes on.

Shapes: B images, H W pixels, C colours.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from math import inf
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tunalab.errors import UserError
from tunalab.files import whole_file
from tunalab.frontends.contract import signed

TRAIN_SPLIT, HELD_OUT_SPLIT = "components", "test"
# Scenes of every kind, words four times as often as each other kind, and half of their captions the word alone. From whole
# captions an encoder learns to tell the words of a batch apart by colour and place, and reads hardly better than its random
# weights: a linear probe of words after 1,000 steps gives .47 so, .30 with whole captions, .25 with random weights.
MIX = ("ocr", "objects", "relations", "ocr", "charts", "pairs", "ocr", "search", "count", "ocr", "pattern")
SHORT = 0.5
WARMUP = 50
SAVE_SECONDS = 60.0

# Wraps the loop over steps, to show how far it is.
Progress = Callable[[Iterable[int]], Iterable[int]]
TextSource = Callable[[int, int], list[str]]  # (seed, count) -> texts


class CaptionSource(Protocol):
    def __call__(
        self, split: str, seed: int, count: int, image_size: int, kinds: Sequence[str] = ..., short: float = ...
    ) -> tuple[np.ndarray, list[str]]:
        """Images (count, H, W, C) uint8 and their captions, a function of the arguments alone."""


def to_tensor(images_BHWC: np.ndarray) -> Tensor:
    """uint8 (B, H, W, C) to float RGB (B, C, H, W) in [-1, 1]."""
    return signed(torch.from_numpy(images_BHWC).permute(0, 3, 1, 2))


def training_batch(source: CaptionSource, seed: int, step: int, batch: int, image_size: int) -> tuple[np.ndarray, list[str]]:
    """The images and captions of a step: new ones each time, the same ones when the step is taken again."""
    return source(TRAIN_SPLIT, seed * 1_000_000 + step, batch, image_size, kinds=MIX, short=SHORT)


def trainer_device() -> torch.device:
    """Components are small but need minutes on one core, so a GPU is used when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def power_average(averaged: Any, current: Any, count: Any) -> None:
    """The weights of step t enter the average in proportion to t**6.94, so that it always spans about the last tenth of the steps.

    Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv 2312.02696), equation 5. Under a
    constant learning rate it does what a decay to zero would, at every step that a snapshot may be taken at.
    """
    torch._foreach_lerp_(averaged, current, 1 - (1 - 1 / (int(count) + 1)) ** 7.94)


def check_sizes(part: str, config: Any, names: Sequence[str]) -> None:
    """Raises UserError, one line: a number of a recipe is out of range."""
    for name in names:
        if getattr(config, name) < 1:
            raise UserError(f"{part}.{name}={getattr(config, name)} is out of range (from 1)")
    if config.seed < 0:
        raise UserError(f"{part}.seed={config.seed} is out of range (from 0)")
    if not 0 < config.lr < inf:
        raise UserError(f"{part}.lr={config.lr:g} is out of range (above 0)")


def train(
    model: nn.Module,
    lr: float,
    steps: int,
    loss_of: Callable[[int], Tensor],
    snapshots: dict[int, Callable[[nn.Module, dict[str, Any]], None]],
    state: Path,
    progress: Progress,
    recipe: dict[str, Any],
    weight_decay: float = 1e-3,
) -> None:
    """AdamW at a constant rate after a warm-up. ``loss_of(step)`` gives a step's loss, a function of weights and step alone.

    ``snapshots[steps]`` is called with the averaged model (:func:`power_average`) and what there is to record: the mean loss of
    each hundredth of the steps so far, the seconds spent. ``state``: file from which a stopped training goes on, if it is of the
    same ``recipe``; it is removed at the end.
    """
    averaged = AveragedModel(model, multi_avg_fn=power_average)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    done, spent, losses = 0, 0.0, list[float]()
    saved = torch.load(state, map_location="cpu", weights_only=True) if state.is_file() else {}
    if saved.get("recipe") == recipe:
        model.load_state_dict(saved["model"])
        averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        done, spent, losses = saved["done"], saved["seconds"], saved["losses"]
    started = saved_at = time.monotonic()
    for step in progress(range(done, steps)):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / WARMUP)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        averaged.update_parameters(model)
        losses.append(loss.item())
        now = time.monotonic()
        if step + 1 in snapshots:
            record = {"losses": curve(losses, max(1, steps // 100)), "seconds": round(spent + now - started, 1)}
            snapshots[step + 1](averaged.module, record)
        if now - saved_at > SAVE_SECONDS or step + 1 in snapshots:
            saved_at = now
            with whole_file(state) as file:
                torch.save(
                    {
                        "recipe": recipe,
                        "model": model.state_dict(),
                        "averaged": averaged.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "done": step + 1,
                        "seconds": spent + now - started,
                        "losses": losses,
                    },
                    file,
                )
    state.unlink(missing_ok=True)


def curve(losses: list[float], window: int) -> list[tuple[int, float]]:
    """(steps, mean loss of the ``window`` steps before)."""
    return [(end, round(float(np.mean(losses[end - window : end])), 5)) for end in range(window, len(losses) + 1, window)]
