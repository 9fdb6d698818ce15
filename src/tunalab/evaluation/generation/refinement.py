"""Parsed things fitted again: among each other where they overlap, and off the grid of whole units.

Where things overlap, each is fitted again while the others stand, drawn over and under it in the
order scenes are drawn in. Then place, radius and colour of each, and how blurred the image is, are
fitted by least squares, for a model's drawing never stands on whole units. What is then left at a
thing's edges or within it is no matter of place, size, colour or blur: it is another shape.

Shapes: C channels, n x n pixels, h x w pixels of a window; K alternatives, or a view's blurs; P parameters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from math import ceil, floor

import numpy as np
from scipy.ndimage import distance_transform_edt

from tunalab.data.scenes.render import shape_coverage
from tunalab.data.scenes.vocabulary import COLOURS, RADIUS, UNITS
from tunalab.evaluation.generation.bank import FORMS, MARK, SUBSAMPLED, Bank, View, nearest

REACH = 3  # units to either side that a thing's place is looked for in
ROUNDS = 3  # over all things, each fitted while the others stand
GAIN = 0.02  # share of what is unexplained in a window that an alternative must explain to replace what was found
HOPELESS = 0.3  # an image of which more than this share is unexplained is no scene: nothing is fitted again, which takes longest
LEAST = 0.01  # energy a pixel of its coverage that a thing must explain alone: a tenth of the palette's smallest contrast, squared
EXACT = 0.02, 5  # an error that rounding makes, and how many standard deviations one that noise makes
SMALL = RADIUS["small"]
SHAPES = sorted({form.shape for form in FORMS})


@dataclass(frozen=True, eq=False)
class Thing:
    """A form at a place in the colour (C,) that fits the image best."""

    form: int
    y: int
    x: int
    rgb_C: np.ndarray

    @cached_property
    def colour(self) -> str:
        """The nearest name, however far."""
        return nearest(self.rgb_C, COLOURS, rejection=np.inf)

    def rank(self, shape: str = "") -> tuple[str, str, int, int]:
        """What scenes are drawn by, lower first; of another ``shape`` if one is given."""
        return shape or FORMS[self.form].shape, self.colour, self.x, self.y


def touch(bank: Bank, one: Thing, other: Thing) -> bool:
    """Whether they share a pixel, be it at their edges."""
    mine, its = FORMS[one.form], FORMS[other.form]
    if abs(one.x - other.x) >= mine.rx + its.rx + 2 or abs(one.y - other.y) >= mine.ry + its.ry + 2:
        return False
    both_nn = bank.coverage(one.form, one.y, one.x) * bank.coverage(other.form, other.y, other.x)
    return bool(both_nn.any())


def draw(bank: Bank, background_C: np.ndarray, things: list[Thing]) -> np.ndarray:
    """The image (C, n, n) of things on a background, in the channels of the bank's view and as sharp as it shows them."""
    return bank.view.blur(_sharp(bank, background_C, things))


def _sharp(bank: Bank, background_C: np.ndarray, things: list[Thing]) -> np.ndarray:
    image_Cnn = np.broadcast_to(background_C[:, None, None], (len(background_C), bank.image_size, bank.image_size)).copy()
    for thing in sorted(things, key=Thing.rank):
        colour_C = bank.view.channels(thing.rgb_C)
        image_Cnn += bank.coverage(thing.form, thing.y, thing.x) * (colour_C[:, None, None] - image_Cnn)
    return image_Cnn


