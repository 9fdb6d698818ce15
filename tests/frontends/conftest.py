"""Components trained for two steps, and every front-end built on them."""

from pathlib import Path

import pytest
import torch
from stand_ins import TINY, WIDTH, noise_captions, noise_texts
from tests.variants import SETTINGS

from tunalab.frontends.components.build import build_components
from tunalab.frontends.components.store import Components
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.registry import build_frontend
from tunalab.settings.schema import FrontEndConfig


@pytest.fixture(scope="session")
def components(tmp_path_factory: pytest.TempPathFactory) -> Components:
    root: Path = tmp_path_factory.mktemp("components")
    return build_components(TINY, lambda line: None, root, noise_captions, noise_texts)


@pytest.fixture(params=SETTINGS)
def settings(request: pytest.FixtureRequest) -> FrontEndConfig:
    """Those of every file in variants/."""
    return FrontEndConfig(**SETTINGS[request.param])


@pytest.fixture
def frontend(settings: FrontEndConfig, components: Components) -> VisualFrontEnd:
    torch.manual_seed(0)
    return build_frontend(settings, WIDTH, 32, components)
