"""The device and the precision that a trained model computes with."""

from contextlib import AbstractContextManager

import torch

from tunalab.config import RunConfig
from tunalab.errors import UserError


def find_device(name: str | None) -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:<n>``; None: a CUDA device if there is one. Raises UserError for one that is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choices = ["cpu", *(["cuda"] if torch.cuda.is_available() else []), *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    if name not in choices:
        raise UserError(f"--device {name} is not there (choices: {', '.join(choices)})")
    return torch.device(name)


def precision(config: RunConfig, device: torch.device) -> str:
    """bf16 or fp32, as in training (config.precision)."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" else "fp32"


def mixed(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Inside, products are computed in ``precision``; weights and sums stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
