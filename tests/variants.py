"""The shipped variants, read from their files: what is tested for every front-end runs over these and names none of them."""

from pathlib import Path
from typing import Any

from tunalab.config import FrontEndConfig, read_yaml

FILES = sorted((Path(__file__).parent.parent / "variants").glob("*.yaml"))
SETTINGS: dict[str, dict[str, Any]] = {path.stem: read_yaml(path)["frontend"] for path in FILES}


def settings_of(name: str) -> FrontEndConfig:
    """Settings of a registered front-end: those of the first variant that uses it."""
    return next(FrontEndConfig(**settings) for settings in SETTINGS.values() if settings["name"] == name)
