"""What a picture of a scene shows: background, and of every thing its shape, colour, size and place, by matching against renders.

The picture's difference from its background is explained by things one after the other, greedily, each as the renderer would
draw it at any of 64 x 64 places and in any colour (bank.py); things that overlap are then fitted again together (refinement.py). So
a clean render is read exactly, also where its shapes touch or hide each other, and a picture that is not quite one is read as the
nearest scene. An image that was blurred or compressed is compared with renders that lost as much (View).
What the parsed scene, drawn again, leaves of the image is looked at last: where too much is left, something is there that was not
read, and a thing of unclear shape is reported. Words and bars are not read: what they cover comes out as such.

Shapes: N images, H W C pixels, n x n pixels; F forms, Y X places in 1/64 of the side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.ndimage import uniform_filter

from tunalab.data.scenes import Item
from tunalab.data.scenes.vocabulary import BACKGROUNDS, CELL, COLOURS, QUADRANTS, RADIUS, SLOTS, UNITS
from tunalab.errors import UserError
from tunalab.evaluation.generation.bank import (
    FORMS,
    LARGE_F,
    MARK,
    MARK_F,
    SHARP,
    SMALL_FORMS,
    SUBSAMPLED,
    UNCLEAR,
    VIEWS,
    Bank,
    View,
    bank,
    colour,
    nearest,
)
from tunalab.evaluation.generation.refinement import HOPELESS, Fit, Thing, draw, fits, touch, untangle

FINEST = 64  # pixels: larger images are averaged down to it
MATCH = 0.8  # a thing is unclear in shape when less than this share of what is around it is explained by it
CONTRAST = 0.5  # a thing's contrast with the background is at least so much of the faintest that scenes have on it
INKS = ("black", "white")  # of marks, the one that is further from the background
SLACK = 4  # units that a thing may be off its slot: one more than the largest jitter
BACKGROUND_REACH = 0.3  # distance in the RGB cube of side 1 within which a pixel counts as background
BACKGROUND_REJECTION = 20.0  # in CIELAB: more than half of white's distance from grey, the nearest
LEAST_BACKGROUND = 0.08  # share of pixels
_HALF_NORMAL_MEDIAN = 0.6745
# What noise alone explains: three squared standard normals, one a channel, exceed it once in ten million times, and nearly so many
# forms and places are tried.
_BY_CHANCE = 35
_SAME_SMALL, _SAME_LARGE, _LARGE_LARGE = 9, 18, 24  # units between centres, along both axes, at which two cannot both be there
# Energy that a parsed scene may leave in a window (so many units a side) of a 32-px image with values up to 1, squares summed
# over channels. In larger images, where the same loss is as many pixels wide along longer edges, it is in proportion to the
# side. Calibrated on right images: 3 in 100 whose things are 5% larger or smaller leave 0.17; JPEG of quality 60 leaves 0.3, so
# that with what an image shows to have lost (refinement.py) more is allowed.
UNEXPLAINED = 0.2
BY_LOSS = 4.0
UNSPOILT = 0.0012  # lost energy of a pixel below which an image was not compressed: JPEG of quality 75 and less leaves 0.003
WINDOWS = (4, 6, 10)
_BY_NOISE = 20  # times the variance of a channel: what noise alone leaves in the window where it leaves most
GOOD_ENOUGH = 0.075  # a residual below which no other view is tried
REFINED = 0.03  # a residual above which it is looked at whether what was read fits off the grid of places (refinement.py)
QUIET = 0.03  # standard deviation of noise above which none is: blur and compression take the noise away
_TOP = 64  # most things looked for in one image
# Small things replace a large one that leaves more than this share of its box unexplained, and they less than this share of that.
_WHOLE, _SPLIT = 0.15, 0.5


@dataclass(frozen=True)
class Found:
    """``item`` as scenes have it; its shape, colour and slot may be "unclear", "unclear", "". ``match``: share of the energy in
    its window that it explains, beyond noise."""

    item: Item
    match: float


@dataclass(frozen=True)
class Parsed:
    """``background`` is "unclear" where it is of no colour of a background. ``found`` in reading order of places.

    ``residual``: how far the image lies from the parsed scene drawn again, as a share of what is rejected: above 1, the place where
    most is left is among the things that are found, unclear in shape.
    """

    background: str
    found: tuple[Found, ...]
    residual: float = 0.0

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(one.item for one in self.found)


def parse(images_NHWC: Sequence[np.ndarray] | np.ndarray) -> list[Parsed]:
    """What each image (H, W, 3) uint8 shows.

    Raises UserError: an image that is not square, or whose side is not 16, 32, 48 or a multiple of 64.
    """
    return [_parse(image_Cnn.tobytes(), image_Cnn.shape) for image_Cnn in map(_prepare, images_NHWC)]


@dataclass(frozen=True, eq=False)
class Ground:
    """Colour (C,) of a background, and the variance of its noise in each channel."""

    rgb_C: np.ndarray
    noise: float


def background_of(image_Cnn: np.ndarray) -> Ground:
    """The median of the pixels near that background of the corpus which most pixels are near to; of the border pixels where
    hardly any is near to one."""
    pixels_CP = image_Cnn.reshape(3, -1)
    near_KP = np.stack([np.square(pixels_CP - colour(name)[:, None]).sum(axis=0) for name in BACKGROUNDS])
    closest_P = near_KP.argmin(axis=0)
    of_KP = (near_KP < BACKGROUND_REACH**2) & (closest_P == np.arange(len(BACKGROUNDS))[:, None])
    most = int(of_KP.sum(axis=1).argmax())
    if of_KP[most].mean() >= LEAST_BACKGROUND:
        plain_CP = pixels_CP[:, of_KP[most]]
    else:
        plain_CP = np.concatenate([image_Cnn[:, 0], image_Cnn[:, -1], image_Cnn[:, :, 0], image_Cnn[:, :, -1]], axis=1)
    # A checkered 2 x 2 window is blind to flat areas and to upright edges, which most of a scene is made of.
    checkered = (image_Cnn[:, 1:, 1:] - image_Cnn[:, 1:, :-1] - image_Cnn[:, :-1, 1:] + image_Cnn[:, :-1, :-1]) / 2
    deviation = float(np.median(np.abs(checkered))) / _HALF_NORMAL_MEDIAN
    return Ground(np.median(plain_CP, axis=1), deviation**2)


def check_size(side: int) -> None:
    """Raises UserError for a side that templates cannot be made for."""
    if not (side % FINEST == 0 or side in (16, 32, 48)):
        raise UserError(f"an image of {side} pixels cannot be parsed (choices: 16, 32, 48, 64, 128, 192, ...)")


def _prepare(image_HWC: np.ndarray) -> np.ndarray:
    height, width = image_HWC.shape[:2]
    if height != width:
        raise UserError(f"an image of {width}x{height} pixels cannot be parsed: scenes are square")
    check_size(height)
    image_CHW = image_HWC.astype(np.float32).transpose(2, 0, 1) / 255
    if height <= FINEST:
        return image_CHW
    block = height // FINEST
    return image_CHW.reshape(3, FINEST, block, FINEST, block).mean(axis=(2, 4))


@lru_cache(maxsize=2048)  # parts look at the same images: renders, what a model made of a prompt, a source left as it is
def _parse(content: bytes, shape: tuple[int, int, int]) -> Parsed:
    """``content``: float32 values of an image (3, n, n)."""
    image_Cnn = np.frombuffer(content, dtype=np.float32).reshape(shape)
    ground = background_of(image_Cnn)
    best: _Reading | None = None
    for view in VIEWS:
        reading = _read(bank(shape[-1], view), image_Cnn, ground)
        if best is None or reading.error < best.error:
            best = reading
        if best.residual < GOOD_ENOUGH or best.hopeless or ground.noise > QUIET**2:
            break
        # Where flat areas are as flat as they were drawn, no other view explains what is left, but for blur.
        if view is SHARP:
            refined, fit = _refined(best, image_Cnn, ground, UNSPOILT)
            if fit.lost <= UNSPOILT and (fit.view == SHARP or refined.residual <= 1):
                return _parsed(refined, ground)
    assert best is not None
    if best.residual > REFINED and not best.hopeless:
        best, _ = _refined(best, image_Cnn, ground)
    return _parsed(best, ground)


def _parsed(best: "_Reading", ground: Ground) -> Parsed:
    found = sorted(_marked(best), key=lambda one: (one.item.y, one.item.x, one.item))
    return Parsed(nearest(ground.rgb_C, BACKGROUNDS, BACKGROUND_REJECTION), tuple(found), best.residual)


@dataclass(frozen=True, eq=False)
class _Reading:
    """What an image shows as seen in one view: ``things`` and, in the same order, what they are ``found`` to be.

    ``left_nn``: unexplained energy by place, as a share of ``UNEXPLAINED``."""

    templates: Bank
    things: list[Thing]
    found: list[Found]
    error: float
    hopeless: bool
    left_nn: np.ndarray
    misfit: float = 0.0

    @property
    def residual(self) -> float:
        return max(float(self.left_nn.max()), self.misfit)


def _read(templates: Bank, rgb_Cnn: np.ndarray, ground: Ground) -> _Reading:
    view = templates.view
    image_Cnn, back_C = view.channels(rgb_Cnn), view.channels(ground.rgb_C)
    explained_FYX = templates.explained(image_Cnn - back_C[:, None, None])
    things = _explain(templates, image_Cnn, ground, explained_FYX)
    things = untangle(templates, image_Cnn, back_C, things, ground.noise)
    shown_Cnn = draw(templates, back_C, things)
    matches = _matches(templates, image_Cnn - back_C[:, None, None], image_Cnn - shown_Cnn, ground, things)
    difference_Cnn = rgb_Cnn - view.rgb(shown_Cnn)
    # Views are compared in one measure: where brightness, which every loss leaves sharpest, weighs more than colour.
    error = float(np.square(SUBSAMPLED.channels(difference_Cnn)).sum())
    energy = np.square(SUBSAMPLED.channels(rgb_Cnn - ground.rgb_C[:, None, None])).sum()
    found = [_name(thing, match) for thing, match in zip(things, matches, strict=True)]
    left_nn = _left(difference_Cnn, ground.noise)
    return _Reading(templates, things, found, error, bool(error > HOPELESS * energy), left_nn)


def _refined(reading: _Reading, rgb_Cnn: np.ndarray, ground: Ground, most_lost: float = np.inf) -> tuple[_Reading, Fit]:
    """With what is left when things need not stand on whole units; those that do not fit then are unclear in shape.

    The first fit that leaves little enough, or the last; no further than one by which the image lost more than ``most_lost``.
    """
    for fit in fits(reading.templates, rgb_Cnn, ground.rgb_C, reading.things):
        found = [
            Found(one.item._replace(shape=UNCLEAR), one.match) if misfit > 1 else one
            for one, misfit in zip(reading.found, fit.misfits, strict=True)
        ]
        left_nn = _left(fit.left_Cnn, ground.noise, fit.lost)
        refined = replace(reading, found=found, left_nn=left_nn, misfit=float(fit.misfits.max(initial=0)))
        if refined.residual <= 1 or fit.lost > most_lost:
            break
    return refined, fit


def _left(difference_Cnn: np.ndarray, noise: float, lost: float = 0.0) -> np.ndarray:
    """Energy (n, n) around each pixel that a square of one colour would explain of what the parsed scene leaves, beyond noise:
    the most among ``WINDOWS``, as a share of ``UNEXPLAINED``. What has one sign over such an area is a thing that was not read, or
    was read wrong; what blur, noise and compression leave changes its sign along an edge or from pixel to pixel."""
    scale = difference_Cnn.shape[-1] / UNITS
    most_nn = np.zeros(difference_Cnn.shape[1:])
    for window in WINDOWS:
        side = max(1, round(window * scale))
        mean_Cnn = uniform_filter(difference_Cnn, (0, side, side), mode="constant")
        gain_nn = np.square(mean_Cnn).sum(axis=0) * side**2
        most_nn = np.maximum(most_nn, gain_nn - _BY_NOISE * noise)
    return most_nn / (2 * scale) / (UNEXPLAINED + BY_LOSS * lost)


def _marked(reading: _Reading) -> list[Found]:
    """The things that were found, unclear in shape those in which too much is left; what is left elsewhere as an unclear thing."""
    left_nn, found = reading.left_nn.copy(), list(reading.found)
    units = UNITS / len(left_nn)
    while left_nn.max() > 1:
        row, column = (int(i) for i in np.unravel_index(left_nn.argmax(), left_nn.shape))
        y, x = (int((i + 0.5) * units) for i in (row, column))
        radius = WINDOWS[0] // 2
        items = [one.item for one in found]
        around = [n for n, item in enumerate(items) if max(abs(item.x - x) - item.rx, abs(item.y - y) - item.ry) <= 1]
        for n in around:
            item, match = found[n].item, found[n].match
            radius = max(radius, item.rx)
            found[n] = Found(item._replace(shape=UNCLEAR), match)
        if not around:
            found.append(Found(Item(UNCLEAR, UNCLEAR, x, y, radius, radius), 0.0))
        reach = int(np.ceil((radius + WINDOWS[-1]) / units))
        left_nn[_around(row, reach), _around(column, reach)] = 0
    return found


def _explain(templates: Bank, image_Cnn: np.ndarray, ground: Ground, explained_FYX: np.ndarray) -> list[Thing]:
    """Things in the order of how much they explain, none where another one is."""
    back_C = templates.view.channels(ground.rgb_C)
    left_Cnn = image_Cnn - back_C[:, None, None]
    view = templates.view
    contrast_F = CONTRAST * np.where(MARK_F, _faintest(view, back_C, mark=True), _faintest(view, back_C, mark=False)).astype(
        np.float32
    )
    least_FYX = np.maximum(np.square(contrast_F)[:, None, None] * templates.norm_FYX, _BY_CHANCE * ground.noise)
    left_FYX = np.where(explained_FYX >= least_FYX, explained_FYX, 0)
    things: list[Thing] = []
    while len(things) < _TOP:
        form, y, x = (int(i) for i in np.unravel_index(left_FYX.argmax(), left_FYX.shape))
        gain = float(left_FYX[form, y, x])
        if gain <= 0:
            break
        if FORMS[form].size == "large" and _are_small_ones(templates, left_Cnn, left_FYX, ground.noise, (form, y, x)):
            left_FYX[LARGE_F, _around(y, SLACK), _around(x, SLACK)] = 0
            continue
        cover_Knn, norm_K = templates.blurred(form, y, x), templates.norm_KFYX[:, form, y, x]
        amplitude_C = (left_Cnn * cover_Knn).sum(axis=(1, 2)) / norm_K
        # Most of it may have been explained by what was found since.
        if (np.square(amplitude_C) * norm_K).sum() < gain / 2:
            left_FYX[form, y, x] = 0
            continue
        things.append(Thing(form, y, x, np.clip(templates.view.rgb(back_C + amplitude_C), 0, 1)))
        left_Cnn -= amplitude_C[:, None, None] * cover_Knn
        _suppress(left_FYX, FORMS[form].size == "large", y, x)
    return things


def _faintest(view: View, background_C: np.ndarray, mark: bool) -> float:
    """How far the nearest colour is that a shape, or the mark, may have on this background."""
    distances = [float(np.linalg.norm(background_C - view.channels(colour(name)))) for name in (INKS if mark else COLOURS)]
    return max(distances) if mark else min(distances)


def _suppress(left_FYX: np.ndarray, large: bool, y: int, x: int) -> None:
    for of_F, reach in ((LARGE_F, _LARGE_LARGE if large else _SAME_LARGE), (~LARGE_F, _SAME_LARGE if large else _SAME_SMALL)):
        left_FYX[of_F, _around(y, reach), _around(x, reach)] = 0


def _around(centre: int, reach: int) -> slice:
    return slice(max(0, centre - reach), centre + reach + 1)


def _are_small_ones(templates: Bank, left_Cnn: np.ndarray, left_FYX: np.ndarray, noise: float, large: tuple[int, int, int]) -> bool:
    """Whether what one large thing explains badly, small things around its place explain far better."""
    scale, (_, y, x) = templates.image_size / UNITS, large
    rows, columns = (slice(max(0, int((c - CELL) * scale)), int((c + CELL) * scale)) for c in (y, x))
    window_Chw = left_Cnn[:, rows, columns].copy()
    of_noise = 3 * noise * window_Chw[0].size
    energy = float(np.square(window_Chw).sum()) - of_noise
    unexplained = energy - float(left_FYX[large])
    if unexplained < _WHOLE * energy:
        return False
    reach = CELL + RADIUS["small"]  # those that are partly in the window too
    top, left = max(0, y - reach), max(0, x - reach)
    near_FYX = left_FYX[:SMALL_FORMS, top : y + reach, left : x + reach].copy()
    while near_FYX.any():
        form, small_y, small_x = (int(i) for i in np.unravel_index(near_FYX.argmax(), near_FYX.shape))
        near_FYX[:, _around(small_y, _SAME_SMALL), _around(small_x, _SAME_SMALL)] = 0
        cover_Khw = templates.blurred(form, top + small_y, left + small_x)[:, rows, columns]
        norm_K11 = np.square(cover_Khw).sum(axis=(1, 2), keepdims=True)
        if norm_K11.all():
            window_Chw -= cover_Khw * ((window_Chw * cover_Khw).sum(axis=(1, 2), keepdims=True) / norm_K11)
    return float(np.square(window_Chw).sum()) - of_noise < _SPLIT * unexplained


def _matches(templates: Bank, there_Cnn: np.ndarray, left_Cnn: np.ndarray, ground: Ground, things: list[Thing]) -> list[float]:
    """The share of the energy around each thing, beyond noise, that the parsed scene explains. ``there``: the image's difference
    from its background, ``left``: from the parsed scene."""
    n, noise = templates.image_size, 3 * ground.noise
    energy_nn, error_nn = (np.square(difference_Cnn).sum(axis=0) - noise for difference_Cnn in (there_Cnn, left_Cnn))
    matches = []
    for thing in things:
        form = FORMS[thing.form]
        rows, columns = (
            slice(max(0, int((centre - radius) * n / UNITS) - 1), int(np.ceil((centre + radius) * n / UNITS)) + 1)
            for centre, radius in ((thing.y, form.ry), (thing.x, form.rx))
        )
        own_hw = np.ones_like(energy_nn[rows, columns], dtype=bool)
        for other in things:
            if other is not thing and touch(templates, thing, other):
                own_hw &= templates.coverage(other.form, other.y, other.x)[rows, columns] == 0
        error, energy = (float(map_nn[rows, columns][own_hw].sum()) for map_nn in (error_nn, energy_nn))
        matches.append(float(np.clip(1 - error / energy, 0, 1)) if energy > 0 else 0.0)
    return matches


def _name(thing: Thing, match: float) -> Found:
    form = FORMS[thing.form]
    names = INKS if form.shape == MARK else COLOURS
    item = form.at(thing.x, thing.y, nearest(thing.rgb_C, names), slot_of(thing.x, thing.y, form.size))
    return Found(item if match >= MATCH else item._replace(shape=UNCLEAR), match)


def slot_of(x: int, y: int, size: str) -> str:
    """The slot that a place belongs to as captions name it, "" between slots. Large things stand in quadrants only."""
    slots = QUADRANTS if size == "large" else SLOTS
    name, (slot_x, slot_y) = min(slots.items(), key=lambda slot: max(abs(x - slot[1][0]), abs(y - slot[1][1])))
    return name if max(abs(x - slot_x), abs(y - slot_y)) <= SLACK else ""
