"""From a scene graph to pixels: exact coverage of shapes and of the glyphs of a 5x7 font.

A thing's coverage depends only on its form and on where its centre falls within a pixel, so
coverages are cached: an image is then a few small blends. Shape suffixes: H, W image rows and
columns; N items; C colour channels.
"""

from functools import lru_cache
from math import ceil, floor

import numpy as np

from tunalab.data.scenes.graph import Item, Scene
from tunalab.data.scenes.vocabulary import RGB, UNITS

WIDTH, HEIGHT = 5, 7

# Seven rows of five dots each, row by row from the top.
_ROWS = {
    "A": ".###. #...# #...# ##### #...# #...# #...#",
    "B": "####. #...# #...# ####. #...# #...# ####.",
    "C": ".#### #.... #.... #.... #.... #.... .####",
    "D": "####. #...# #...# #...# #...# #...# ####.",
    "E": "##### #.... #.... ####. #.... #.... #####",
    "F": "##### #.... #.... ####. #.... #.... #....",
    "G": ".#### #.... #.... #..## #...# #...# .####",
    "H": "#...# #...# #...# ##### #...# #...# #...#",
    "I": "##### ..#.. ..#.. ..#.. ..#.. ..#.. #####",
    "J": "...## ....# ....# ....# #...# #...# .###.",
    "K": "#...# #..#. #.#.. ##... #.#.. #..#. #...#",
    "L": "#.... #.... #.... #.... #.... #.... #####",
    "M": "#...# ##.## #.#.# #.#.# #...# #...# #...#",
    "N": "#...# ##..# ##..# #.#.# #..## #..## #...#",
    "O": ".###. #...# #...# #...# #...# #...# .###.",
    "P": "####. #...# #...# ####. #.... #.... #....",
    "Q": ".###. #...# #...# #...# #.#.# #..#. .##.#",
    "R": "####. #...# #...# ####. #.#.. #..#. #...#",
    "S": ".#### #.... #.... .###. ....# ....# ####.",
    "T": "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..",
    "U": "#...# #...# #...# #...# #...# #...# .###.",
    "V": "#...# #...# #...# #...# .#.#. .#.#. ..#..",
    "W": "#...# #...# #...# #.#.# #.#.# ##.## #...#",
    "X": "#...# .#.#. .#.#. ..#.. .#.#. .#.#. #...#",
    "Y": "#...# #...# .#.#. ..#.. ..#.. ..#.. ..#..",
    "Z": "##### ....# ...#. ..#.. .#... #.... #####",
    "?": ".###. #...# ....# ..##. ..#.. ..... ..#..",
}

GLYPHS: dict[str, np.ndarray] = {
    letter: np.array([[dot == "#" for dot in row] for row in rows.split()], dtype=np.float32) for letter, rows in _ROWS.items()
}


DOT = 2  # side of a small font's dot in units: one pixel at 32 px
_RGB = {name: np.array(rgb, dtype=np.float32) for name, rgb in RGB.items()}


def _distance(shape: str, x: np.ndarray, y: np.ndarray, rx: float, ry: float) -> np.ndarray:
    """Signed distance to the outline (negative inside), in the unit of its arguments; y points down."""
    r = min(rx, ry)
    signed: np.ndarray
    if shape == "circle":
        signed = np.hypot(x, y) - r
    elif shape == "ring":
        signed = np.abs(np.hypot(x, y) - 0.74 * r) - 0.26 * r
    elif shape == "square":
        signed = np.maximum(np.abs(x), np.abs(y)) - 0.88 * r
    elif shape == "diamond":
        signed = (np.abs(x) + np.abs(y) - r) / np.sqrt(2)
    elif shape == "cross":
        bar = 0.32 * r
        wide = np.maximum(np.abs(x) - r, np.abs(y) - bar)
        signed = np.minimum(wide, np.maximum(np.abs(x) - bar, np.abs(y) - r))
    elif shape == "triangle":  # apex at the top, as wide as high
        side = (2 * np.abs(x) - y - 0.9 * r) / np.sqrt(5)
        signed = np.maximum(side, y - 0.9 * r)
    elif shape == "bar":
        signed = np.maximum(np.abs(x) - rx, np.abs(y) - ry)
    else:
        raise ValueError(f"no shape {shape!r}")
    return signed


