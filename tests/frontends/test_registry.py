"""Variants: one front-end each, nothing else, and the same number of tokens at equal image size; what a build refuses."""

import ast
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from stand_ins import WIDTH
from tests.variants import FILES, SETTINGS

from tunalab.errors import UserError
from tunalab.frontends import registry
from tunalab.frontends.components.store import Components
from tunalab.frontends.registry import FRONTENDS, build_frontend, frontend_class
from tunalab.model.unified import build_model
from tunalab.settings.layers import read_yaml
from tunalab.settings.loading import load_config
from tunalab.settings.schema import FrontEndConfig

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "scenes.yaml"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_variant_sets_the_front_end_and_nothing_else(path: Path) -> None:
    assert set(read_yaml(path)) - {"label", "colour"} == {"frontend"}
    assert FrontEndConfig(**read_yaml(path)["frontend"]).name in FRONTENDS
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("size", [32, 64])
def test_token_counts_match_across_variants(size: int) -> None:
    with torch.device("meta"):
        built = {name: build_frontend(FrontEndConfig(**one), WIDTH, size, Components()) for name, one in SETTINGS.items()}
    grids = {name: frontend.space.grid(size, size) for name, frontend in built.items()}
    assert len(set(grids.values())) == 1, grids


def test_three_pieces_make_a_run(settings: FrontEndConfig, tmp_path: Path) -> None:
    """File, line and YAML alone, the README's too: they resolve to a configuration whose model builds."""
    variant = tmp_path / "added.yaml"
    variant.write_text(yaml.safe_dump({"frontend": asdict(settings)}))
    config = load_config(EXPERIMENT, variant, [])
    assert config.frontend == settings and config.variant == "added"
    with torch.device("meta"):
        model = build_model(config, None, 512)
    assert type(model.frontend) is frontend_class(settings.name)


def test_a_registered_name_that_is_no_front_end_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.FRONTENDS, "patch_embed", "TargetSpace")
    with pytest.raises(UserError, match="TargetSpace of tunalab.frontends.patch_embed is not a VisualFrontEnd"):
        frontend_class("patch_embed")


ROOT = Path(__file__).parents[2]


def test_readme_shows_a_shipped_front_end_whole() -> None:
    section = (ROOT / "README.md").read_text().split("\n## Your own\n")[1].split("\n## ")[0]
    found = re.findall(r"`([\w/.]+)`:\n\n```(\w+)\n(.*?)```", section, flags=re.DOTALL)
    assert [(name, language) for name, language, _ in found] == [
        ("src/tunalab/frontends/bottleneck.py", "python"),
        ("src/tunalab/frontends/registry.py", "python"),
        ("variants/bottleneck.yaml", "yaml"),
    ]
    (name, _, file), (_, _, line), (variant, _, settings) = found
    assert (ROOT / name).read_text() == file
    assert (ROOT / variant).read_text() == settings
    assert line.count("\n") == 1, "one line in the registry"
    assert ast.literal_eval("{" + line + "}").items() <= FRONTENDS.items()
