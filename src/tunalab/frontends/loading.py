"""Reading files that must be whole, and weights that must fit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tunalab.errors import UserError

SHOWN = 6


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object. Raises UserError, naming ``what`` and the file, when it is missing or broken."""
    if not path.is_file():
        raise UserError(f"{what}: {path} is missing")
    try:
        loaded = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"{what}: {path} is damaged ({str(error).splitlines()[0]})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{what}: {path} is damaged (not a JSON object)")
    return loaded


def load_strictly(module: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Copy ``weights`` into ``module``. Nothing is copied unless every name and shape agrees (:func:`check_fit`)."""
    check_fit(module.state_dict(), weights, what)
    module.load_state_dict(weights)


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], what: str) -> None:
    """Every name and shape of ``weights`` is that of ``own``.

    Raises UserError listing both sides: a part left at its random start would train on without a sign.
    """
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if own[name].shape != weights[name].shape
    ]
    if missing or unexpected or shapes:
        sides = [
            f"{len(names)} {title}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
            for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if names
        ]
        raise UserError(f"{what}: weights do not fit; {'; '.join(sides)}")
