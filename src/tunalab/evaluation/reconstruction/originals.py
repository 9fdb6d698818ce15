"""Images to give back: scenes of the test split, and the photographs that scikit-image brings. The same for every model.

Shapes: N images, H W pixels.
"""

from pathlib import Path

import numpy as np
import skimage.data

from tunalab.data.buckets import Buckets
from tunalab.data.documents import Reject
from tunalab.data.image_files import read_image
from tunalab.data.scenes import caption_examples
from tunalab.errors import UserError

SPLIT = "test"
_SEED = 0  # never the run's
# Of the files in scikit-image itself, which are read without a download, those that a camera took; of a stereo pair one.
PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png", "grass.png"),
    *("gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
)


def scenes(count: int, image_size: int) -> np.ndarray:
    """Scenes of every kind in turn, levels mixed as in the images that components are trained on: uint8 (N, H, W, 3)."""
    images_NHWC, _ = caption_examples(SPLIT, _SEED, count, image_size)
    return images_NHWC


def photographs(image_size: int) -> np.ndarray:
    """The centre square of each photograph at the model's size: uint8 (N, H, W, 3). Raises UserError when a file is missing."""
    folder = Path(skimage.data.__file__).parent
    try:
        square = Buckets.square(image_size).unbounded()
        return np.stack([read_image(folder / name, square) for name in PHOTOGRAPHS])
    except Reject as reject:
        raise UserError(f"photographs of scikit-image: {reject}; install the version of constraints.txt") from reject
