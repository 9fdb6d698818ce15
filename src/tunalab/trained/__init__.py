"""Trained models read back and exported. Here: what a model's path says, before torch takes seconds to be imported."""

from pathlib import Path

from tunalab.errors import UserError
from tunalab.training import kept_at


def check_folder(path: str | Path) -> None:
    """Raises UserError: there is no such folder."""
    place, _ = kept_at(path)
    if not place.is_dir():
        raise UserError(f"{place}: no such folder (a model is a run directory or an exported folder)")
