"""Features of the network behind published FIDs: Inception v3 with its official weights, from a local file.

Shapes: N images, H W pixels, C channels, D = 2048 features.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from tunalab.errors import UserError
from tunalab.files import sha256

SHA256 = "6726825d"  # as far as the file's published name tells it
_BATCH = 32


def check_weights(weights: Path) -> None:
    """Raises UserError: there is no such file, or it is not the published one: a pickle of unknown origin is not opened."""
    if not weights.is_file():
        raise UserError(f"reconstruction.inception={weights}: no such file (the official weights: {URL_INCEPTION_V3})")
    if not sha256(weights).startswith(SHA256):
        raise UserError(f"reconstruction.inception={weights} is not the file of the official weights ({URL_INCEPTION_V3})")


@torch.no_grad()
def inception_features(weights: Path, images_NHWC: np.ndarray, device: torch.device) -> Tensor:
    """Features (N, D) float64, on the CPU, of uint8 images. Raises UserError as :func:`check_weights`."""
    check_weights(weights)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)).to(device)
    image_NCHW = torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2)
    return torch.cat([network(part_NCHW.to(device))[0].double().cpu() for part_NCHW in image_NCHW.split(_BATCH)])
