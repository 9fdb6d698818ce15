"""Every shape of the corpus at every place and size, as drawn, its colour, and what it explains of an image.

Nearest as seen, in CIELAB, so that a colour that came out too light keeps its name. Shapes: C
colour channels between 0 and 1.

Shapes: C channels, n x n pixels; F forms, Y X places (of the centre) in 1/64 of the image side.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter1d
from skimage.color import rgb2lab

from tunalab.data.scenes import Item, Scene, render
from tunalab.data.scenes.render import DOT, HEIGHT, WIDTH
from tunalab.data.scenes.vocabulary import RADIUS, RGB, SHAPES, UNITS

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
    colours = np.stack([[red, green, blue], *(RGB[name] for name in names)]) / 255
    lab = rgb2lab(colours)
    distances = np.linalg.norm(lab[1:] - lab[0], axis=1)
    best, second = (int(n) for n in np.argsort(distances)[:2])
    return names[best], float(distances[best]), float(distances[second])


def distance(one: str, other: str) -> float:
    """Between two names' own colours, in CIELAB."""
    first, second = (rgb2lab(colour(name)) for name in (one, other))
    return float(np.linalg.norm(first - second))


MARK = "mark"


@dataclass(frozen=True)
class Form:
    """A shape of one size; radii in units. ``order`` is its rank among shapes as scenes draw them."""

    shape: str
    size: str
    rx: int
    ry: int

    def at(self, x: int, y: int, colour: str, slot: str = "") -> Item:
        return Item(self.shape, colour, x, y, self.rx, self.ry, "?" if self.shape == MARK else "", self.size, slot)


_SMALL_FIRST = sorted(RADIUS.items(), key=lambda size: size[1])
FORMS = (
    Form(MARK, "", WIDTH * DOT // 2, HEIGHT * DOT // 2),
    *(Form(shape, size, radius, radius) for size, radius in _SMALL_FIRST for shape in SHAPES),
)
MARK_F = np.array([form.shape == MARK for form in FORMS])
LARGE_F = np.array([form.size == "large" for form in FORMS])
SMALL_FORMS = int(LARGE_F.argmax())  # so many forms are not large; they come first


@dataclass(frozen=True)
class View:
    """A way in which an image may differ from a render: blurred, by ``sigmas`` pixels, in the channels that ``to_C3`` makes of
    red, green and blue. One sigma stands for all channels."""

    sigmas: tuple[float, ...] = (0.0,)
    to_C3: tuple[tuple[float, ...], ...] | None = None

    def channels(self, rgb_C: np.ndarray) -> np.ndarray:
        """(C, ...) of red, green and blue (3, ...)."""
        return rgb_C if self.to_C3 is None else np.tensordot(np.array(self.to_C3, np.float32), rgb_C, 1)

    def rgb(self, channels_C: np.ndarray) -> np.ndarray:
        """The inverse."""
        return channels_C if self.to_C3 is None else np.tensordot(np.linalg.inv(np.array(self.to_C3, np.float32)), channels_C, 1)

    def blur(self, image_Cnn: np.ndarray) -> np.ndarray:
        """(..., C, n, n), C being 1 also where sigmas are as many as channels: then it becomes them."""
        if len(self.sigmas) == 1:
            return _blur(image_Cnn, self.sigmas[0])
        many = image_Cnn.shape[-3] > 1
        parts = [image_Cnn[..., c : c + 1, :, :] if many else image_Cnn for c in range(len(self.sigmas))]
        return np.concatenate([_blur(part, sigma) for part, sigma in zip(parts, self.sigmas, strict=True)], axis=-3)


def _blur(image_nn: np.ndarray, sigma: float) -> np.ndarray:
    if not sigma:
        return image_nn
    for axis in (-1, -2):
        image_nn = gaussian_filter1d(image_nn, sigma, axis=axis, mode="nearest", truncate=3)
    return image_nn


# What an image may have lost: nothing, its sharpness, or that of its colours alone, which JPEG halves (in its YCbCr).
SHARP, BLURRED = View(), View((0.7,))
SUBSAMPLED = View((0.0, 0.9, 0.9), ((0.747, 1.468, 0.285), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081)))
VIEWS = (SHARP, BLURRED, SUBSAMPLED)


