"""Colours by name: the nearest of a few of the corpus's palette, or none where even that one is far.

Nearest as seen, in CIELAB, so that a colour that came out too light keeps its name. Shapes: C colour channels between 0 and 1.
"""

from functools import lru_cache

import numpy as np
from skimage.color import rgb2lab

from tunalab.data.scenes.vocabulary import RGB

UNCLEAR = "unclear"
# Largest distance from a name's own colour: about that of the palette's nearest two, red and orange. Brown, magenta and olive are
# near it, on this side or that.
REJECTION = 40.0
BETWEEN = 0.7  # a colour has a name when it is nearer to it than this share of the distance to the next


def colour(name: str) -> np.ndarray:
    """(C,) float32."""
    return np.asarray(RGB[name], dtype=np.float32) / 255


def nearest(rgb_C: np.ndarray, names: tuple[str, ...], rejection: float = REJECTION) -> str:
    """The nearest of the names, UNCLEAR where it is further than ``rejection`` (finite), or between two names."""
    levels = (int(level) for level in np.round(np.clip(rgb_C, 0, 1) * 255))
    name, distance, second = _nearest(*levels, names)
    return name if distance <= min(rejection, BETWEEN * second) or rejection == np.inf else UNCLEAR


@lru_cache(maxsize=65536)
def _nearest(red: int, green: int, blue: int, names: tuple[str, ...]) -> tuple[str, float, float]:
    known = np.stack([[red, green, blue], *(RGB[name] for name in names)]) / 255
    lab = rgb2lab(known)
    distances = np.linalg.norm(lab[1:] - lab[0], axis=1)
    best, second = (int(n) for n in np.argsort(distances)[:2])
    return names[best], float(distances[best]), float(distances[second])


def distance(one: str, other: str) -> float:
    """Between two names' own colours, in CIELAB."""
    first, second = (rgb2lab(colour(name)) for name in (one, other))
    return float(np.linalg.norm(first - second))