def untangle(bank: Bank, image_Cnn: np.ndarray, background_C: np.ndarray, things: list[Thing], noise: float) -> list[Thing]:
    """The things, those that touch others and do not fit yet fitted again in turn until nothing changes; those that explain
    nothing beside the others are dropped. ``noise``: variance of a channel."""
    exact = EXACT[0] + EXACT[1] * noise**0.5
    pairs = [(one, other) for one, other in combinations(things, 2) if touch(bank, one, other)]
    tangled = {id(thing) for pair in pairs for thing in pair}
    if not tangled:
        return things
    things = _needed(bank, image_Cnn, background_C, things, tangled)
    energy = np.square(image_Cnn - background_C[:, None, None]).sum()
    if np.square(image_Cnn - draw(bank, background_C, things)).sum() > HOPELESS * energy:
        return things
    for _ in range(ROUNDS):
        changed = False
        for i, thing in enumerate(things):
            if id(thing) not in tangled or _error(bank, image_Cnn, background_C, thing, things) < exact:
                continue
            things[i] = _fit_again(bank, image_Cnn, background_C, thing, things[:i] + things[i + 1 :])
            tangled.add(id(things[i]))
            changed |= things[i] is not thing
        if not changed:
            break
    return _needed(bank, image_Cnn, background_C, things, tangled)


def _needed(bank: Bank, image_Cnn: np.ndarray, background_C: np.ndarray, things: list[Thing], tangled: set[int]) -> list[Thing]:
    """Without those that, weakest first, the image is explained as well without."""
    kept = list(things)
    error = np.square(image_Cnn - draw(bank, background_C, kept)).sum()
    for thing in reversed(things):
        if id(thing) not in tangled:
            continue
        rest = [one for one in kept if one is not thing]
        without = np.square(image_Cnn - draw(bank, background_C, rest)).sum()
        if without - error < LEAST * bank.norm_FYX[thing.form, thing.y, thing.x]:
            kept, error = rest, without
    return kept


def _error(bank: Bank, image_Cnn: np.ndarray, background_C: np.ndarray, thing: Thing, things: list[Thing]) -> float:
    """The largest around a thing."""
    rows, columns = _reachable(bank, thing)
    return float(np.abs(image_Cnn - draw(bank, background_C, things))[:, rows, columns].max())


def _fit_again(bank: Bank, image_Cnn: np.ndarray, background_C: np.ndarray, thing: Thing, others: list[Thing]) -> Thing:
    """The form, place and colour near a thing that leave least of the image unexplained, everything else standing."""
    rows, columns = _reachable(bank, thing)
    view = bank.view
    image_Chw = image_Cnn[:, rows, columns]
    near = range(-REACH, REACH + 1)
    best, least = thing, np.inf
    for shape in SHAPES:
        alternatives = [
            (f, y, x)
            for f, form in enumerate(FORMS)
            # What is larger than the thing would stick out of the window; whether it is there has been looked at.
            if form.shape == shape and form.ry <= max(FORMS[thing.form].ry, SMALL)
            for y, x in product((thing.y + dy for dy in near), (thing.x + dx for dx in near))
            if max(y, x) < UNITS and min(y, x) >= 0 and bank.inside_FYX[f, y, x]
        ]
        if not alternatives:
            continue
        rank = thing.rank(shape)
        under_Chw = _sharp(bank, background_C, [other for other in others if other.rank() < rank])[:, rows, columns]
        # Above it: what they let through, and what they add.
        through_hw = np.ones_like(under_Chw[0])
        over_Chw = np.zeros_like(under_Chw)
        for other in sorted((other for other in others if other.rank() >= rank), key=Thing.rank):
            coverage_hw = bank.coverage(other.form, other.y, other.x)[rows, columns]
            through_hw = through_hw * (1 - coverage_hw)
            over_Chw += coverage_hw * (view.channels(other.rgb_C)[:, None, None] - over_Chw)
        # image = through * ((1 - cover) * under + cover * colour) + over, blurred: linear in the colour.
        cover_Khw = np.stack([bank.coverage(*one)[rows, columns] for one in alternatives])
        weight_K1hw = through_hw * cover_Khw[:, None]
        target_KChw = (image_Chw - view.blur(over_Chw + through_hw * under_Chw)) + view.blur(weight_K1hw * under_Chw)
        weight_K1hw = view.blur(weight_K1hw)
        norm_K1 = np.square(weight_K1hw).sum(axis=(2, 3)) + 1e-6
        colour_KC = (weight_K1hw * target_KChw).sum(axis=(2, 3)) / norm_K1
        rgb_KC = np.clip(view.rgb(colour_KC.T).T, 0, 1)
        colour_KC = view.channels(rgb_KC.T).T
        left_K = np.square(target_KChw - weight_K1hw * colour_KC[:, :, None, None]).sum(axis=(1, 2, 3))
        k = int(left_K.argmin())
        if left_K[k] < least:
            least = float(left_K[k])
            form, y, x = alternatives[k]
            best = Thing(form, y, x, rgb_KC[k])
    before = np.square(image_Chw - draw(bank, background_C, [*others, thing])[:, rows, columns]).sum()
    return best if least < (1 - GAIN) * before - 1e-3 else thing


