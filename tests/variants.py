"""The shipped variants, read from their files: what is tested for every front-end runs over these and names none of them."""

from pathlib import Path
from typing import Any

from tunalab.settings.layers import read_experiment, read_yaml
from tunalab.settings.schema import FrontEndConfig

FILES = sorted((Path(__file__).parent.parent / "variants").glob("*.yaml"))
SETTINGS: dict[str, dict[str, Any]] = {path.stem: read_yaml(path)["frontend"] for path in FILES}


def variants_of(experiment: Path) -> list[Path]:
    """The variants that an experiment is for: those it gives a front-end of its own scale, if it does so, else all."""
    scaled = {
        name for name, layers in read_experiment(experiment).variants.items() if any("frontend" in one.settings for one in layers)
    }
    return [path for path in FILES if path.stem in scaled or not scaled]


def settings_of(name: str) -> FrontEndConfig:
    """Settings of a registered front-end: those of the first variant that uses it."""
    return next(FrontEndConfig(**settings) for settings in SETTINGS.values() if settings["name"] == name)


# Those that the full-scale recipes give a front-end of their size.
FULL_SCALE = [path.stem for path in variants_of(FILES[0].parents[1] / "experiments" / "paper_7b.yaml")]