class Bank:
    """For images of one size, any multiple of 16 up to 64 pixels, as seen in a view.

    Places are whole units, as in scenes. Where a unit is less than a pixel, a form has a template for each place of its centre
    within a pixel.
    """

    def __init__(self, image_size: int, view: View = SHARP) -> None:
        self.image_size = n = image_size
        self.view = view
        common = gcd(UNITS, n)
        self.period = UNITS // common  # units until a template repeats, which is so many pixels:
        self.step = n // common
        phases = range(self.period)
        # Twice as wide as the image, so that a place is a window of it.
        self._padded_FPPnn = np.zeros((len(FORMS), self.period, self.period, 2 * n, 2 * n), dtype=np.float32)
        for (f, form), py, px in product(enumerate(FORMS), phases, phases):
            half = slice(n // 2, n // 2 + n)
            self._padded_FPPnn[f, py, px, half, half] = _coverage(form.at(UNITS // 2 + px, UNITS // 2 + py, "white"), n)
        self._blurred_FPPKnn = view.blur(self._padded_FPPnn[:, :, :, None])
        centred_FPPKnn = self._blurred_FPPKnn[..., n // 2 : n // 2 + n, n // 2 : n // 2 + n]
        norm_FPPK = np.square(centred_FPPKnn).sum(axis=(-2, -1))
        self._spectrum_FPPKnm = fft.rfft2(np.roll(centred_FPPKnn, (-(n // 2), -(n // 2)), (-2, -1))).conj()
        everywhere_yx = np.ones((common, common), dtype=np.float32)
        by_place = (self._lattice(norm_FPP[..., None, None] * everywhere_yx) for norm_FPP in np.moveaxis(norm_FPPK, -1, 0))
        self.norm_KFYX = np.stack(list(by_place))
        self.norm_FYX = self.norm_KFYX.mean(axis=0)
        place = np.arange(UNITS)
        self.inside_FYX = np.stack(
            [
                ((place >= f.ry) & (place <= UNITS - f.ry))[:, None] & ((place >= f.rx) & (place <= UNITS - f.rx))[None, :]
                for f in FORMS
            ]
        )

    def coverage(self, form: int, y: int, x: int) -> np.ndarray:
        """Share of every pixel (n, n) that a form with its centre at a place covers; a view."""
        rows, columns = self._window(y, x)
        return self._padded_FPPnn[form, y % self.period, x % self.period, rows, columns]

    def blurred(self, form: int, y: int, x: int) -> np.ndarray:
        """The same as the view shows it: (K, n, n), K being 1 where channels are alike."""
        rows, columns = self._window(y, x)
        return self._blurred_FPPKnn[form, y % self.period, x % self.period, :, rows, columns]

    def _window(self, y: int, x: int) -> tuple[slice, slice]:
        n = self.image_size
        top, left = (n - (place // self.period * self.step) for place in (y, x))
        return slice(top, top + n), slice(left, left + n)

    def explained(self, difference_Cnn: np.ndarray) -> np.ndarray:
        """How much of the energy of an image (its difference from its background) each form at each place explains when it takes
        the colour that explains most: (F, 64, 64), 0 where the form would stick out of the image.

        The squared correlation over the template's norm: the gain of one step of matching pursuit.
        """
        product_FPPCnm = self._spectrum_FPPKnm * fft.rfft2(difference_Cnn)
        shifted_FPPCnn = fft.irfft2(product_FPPCnm, s=difference_Cnn.shape[-2:], overwrite_x=True)[..., :: self.step, :: self.step]
        squared_FPPCnn = np.square(shifted_FPPCnn)
        if len(self.norm_KFYX) == 1:
            explained_FYX: np.ndarray = self._lattice(squared_FPPCnn.sum(axis=3))
            explained_FYX /= self.norm_FYX
        else:
            parts = [self._lattice(squared_FPPCnn[:, :, :, c]) / norm_FYX for c, norm_FYX in enumerate(self.norm_KFYX)]
            explained_FYX = np.sum(parts, axis=0)
        explained_FYX *= self.inside_FYX
        return explained_FYX

    def _lattice(self, by_phase_FPPyx: np.ndarray) -> np.ndarray:
        """Values by place within the period and by period, sorted into places (F, 64, 64)."""
        F, period = len(by_phase_FPPyx), self.period
        periods = UNITS // period
        return by_phase_FPPyx.transpose(0, 3, 1, 4, 2).reshape(F, periods * period, periods * period)


@lru_cache(maxsize=24)
def bank(image_size: int, view: View = SHARP) -> Bank:
    """Kept by the process: rendering the templates takes longer than parsing an image."""
    return Bank(image_size, view)


def _coverage(item: Item, image_size: int) -> np.ndarray:
    """Coverage (n, n) of a white thing, read off its image on black to within half a grey level."""
    black, white = (np.mean(RGB[name]) for name in ("black", "white"))
    image_HWC = render(Scene("objects", 1, "black", (item,), "", "", "", 1), image_size)
    coverage: np.ndarray = ((image_HWC.mean(axis=2) - black) / (white - black)).astype(np.float32)
    return coverage