def _reachable(bank: Bank, thing: Thing) -> tuple[slice, slice]:
    """Rows and columns that any alternative may cover."""
    scale = bank.image_size / UNITS
    reach = max(FORMS[thing.form].rx, FORMS[thing.form].ry, SMALL) + REACH + 2
    low_high = [(int((c - reach) * scale), int(np.ceil((c + reach) * scale))) for c in (thing.y, thing.x)]
    rows, columns = (slice(max(0, low), min(bank.image_size, high)) for low, high in low_high)
    return rows, columns


SIGMAS = (0.0, 0.35, 0.5, 0.7, 0.9)  # pixels of blur that are tried
MOST_MOVED = 1.0  # units
MOST_GROWN = 0.08  # share of the radius
SWEEPS = 3  # over all things
_STEP = 0.5  # units of a finite difference, and the most that one sweep moves
_MARGIN = 4  # pixels around a thing that are fitted: more than the widest blur reaches
# What may be left of a thing of radius r pixels and contrast c (its distance from the background): MISFIT * r * c**2. Other
# antialiasing than the renderer's leaves 0.09 at most, a hexagon for a circle of 7 pixels 0.36, of 14 pixels 1.6, in proportion
# to r**2: smaller ones cannot be told.
MISFIT = 0.12
# An image that was compressed or is noisy shows it where it should be flat, 1.5 to 4 pixels off every edge: so many times the
# squared residual that one in ten of these pixels exceeds is allowed in each pixel of a thing. JPEG of quality 60 needs 3.5 (rings
# most), noise 0.4. So far only as it is no more than JPEG leaves: what has a strong texture fits no shape.
LOSS = 4.0
MOST_LOST = 0.01
_FLAT = 1.5, 4.0
_ONE_IN_TEN = 0.9


@dataclass
class _Fitted:
    """A thing as it is fitted; the colour (C,) in red, green and blue, the centre and radius in units."""

    thing: Thing
    x: float
    y: float
    radius: float
    rgb_C: np.ndarray

    @property
    def moves(self) -> bool:
        return FORMS[self.thing.form].shape != MARK

    def coverage(self, bank: Bank, window: tuple[slice, slice], dx: float = 0, dy: float = 0, grown: float = 0) -> np.ndarray:
        """(h, w) of a window of the image."""
        rows, columns = window
        if not self.moves:
            return bank.coverage(self.thing.form, self.thing.y, self.thing.x)[rows, columns]
        scale, radius = bank.image_size / UNITS, self.radius + grown
        x, y = (self.x + dx) * scale, (self.y + dy) * scale
        left, top = floor(x - radius * scale) - 1, floor(y - radius * scale) - 1
        patch_hw = shape_coverage(FORMS[self.thing.form].shape, radius, radius, x - left, y - top, scale)[:, :, 0]
        cover_hw = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=np.float32)
        top, left = top - rows.start, left - columns.start
        height, width = patch_hw.shape
        inside = slice(max(0, top), max(0, top + height)), slice(max(0, left), max(0, left + width))
        part_hw = cover_hw[inside]
        part_hw += patch_hw[max(0, -top) :, max(0, -left) :][: part_hw.shape[0], : part_hw.shape[1]]
        return cover_hw


