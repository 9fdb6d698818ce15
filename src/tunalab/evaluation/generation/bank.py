"""Every shape of the corpus at every place and size, as the renderer draws it, and how much of an image each of them explains.

Shapes: C channels, n x n pixels; F forms, Y X places (of the centre) in 1/64 of the image side.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd

import numpy as np
from scipy import fft

from tunalab.data.scenes import Item, Scene, render
from tunalab.data.scenes.font import HEIGHT, WIDTH
from tunalab.data.scenes.render import DOT
from tunalab.data.scenes.vocabulary import RADIUS, RGB, SHAPES, UNITS

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


class Bank:
    """For images of one size, any multiple of 16 up to 64 pixels.

    Places are whole units, as in scenes. Where a unit is less than a pixel, a form has a template for each place of its centre
    within a pixel.
    """

    def __init__(self, image_size: int) -> None:
        self.image_size = n = image_size
        common = gcd(UNITS, n)
        self.period = UNITS // common  # units until a template repeats, which is so many pixels:
        self.step = n // common
        phases = range(self.period)
        # Twice as wide as the image, so that a place is a window of it.
        self._padded_FPPnn = np.zeros((len(FORMS), self.period, self.period, 2 * n, 2 * n), dtype=np.float32)
        for (f, form), py, px in product(enumerate(FORMS), phases, phases):
            half = slice(n // 2, n // 2 + n)
            self._padded_FPPnn[f, py, px, half, half] = _coverage(form.at(UNITS // 2 + px, UNITS // 2 + py, "white"), n)
        centred_FPPnn = self._padded_FPPnn[:, :, :, n // 2 : n // 2 + n, n // 2 : n // 2 + n]
        self.norm_FPP = np.square(centred_FPPnn).sum(axis=(3, 4))
        self._spectrum_FPPnm = fft.rfft2(np.roll(centred_FPPnn, (-(n // 2), -(n // 2)), (3, 4))).conj()
        self.norm_FYX = self._lattice(np.broadcast_to(self.norm_FPP[..., None, None], (*self.norm_FPP.shape, common, common)))
        place = np.arange(UNITS)
        self.inside_FYX = np.stack(
            [
                ((place >= f.ry) & (place <= UNITS - f.ry))[:, None] & ((place >= f.rx) & (place <= UNITS - f.rx))[None, :]
                for f in FORMS
            ]
        )

    def coverage(self, form: int, y: int, x: int) -> np.ndarray:
        """Share of every pixel (n, n) that a form with its centre at a place covers; a view."""
        n, period, step = self.image_size, self.period, self.step
        top, left = (n - (place // period * step) for place in (y, x))
        return self._padded_FPPnn[form, y % period, x % period, top : top + n, left : left + n]

    def explained(self, difference_Cnn: np.ndarray) -> np.ndarray:
        """How much of the energy of an image (its difference from its background) each form at each place explains when it takes
        the colour that explains most: (F, 64, 64), 0 where the form would stick out of the image.

        The squared correlation over the template's norm: the gain of one step of matching pursuit.
        """
        product_FPPCnm = self._spectrum_FPPnm[:, :, :, None] * fft.rfft2(difference_Cnn)
        shifted_FPPCnn = fft.irfft2(product_FPPCnm, s=difference_Cnn.shape[-2:], overwrite_x=True)
        squared_FPPnn = np.square(shifted_FPPCnn).sum(axis=3)[..., :: self.step, :: self.step]
        explained_FYX: np.ndarray = self._lattice(squared_FPPnn)
        explained_FYX /= self.norm_FYX
        explained_FYX *= self.inside_FYX
        return explained_FYX

    def _lattice(self, by_phase_FPPyx: np.ndarray) -> np.ndarray:
        """Values by place within the period and by period, sorted into places (F, 64, 64)."""
        F, period = len(by_phase_FPPyx), self.period
        periods = UNITS // period
        return by_phase_FPPyx.transpose(0, 3, 1, 4, 2).reshape(F, periods * period, periods * period)


@lru_cache(maxsize=8)
def bank(image_size: int) -> Bank:
    """Kept by the process: rendering the templates takes longer than parsing an image."""
    return Bank(image_size)


def _coverage(item: Item, image_size: int) -> np.ndarray:
    """Coverage (n, n) of a white thing, read off its image on black to within half a grey level."""
    black, white = (np.mean(RGB[name]) for name in ("black", "white"))
    image_HWC = render(Scene("objects", 1, "black", (item,), "", "", "", 1), image_size)
    coverage: np.ndarray = ((image_HWC.mean(axis=2) - black) / (white - black)).astype(np.float32)
    return coverage
