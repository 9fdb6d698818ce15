"""Features in which images are near or far: the stated network behind FID, KID and diversity.

No network that was trained on photographs can be had offline, nor does it know 32-pixel shapes; and the encoder that was trained on
scenes is where Tuna and Tuna-R begin, so it would judge its own. Two that owe nothing to any variant:

- ``network``: convolutions with fixed random weights. Random networks rank generators as trained ones do, and better far
  from photographs (arXiv 2002.09797, section 4).
- ``pixels``: colours averaged over an 8 x 8 grid: what is where in which colour, blind to shape.

Distances in one are not comparable with distances in the other, nor with published FIDs.

Shapes: N images, C H W channels and pixels, D features.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 32  # pixels that an image is averaged down to, if it has more
GRID = 4  # cells a side of the network's features: where something is matters in scenes
_WIDTHS = (3, 32, 64, 64)
_CHANNELS = 8  # a cell
_PIXELS = 8
_SEED = 0


class RandomNetwork(nn.Module):
    """Three convolutions with rectifiers, the same weights on every machine: (N, 3, H, W) uint8 to (N, 128) float32."""

    num_features = GRID * GRID * _CHANNELS

    def __init__(self) -> None:
        super().__init__()
        # The one generator whose stream numpy promises never to change.
        draws = np.random.RandomState(_SEED)
        layers: list[nn.Module] = []
        for number, (wide_in, wide_out) in enumerate(pairwise(_WIDTHS)):
            layers += [_fixed(draws, nn.Conv2d(wide_in, wide_out, 3, stride=1 if number == 0 else 2, padding=1)), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(GRID), _fixed(draws, nn.Conv2d(_WIDTHS[-1], _CHANNELS, 1)), nn.Flatten()]
        self.layers = nn.Sequential(*layers).requires_grad_(False).eval()

    def forward(self, image_NCHW: Tensor) -> Tensor:
        x_NCHW = image_NCHW.float() / 127.5 - 1
        features_ND: Tensor = self.layers(F.adaptive_avg_pool2d(x_NCHW, SIDE) if x_NCHW.shape[-1] > SIDE else x_NCHW)
        return features_ND


class Pixels(nn.Module):
    """(N, 3, H, W) uint8 to (N, 192) float32 between -1 and 1."""

    num_features = 3 * _PIXELS**2

    def forward(self, image_NCHW: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(image_NCHW.float() / 127.5 - 1, _PIXELS).flatten(1)


NETWORKS: dict[str, type[nn.Module]] = {"network": RandomNetwork, "pixels": Pixels}
LABELS = {"network": "random convolutions", "pixels": "8 x 8 pixels"}


@torch.no_grad()
def features(name: str, images_NHWC: np.ndarray) -> Tensor:
    """Features (N, D) float64 of uint8 images; ``name`` one of NETWORKS."""
    image_NCHW = torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2)
    module = NETWORKS[name]()
    return torch.cat([module(part_NCHW) for part_NCHW in image_NCHW.split(256)]).double()


def features_by_prompt(name: str, images_PSHWC: np.ndarray) -> Tensor:
    """Features (P, S, D) of S images of each of P prompts."""
    P, S = images_PSHWC.shape[:2]
    return features(name, images_PSHWC.reshape(P * S, *images_PSHWC.shape[2:])).reshape(P, S, -1)


def _fixed(draws: np.random.RandomState, layer: nn.Conv2d) -> nn.Conv2d:
    """Weights of variance 2 / fan-in, as for rectifiers, and small shifts so that their bends are not all at grey."""
    fan_in = layer.weight[0].numel()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(draws.standard_normal(tuple(layer.weight.shape)) * (2 / fan_in) ** 0.5))
        assert layer.bias is not None
        layer.bias.copy_(torch.from_numpy(0.2 * draws.standard_normal(len(layer.bias))))
    return layer