@dataclass(frozen=True, eq=False)
class Fit:
    """``left``: of the image, in red, green and blue (C, n, n); ``lost``: energy of a pixel that compression and noise explain.
    ``misfits`` of the things in their order: above 1 one does not fit. ``view``: the blur that fits best."""

    view: View
    left_Cnn: np.ndarray
    lost: float
    misfits: np.ndarray


def fits(bank: Bank, rgb_Cnn: np.ndarray, background_C: np.ndarray, things: Sequence[Thing]) -> Iterator[Fit]:
    """Better and better ones, the first with the things as they were read.

    ``bank``: of the view in which they were read.
    """
    order = sorted(range(len(things)), key=lambda number: things[number].rank())
    fitted = [_Fitted(things[n], things[n].x, things[n].y, FORMS[things[n].form].rx, things[n].rgb_C) for n in order]
    everywhere = (slice(0, bank.image_size),) * 2
    view = bank.view
    for sweep in range(SWEEPS + 1):
        image_Cnn, back_C = view.channels(rgb_Cnn), view.channels(background_C)
        for number in range(len(fitted) if sweep else 0):
            _fit(bank, view, image_Cnn, back_C, fitted, number)
        drawn_Cnn = _draw(bank, view, back_C, fitted, everywhere)
        left = [(one, rgb_Cnn - one.rgb(one.blur(drawn_Cnn))) for one in _blurred(view)]
        view, left_Cnn = min(left, key=lambda of: float(np.square(of[1]).sum()))
        lost, misfits = _misfits(bank, left_Cnn, background_C, fitted)
        yield Fit(view, left_Cnn, lost, np.array(misfits)[np.argsort(order)])


def _blurred(view: View) -> Iterator[View]:
    """The view, more or less blurred: in brightness alone where it is colours that are blurred already."""
    for sigma in SIGMAS:
        yield replace(view, sigmas=(sigma, *SUBSAMPLED.sigmas[1:]) if view.to_C3 else (sigma,))


def _draw(bank: Bank, view: View, back_C: np.ndarray, fitted: Sequence[_Fitted], window: tuple[slice, slice]) -> np.ndarray:
    """Sharp, in the view's channels: (C, h, w)."""
    rows, columns = window
    image_Chw = np.broadcast_to(back_C[:, None, None], (len(back_C), rows.stop - rows.start, columns.stop - columns.start)).copy()
    for one in fitted:
        image_Chw += one.coverage(bank, window) * (view.channels(one.rgb_C)[:, None, None] - image_Chw)
    return image_Chw


