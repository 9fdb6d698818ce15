"""The official network of FID: read from its file alone, and its features are of the right number."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from tunalab.errors import UserError
from tunalab.evaluation import reconstruction as inception
from tunalab.evaluation.reconstruction import check_weights, inception_features
from tunalab.files import sha256

CPU = torch.device("cpu")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of random weights that passes for the official one."""
    path = tmp_path / "inception.pth"
    torch.save({}, path)

    def leave_random(self: Any, state: dict[str, Any]) -> None:
        assert state == {}

    with monkeypatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", leave_random)
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(inception, "SHA256", sha256(path))
    return path


def test_features_of_images(weights: Path) -> None:
    images_NHWC = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    images_NHWC[2] = images_NHWC[0]
    features_ND = inception_features(weights, images_NHWC, CPU)
    assert features_ND.shape == (3, 2048) and features_ND.dtype == torch.float64 and features_ND.isfinite().all()
    apart = [(features_ND[0] - features_ND[n]).norm() / features_ND[0].norm() for n in (1, 2)]
    assert apart[0] > 1e-3 and apart[1] < 1e-4


def test_a_missing_and_a_wrong_file_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file .the official weights: https"):
        check_weights(tmp_path / "none.pth")
    (tmp_path / "other.pth").write_bytes(b"not weights")
    with pytest.raises(UserError, match="is not the file of the official weights"):
        check_weights(tmp_path / "other.pth")
