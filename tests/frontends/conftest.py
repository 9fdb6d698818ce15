"""Components trained for two steps, and every front-end built on them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from readme_example import register
from stand_ins import TINY, WIDTH, noise_captions, noise_texts
from tests.variants import SETTINGS

from tunalab.config import FrontEndConfig
from tunalab.frontends.components.build import build_components
from tunalab.frontends.components.handle import Components
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.registry import build_frontend

README = "the README's example"


@pytest.fixture(scope="session")
def components(tmp_path_factory: pytest.TempPathFactory) -> Components:
    root: Path = tmp_path_factory.mktemp("components")
    return build_components(TINY, lambda line: None, root, noise_captions, noise_texts)


@pytest.fixture(params=[*SETTINGS, README])
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FrontEndConfig]:
    """Those of every file in variants/, and of a front-end that somebody adds as the README says."""
    if request.param != README:
        yield FrontEndConfig(**SETTINGS[request.param])
        return
    added = register(tmp_path, monkeypatch)
    yield added
    sys.modules.pop(f"tunalab.frontends.{added.name}", None)


@pytest.fixture
def frontend(settings: FrontEndConfig, components: Components) -> VisualFrontEnd:
    torch.manual_seed(0)
    return build_frontend(settings, WIDTH, 32, components)