def _fit(bank: Bank, view: View, image_Cnn: np.ndarray, back_C: np.ndarray, fitted: list[_Fitted], number: int) -> None:
    """One step of Gauss and Newton for one thing while the others stand."""
    one = fitted[number]
    rows, columns = window = _window(bank, one.thing)
    near = [(n, other) for n, other in enumerate(fitted) if n != number and _meets(_window(bank, other.thing), window)]
    under_Chw = _draw(bank, view, back_C, [other for n, other in near if n < number], window)
    through_hw = np.ones_like(under_Chw[0])
    over_Chw = np.zeros_like(under_Chw)
    for n, other in near:
        if n > number:
            cover_hw = other.coverage(bank, window)
            through_hw = through_hw * (1 - cover_hw)
            over_Chw += cover_hw * (view.channels(other.rgb_C)[:, None, None] - over_Chw)
    visible_hw = through_hw * one.coverage(bank, window)
    added_Chw = view.channels(one.rgb_C)[:, None, None] - under_Chw
    slopes = []
    if one.moves:
        for move in ({"dx": _STEP}, {"dy": _STEP}, {"grown": _STEP}):
            back = {name: -step for name, step in move.items()}
            change_hw = (one.coverage(bank, window, **move) - one.coverage(bank, window, **back)) / (2 * _STEP)
            slopes.append(through_hw * change_hw * added_Chw)
    slopes += [visible_hw * channel_C[:, None, None] for channel_C in np.eye(len(back_C), dtype=np.float32)]
    now_Chw = through_hw * under_Chw + visible_hw * added_Chw + over_Chw
    shown_Chw, *slopes = view.blur(np.stack([now_Chw, *slopes]))
    slope_Px = np.stack(slopes).reshape(len(slopes), -1)
    normal_PP = slope_Px @ slope_Px.T + 1e-5 * np.eye(len(slopes))
    step_P = np.linalg.solve(normal_PP, slope_Px @ (image_Cnn[:, rows, columns] - shown_Chw).ravel())
    if one.moves:
        dx, dy, grown = np.clip(step_P[:3], -_STEP, _STEP)
        thing, radius = one.thing, FORMS[one.thing.form].rx
        one.x = float(np.clip(one.x + dx, thing.x - MOST_MOVED, thing.x + MOST_MOVED))
        one.y = float(np.clip(one.y + dy, thing.y - MOST_MOVED, thing.y + MOST_MOVED))
        one.radius = float(np.clip(one.radius + grown, radius * (1 - MOST_GROWN), radius * (1 + MOST_GROWN)))
    one.rgb_C = np.clip(view.rgb(view.channels(one.rgb_C) + step_P[-len(back_C) :]), 0, 1)


def _window(bank: Bank, thing: Thing) -> tuple[slice, slice]:
    n, form = bank.image_size, FORMS[thing.form]
    low_high = [((c - r) * n / UNITS, (c + r) * n / UNITS) for c, r in ((thing.y, form.ry), (thing.x, form.rx))]
    rows, columns = (slice(max(0, int(low) - _MARGIN), min(n, ceil(high) + _MARGIN)) for low, high in low_high)
    return rows, columns


def _meets(one: tuple[slice, slice], other: tuple[slice, slice]) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _misfits(bank: Bank, left_Cnn: np.ndarray, background_C: np.ndarray, fitted: Sequence[_Fitted]) -> tuple[float, list[float]]:
    """``lost``, and the energy left in and around each thing as a share of what it may be."""
    n = bank.image_size
    everywhere = (slice(0, n),) * 2
    left_nn = np.square(left_Cnn).sum(axis=0)
    covers = [one.coverage(bank, everywhere) for one in fitted]
    edge_nn = np.zeros((n, n), dtype=bool)
    for cover_nn in covers:
        covered_nn = cover_nn > 0.5
        edge_nn |= ((cover_nn > 0.02) & (cover_nn < 0.98)) | (_grown(covered_nn) & _grown(~covered_nn))
    distance_nn = distance_transform_edt(~edge_nn)
    flat_nn = (distance_nn >= _FLAT[0]) & (distance_nn <= _FLAT[1])
    lost = LOSS * min(float(np.quantile(left_nn[flat_nn], _ONE_IN_TEN)), MOST_LOST) if flat_nn.any() else 0.0
    misfits = []
    for one, cover_nn in zip(fitted, covers, strict=True):
        around_nn = _grown(cover_nn > 0.02)
        contrast = float(np.square(one.rgb_C - background_C).sum())
        allowed = MISFIT * contrast * one.radius * n / UNITS + lost * around_nn.sum()
        misfits.append(float(left_nn[around_nn].sum()) / max(allowed, 1e-6))
    return lost, misfits


def _grown(mask_nn: np.ndarray) -> np.ndarray:
    """With the pixels beside it."""
    grown_nn = mask_nn.copy()
    grown_nn[1:] |= mask_nn[:-1]
    grown_nn[:-1] |= mask_nn[1:]
    grown_nn[:, 1:] |= mask_nn[:, :-1]
    grown_nn[:, :-1] |= mask_nn[:, 1:]
    return grown_nn
