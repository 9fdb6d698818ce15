"""Finished runs of every front-end, as small as a run can be."""

from pathlib import Path

import pytest
from tests.training.conftest import MIX, quick_components, quick_config, use_quick_components
from tests.variants import SETTINGS

from tunalab.training.run import train

__all__ = ["quick_components", "use_quick_components"]


@pytest.fixture(scope="session", params=sorted(SETTINGS))
def run_dir(request: pytest.FixtureRequest, quick_components: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / f"{request.param}-seed0"
    stages = {"pretrain": {"tokens": 700, "masking": True, "mix": MIX}}
    config = quick_config(
        request.param,
        stages=stages,
        evaluation__points=1,
        evaluation__groups=0,
        evaluation__loss_documents=0,
        evaluation__psnr_images=0,
        evaluation__sample_prompts=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNALAB_COMPONENTS", str(quick_components))
        assert train(config, folder) == 0
    return folder
