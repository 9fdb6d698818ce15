"""Trained models read back and exported. Here: what a model's path says, before torch takes seconds to be imported."""

from pathlib import Path

from tunalab.errors import UserError


def kept_at(path: str | Path) -> tuple[Path, int | None]:
    """``RUN@TOKENS`` as the run and the tokens of a kept checkpoint; anything else as it is."""
    path = Path(path)
    run, at, tokens = path.name.rpartition("@")
    if run and at and tokens.replace("_", "").isdecimal() and not path.exists():
        return path.with_name(run), int(tokens)
    return path, None


def check_folder(path: str | Path) -> None:
    """Raises UserError: there is no such folder."""
    place, _ = kept_at(path)
    if not place.is_dir():
        raise UserError(f"{place}: no such folder (a model is a run directory or an exported folder)")
