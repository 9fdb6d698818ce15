"""What a picture of a scene shows: background, and of every thing its shape, colour, size and place, by matching against renders.

The picture's difference from its background is explained by things one after the other, greedily, each as the renderer would
draw it at any of 64 x 64 places and in any colour (bank.py); things that overlap are then fitted again together (overlaps.py). So
a clean render is read exactly, also where its shapes touch or hide each other, and a picture that is not quite one is read as the
nearest scene. Words and bars are not read: what they cover comes out as things of unclear shape.

Shapes: N images, H W C pixels, n x n pixels; F forms, Y X places in 1/64 of the side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tunalab.data.scenes import Item
from tunalab.data.scenes.vocabulary import BACKGROUNDS, CELL, COLOURS, QUADRANTS, RADIUS, SLOTS, UNITS
from tunalab.errors import UserError
from tunalab.evaluation.generation.bank import FORMS, LARGE_F, MARK, MARK_F, SMALL_FORMS, Bank, bank
from tunalab.evaluation.generation.overlaps import Thing, draw, touch, untangle
from tunalab.evaluation.generation.palette import UNCLEAR, colour, nearest

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
    """``background`` is "unclear" where it is of no colour of a background. ``found`` in reading order of places."""

    background: str
    found: tuple[Found, ...]

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
    templates, ground = bank(image_Cnn.shape[-1]), background_of(image_Cnn)
    explained_FYX = templates.explained(image_Cnn - ground.rgb_C[:, None, None])
    things = _explain(templates, image_Cnn, ground, explained_FYX)
    things = untangle(templates, image_Cnn, ground.rgb_C, things, ground.noise)
    matches = _matches(templates, image_Cnn, ground, things)
    found = [_name(thing, match) for thing, match in zip(things, matches, strict=True)]
    found.sort(key=lambda one: (one.item.y, one.item.x, one.item))
    return Parsed(nearest(ground.rgb_C, BACKGROUNDS, BACKGROUND_REJECTION), tuple(found))


def _explain(templates: Bank, image_Cnn: np.ndarray, ground: Ground, explained_FYX: np.ndarray) -> list[Thing]:
    """Things in the order of how much they explain, none where another one is."""
    left_Cnn = image_Cnn - ground.rgb_C[:, None, None]
    contrast_F = CONTRAST * np.where(MARK_F, _faintest(ground.rgb_C, mark=True), _faintest(ground.rgb_C, mark=False)).astype(
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
        cover_nn = templates.coverage(form, y, x)
        amplitude_C = (left_Cnn * cover_nn).sum(axis=(1, 2)) / templates.norm_FYX[form, y, x]
        # Most of it may have been explained by what was found since.
        if np.square(amplitude_C).sum() * templates.norm_FYX[form, y, x] < gain / 2:
            left_FYX[form, y, x] = 0
            continue
        things.append(Thing(form, y, x, np.clip(ground.rgb_C + amplitude_C, 0, 1)))
        left_Cnn -= amplitude_C[:, None, None] * cover_nn
        _suppress(left_FYX, FORMS[form].size == "large", y, x)
    return things


def _faintest(background_C: np.ndarray, mark: bool) -> float:
    """How far the nearest colour is that a shape, or the mark, may have on this background."""
    distances = [float(np.linalg.norm(background_C - colour(name))) for name in (INKS if mark else COLOURS)]
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
        cover_hw = templates.coverage(form, top + small_y, left + small_x)[rows, columns]
        if norm := float(np.square(cover_hw).sum()):
            window_Chw -= cover_hw * ((window_Chw * cover_hw).sum(axis=(1, 2), keepdims=True) / norm)
    return float(np.square(window_Chw).sum()) - of_noise < _SPLIT * unexplained


def _matches(templates: Bank, image_Cnn: np.ndarray, ground: Ground, things: list[Thing]) -> list[float]:
    """The share of the energy around each thing, beyond noise, that the parsed scene explains."""
    n, noise = templates.image_size, 3 * ground.noise
    energy_nn = np.square(image_Cnn - ground.rgb_C[:, None, None]).sum(axis=0) - noise
    error_nn = np.square(image_Cnn - draw(templates, ground.rgb_C, things)).sum(axis=0) - noise
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
