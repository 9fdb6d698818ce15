"""Components trained for two steps, and every registered front-end built on them."""

from pathlib import Path

import pytest
import torch
from stand_ins import CONFIGS, TINY, WIDTH, noise_captions, noise_texts

from tunalab.frontends.components.build import build_components
from tunalab.frontends.components.handle import Components
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.registry import FRONTENDS, build_frontend


@pytest.fixture(scope="session")
def components(tmp_path_factory: pytest.TempPathFactory) -> Components:
    root: Path = tmp_path_factory.mktemp("components")
    return build_components(TINY, lambda line: None, root, noise_captions, noise_texts)


@pytest.fixture(params=sorted(FRONTENDS))
def frontend(request: pytest.FixtureRequest, components: Components) -> VisualFrontEnd:
    """Every registered front-end. A new one needs its line in CONFIGS."""
    torch.manual_seed(0)
    return build_frontend(CONFIGS[request.param], WIDTH, 32, components)
