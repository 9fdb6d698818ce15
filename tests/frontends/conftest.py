"""Components trained for two steps, and every front-end built on them."""

from pathlib import Path

import pytest
import torch
from stand_ins import TINY, WIDTH, noise_captions, noise_texts
from tests.variants import SETTINGS

from tunalab.frontends.components.build import PARTS, train_components
from tunalab.frontends.components.store import Components
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.registry import build_frontend
from tunalab.settings.schema import FrontEndConfig


@pytest.fixture(scope="session")
def components_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a collection of the name "tiny", which stands before the one that comes with the package."""
    root: Path = tmp_path_factory.mktemp("components")
    train_components(root / "tiny", PARTS, TINY, lambda line: None, noise_captions, noise_texts)
    return root


@pytest.fixture(autouse=True)
def components(components_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Components:
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(components_folder))
    return Components()


@pytest.fixture(params=SETTINGS)
def settings(request: pytest.FixtureRequest) -> FrontEndConfig:
    """Those of every file in variants/."""
    return FrontEndConfig(**SETTINGS[request.param])


@pytest.fixture
def frontend(settings: FrontEndConfig, components: Components) -> VisualFrontEnd:
    torch.manual_seed(0)
    return build_frontend(settings, WIDTH, 32, components)