def _overlap(edges: np.ndarray, count: int) -> np.ndarray:
    """Share of each of ``count`` pixels that lies within each of the intervals between consecutive edges."""
    pixel = np.arange(count, dtype=np.float64)[:, None]
    share: np.ndarray = np.clip(np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel), 0, None)
    return share


def shape_coverage(shape: str, rx: float, ry: float, x: float, y: float, scale: float) -> np.ndarray:
    """Coverage (h, w, 1) of a shape whose centre lies ``x, y`` pixels right of and below the window's corner."""
    height, width = ceil(y + ry * scale + 1), ceil(x + rx * scale + 1)
    across = np.arange(width) + 0.5 - x
    down = (np.arange(height) + 0.5 - y)[:, None]
    signed = np.broadcast_to(_distance(shape, across, down, rx * scale, ry * scale), (height, width))
    return np.clip(0.5 - signed, 0, 1).astype(np.float32)[:, :, None]


cached_coverage = lru_cache(maxsize=16384)(shape_coverage)


@lru_cache(maxsize=16384)
def _glyph_coverage(letter: str, x: float, y: float, dot: float) -> np.ndarray:
    """Exact coverage (h, w, 1) of a letter of ``dot`` pixels a dot, its corner ``x, y`` pixels right of and below the window's."""
    across = x + dot * np.arange(WIDTH + 1)
    down = y + dot * np.arange(HEIGHT + 1)
    rows, columns = _overlap(down, ceil(down[-1])), _overlap(across, ceil(across[-1]))
    share: np.ndarray = rows @ GLYPHS[letter] @ columns.T
    return share.astype(np.float32)[:, :, None]


def _patches(item: Item, scale: float) -> list[tuple[int, int, np.ndarray]]:
    """The windows (top, left, coverage) that an item covers, before clipping to the image."""
    if item.text:
        letters = len(item.text)
        dot = 2 * item.ry // HEIGHT
        pitch = (2 * item.rx - WIDTH * dot) // (letters - 1) if letters > 1 else 0
        corner_y = (item.y - item.ry) * scale
        top = floor(corner_y)
        windows = []
        for i, letter in enumerate(item.text):
            corner_x = (item.x - item.rx + i * pitch) * scale
            left = floor(corner_x)
            windows.append((top, left, _glyph_coverage(letter, corner_x - left, corner_y - top, dot * scale)))
        return windows
    x, y = item.x * scale, item.y * scale
    left, top = floor(x - item.rx * scale) - 1, floor(y - item.ry * scale) - 1
    return [(top, left, cached_coverage(item.shape, item.rx, item.ry, x - left, y - top, scale))]


def clip(top: int, left: int, coverage: np.ndarray, size: int) -> tuple[slice, slice, np.ndarray]:
    """The part of a window that lies within the image."""
    height, width = coverage.shape[:2]
    bottom, right = top + height, left + width
    if top < 0 or left < 0 or bottom > size or right > size:
        coverage = coverage[max(0, -top) : height - max(0, bottom - size), max(0, -left) : width - max(0, right - size)]
        top, left = max(0, top), max(0, left)
        bottom, right = min(bottom, size), min(right, size)
    return slice(top, bottom), slice(left, right), coverage


def render(scene: Scene, image_size: int) -> np.ndarray:
    """The image of a scene: (image_size, image_size, 3) uint8."""
    image_HWC = np.empty((image_size, image_size, 3), dtype=np.float32)
    image_HWC[:] = _RGB[scene.background]
    scale = image_size / UNITS
    for item in scene.items:
        rgb = _RGB[item.colour]
        for top, left, coverage in _patches(item, scale):
            rows, columns, alpha = clip(top, left, coverage, image_size)
            window = image_HWC[rows, columns]
            window += alpha * (rgb - window)
    image_HWC += 0.5
    return image_HWC.astype(np.uint8)


def masks(scene: Scene, image_size: int) -> np.ndarray:
    """Visible pixels of each item, in the order of ``scene.items``: (N, image_size, image_size) bool.

    A pixel belongs to the last drawn item that covers at least half of it.
    """
    masks_NHW = np.zeros((len(scene.items), image_size, image_size), dtype=bool)
    for n, item in enumerate(scene.items):
        for top, left, coverage in _patches(item, image_size / UNITS):
            rows, columns, alpha = clip(top, left, coverage, image_size)
            masks_NHW[n, rows, columns] |= alpha[:, :, 0] >= 0.5
        masks_NHW[:n] &= ~masks_NHW[n]
    return masks_NHW
