"""Variants: one front-end each, nothing else, and the same number of tokens at equal image size."""

from pathlib import Path

import pytest
import torch
from stand_ins import WIDTH

from tunalab.config import FrontEndConfig, read_yaml
from tunalab.frontends.components.handle import Components
from tunalab.frontends.registry import FRONTENDS, build_frontend

VARIANTS = sorted((Path(__file__).parents[2] / "variants").glob("*.yaml"))


def frontend_config(path: Path) -> FrontEndConfig:
    return FrontEndConfig(**read_yaml(path)["frontend"])


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_a_variant_sets_the_front_end_and_nothing_else(path: Path) -> None:
    assert set(read_yaml(path)) == {"frontend"}
    assert frontend_config(path).name in FRONTENDS
    assert path.read_text().startswith("# ")


def test_every_front_end_has_a_variant() -> None:
    assert {frontend_config(path).name for path in VARIANTS} == set(FRONTENDS)


@pytest.mark.parametrize("size", [32, 64])
def test_token_counts_match_across_variants(size: int) -> None:
    with torch.device("meta"):
        built = {path.stem: build_frontend(frontend_config(path), WIDTH, size, Components()) for path in VARIANTS}
    grids = {name: frontend.space.grid(size, size) for name, frontend in built.items()}
    assert len(set(grids.values())) == 1, grids
