"""Which model made a folder of images."""

from pathlib import Path
from typing import Any

from tunalab.errors import UserError
from tunalab.files import listed
from tunalab.inference.files import read_settings


def makers(folder: Path) -> list[dict[str, Any]]:
    """Every model (exporting.Loaded.identity) that images below the folder name, once; damaged images name none."""
    found: list[dict[str, Any]] = []
    for path in listed(folder, "**/*.png"):
        try:
            settings = read_settings(path) or {}
        except UserError:
            continue
        model = settings.get("model")
        if isinstance(model, dict) and model not in found:
            found.append(model)
    return found


def origin(model: dict[str, Any]) -> dict[str, Any]:
    """As a run's record names the state of its model."""
    return {"run": model["name"], **{key: model[key] for key in ("config_hash", "weights", "steps", "tokens")}}
