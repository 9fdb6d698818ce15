"""Maps over visual tokens, drawn over the image that they belong to.

Shapes: H W image pixels, C 3 channels; T visual tokens, R K rows and columns of their grid.
"""

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from scipy.ndimage import binary_erosion

from tunalab.inference.attention_maps import min_max

SIDE = 192  # pixels that small images are enlarged to, or nearly: an overlay of 32 pixels shows nothing
STRENGTH = 0.5  # of the map; the rest is the image


def draw_map(image_HWC: np.ndarray, map_T: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A map over the grid (rows, columns) of an image, scaled to its own range, over the image, enlarged."""
    return overlay(enlarged(image_HWC), min_max(map_T).reshape(grid))


def enlarged(image_HWC: np.ndarray) -> np.ndarray:
    """A small image, or mask (H, W), a whole number of times as large, each pixel a square."""
    scale = max(1, round(SIDE / max(image_HWC.shape[:2])))
    return image_HWC.repeat(scale, axis=0).repeat(scale, axis=1)


def overlay(image_HWC: np.ndarray, map_RK: np.ndarray) -> np.ndarray:
    """A map of values between 0 and 1, enlarged bilinearly, in the colours of ``jet`` over the image: uint8 (H, W, 3)."""
    height, width = image_HWC.shape[:2]
    map_11RK = torch.from_numpy(np.ascontiguousarray(map_RK, dtype=np.float32))[None, None]
    map_HW = F.interpolate(map_11RK, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
    heat_HWC = 255 * colormaps["jet"](map_HW)[..., :3]
    return np.rint(STRENGTH * heat_HWC + (1 - STRENGTH) * image_HWC).astype(np.uint8)


def outlined(image_HWC: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """The image with the edge of a mask in white, and a black line within it: seen on any colour."""
    drawn_HWC = image_HWC.copy()
    inner_HW = binary_erosion(mask_HW, iterations=2)
    drawn_HWC[mask_HW & ~inner_HW] = 255
    drawn_HWC[inner_HW & ~binary_erosion(inner_HW)] = 0
    return drawn_HWC
