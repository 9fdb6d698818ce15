"""Things that overlap: each is fitted again while the others stand, drawn over and under it in the order scenes are drawn in.

Shapes: C channels, n x n pixels, h x w pixels of a window; K alternatives.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

import numpy as np

from tunalab.data.scenes.vocabulary import COLOURS, RADIUS, UNITS
from tunalab.evaluation.generation.bank import FORMS, Bank, nearest

REACH = 3  # units to either side that a thing's place is looked for in
SWEEPS = 3
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
    for _ in range(SWEEPS):
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
    rows, columns = _window(bank, thing)
    return float(np.abs(image_Cnn - draw(bank, background_C, things))[:, rows, columns].max())


def _fit_again(bank: Bank, image_Cnn: np.ndarray, background_C: np.ndarray, thing: Thing, others: list[Thing]) -> Thing:
    """The form, place and colour near a thing that leave least of the image unexplained, everything else standing."""
    rows, columns = _window(bank, thing)
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


def _window(bank: Bank, thing: Thing) -> tuple[slice, slice]:
    """Rows and columns that any alternative may cover."""
    scale = bank.image_size / UNITS
    reach = max(FORMS[thing.form].rx, FORMS[thing.form].ry, SMALL) + REACH + 2
    low_high = [(int((c - reach) * scale), int(np.ceil((c + reach) * scale))) for c in (thing.y, thing.x)]
    rows, columns = (slice(max(0, low), min(bank.image_size, high)) for low, high in low_high)
    return rows, columns
