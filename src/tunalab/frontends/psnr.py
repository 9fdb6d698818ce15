"""Peak signal-to-noise ratio in pixels: what reconstructions of different target spaces are compared by.

Shapes: B images, H W pixels.
"""

import torch
from torch import Tensor

PEAK = 2.0  # of RGB in [-1, 1]
LEAST_ERROR = 1e-10  # a perfect image would be infinitely good: 106 dB instead


def psnr(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """PSNR in dB of each image (B,), of RGB in [-1, 1]; what the output has beyond that range is cut off, as in a picture."""
    error_B = (output_BCHW.float().clamp(-1, 1) - target_BCHW).square().flatten(1).mean(1).clamp(min=LEAST_ERROR)
    return 10 * torch.log10(PEAK**2 / error_B)
