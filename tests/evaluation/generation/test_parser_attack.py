"""What the parser was not built against: forms, colours and marks outside the vocabulary, in a drawing
of this file's own.

A person sees at once that each of the wrong images is wrong, and nothing wrong with the right ones.
"""

from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from tunalab.data.scenes import Item, Scene
from tunalab.data.scenes.vocabulary import RADIUS, RGB, UNITS
from tunalab.evaluation.generation.accuracy import is_exact
from tunalab.evaluation.generation.parser import parse
from tunalab.evaluation.generation.prompts import CATEGORIES, DENSE, fits

FINE = 4  # points a pixel and axis
Form = Callable[[np.ndarray, np.ndarray], np.ndarray]  # x, y in radii, downwards -> inside or not

FORMS: dict[str, Form] = {
    "circle": lambda x, y: np.hypot(x, y) < 1,
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.74) < 0.26,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.88,
    "diamond": lambda x, y: abs(x) + abs(y) < 1,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.32) & (np.maximum(abs(x), abs(y)) < 1),
    "triangle": lambda x, y: (2 * abs(x) < y + 0.9) & (y < 0.9),
}
STRANGE: dict[str, Form] = {
    "rectangle": lambda x, y: (abs(x) < 1) & (abs(y) < 0.48),
    "ellipse": lambda x, y: np.hypot(x, 2 * y) < 1,
    "crescent": lambda x, y: (np.hypot(x, y) < 1) & (np.hypot(x - 0.55, y) > 0.8),
    "corner": lambda x, y: (np.maximum(abs(x), abs(y)) < 0.9) & ((x < -0.25) | (y > 0.25)),
    "bow tie": lambda x, y: (abs(y) < abs(x)) & (abs(x) < 0.9),
}


def covered(inside: np.ndarray, size: int) -> np.ndarray:
    """Share (size, size, 1) of each pixel from the points within it."""
    return inside.reshape(size, FINE, size, FINE).mean((1, 3))[..., None]


def points(size: int) -> tuple[np.ndarray, np.ndarray]:
    at = (np.arange(size * FINE) + 0.5) / FINE * UNITS / size
    x, y = np.meshgrid(at, at)
    return x, y


class Canvas:
    """An image of a scene in the making."""

    def __init__(self, scene: Scene, size: int) -> None:
        self.size, self.x, self.y = size, *points(size)
        self.image_HWC = np.full((size, size, 3), RGB[scene.background], dtype=float)

    def paint(self, inside: np.ndarray, colour: np.ndarray | str) -> None:
        rgb = np.array(RGB[colour]) if isinstance(colour, str) else colour
        self.image_HWC += covered(inside, self.size) * (rgb - self.image_HWC)

    def within(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        return (self.x - item.x) / item.rx, (self.y - item.y) / item.rx

    def thing(self, item: Item) -> None:
        self.paint(FORMS[item.shape](*self.within(item)), item.colour)


def unlike(rng: Random, *colours: str) -> str:
    """A colour that is far from all of these."""
    apart = [name for name, rgb in RGB.items() if all(np.linalg.norm(np.subtract(rgb, RGB[other])) > 110 for other in colours)]
    return rng.choice(apart)


Change = Callable[[Random, Canvas, Scene, Item], None]


def strange(rng: Random, canvas: Canvas, scene: Scene, item: Item) -> None:
    canvas.paint(STRANGE[rng.choice(sorted(STRANGE))](*canvas.within(item)), item.colour)


def half(rng: Random, canvas: Canvas, scene: Scene, item: Item) -> None:
    x, y = canvas.within(item)
    kept = rng.choice((x < 0, x > 0, y < 0, y > 0))
    canvas.paint(FORMS[item.shape](x, y) & kept, item.colour)


def striped(rng: Random, canvas: Canvas, scene: Scene, item: Item) -> None:
    canvas.thing(item)
    stripes = (canvas.x // 4) % 2 < 1
    canvas.paint(FORMS[item.shape](*canvas.within(item)) & stripes, unlike(rng, item.colour, scene.background))


def nameless(rng: Random, canvas: Canvas, scene: Scene, item: Item) -> None:
    colours = [np.array(rgb) for rgb in ((110, 65, 20), (110, 115, 20), (0, 105, 105), (225, 205, 165), (170, 255, 60))]
    apart = [rgb for rgb in colours if all(np.linalg.norm(rgb - RGB[one]) > 120 for one in (item.colour, scene.background))]
    canvas.paint(FORMS[item.shape](*canvas.within(item)), rng.choice(apart))


def framed(rng: Random, canvas: Canvas, scene: Scene, item: Item) -> None:
    canvas.thing(item)
    edge = np.maximum(abs(canvas.x - UNITS / 2), abs(canvas.y - UNITS / 2)) > UNITS / 2 - 2
    canvas.paint(edge, unlike(rng, scene.background, item.colour))


def half_size(rng: Random, canvas: Canvas, scene: Scene, item: Item) -> None:
    canvas.thing(item._replace(rx=item.rx / 2))


CHANGES: dict[str, Change] = {change.__name__: change for change in (strange, half, half_size, striped, nameless, framed)}


def drawn(rng: Random, scene: Scene, size: int, change: Change | None, odd: int) -> np.ndarray:
    """The scene with a change made to the ``odd``-th thing, which is drawn first (its change may concern the background)."""
    canvas = Canvas(scene, size)
    for item in [scene.items[odd], *scene.items[:odd], *scene.items[odd + 1 :]]:
        if change is not None and item is scene.items[odd]:
            change(rng, canvas, scene, item)
        else:
            canvas.thing(item)
    return np.clip(np.round(canvas.image_HWC), 0, 255).astype(np.uint8)


def scenes(rng: Random) -> list[Scene]:
    return [fits(rng, "test", category) for category in (*CATEGORIES, DENSE)]


@pytest.mark.parametrize("size", (32, 64))
@pytest.mark.parametrize("change", CHANGES)
def test_a_visible_change_of_any_sort_is_seen(change: str, size: int) -> None:
    rng = Random(f"{change} {size}")
    requests = scenes(rng)
    shown = [drawn(rng, scene, size, CHANGES[change], rng.randrange(len(scene.items))) for scene in requests]
    accepted = [
        n for n, (parsed, scene) in enumerate(zip(parse(np.stack(shown)), requests, strict=True)) if is_exact(parsed, scene)
    ]
    assert not accepted


@pytest.mark.parametrize("size", (32, 64))
def test_another_renderer_and_slightly_other_colours_are_right(size: int) -> None:
    rng = Random(f"right {size}")
    requests = scenes(rng)
    tint = np.random.default_rng(0).integers(-8, 9, (len(requests), 1, 1, 3))
    shown = np.stack([drawn(rng, scene, size, None, 0) for scene in requests])
    for images in (shown, np.clip(shown + tint, 0, 255).astype(np.uint8)):
        assert all(is_exact(parsed, scene) for parsed, scene in zip(parse(images), requests, strict=True))


# Shape of the scene, and what is near to it. A hexagon or astroid of 7 px across cannot be told.
NEAR: dict[str, tuple[str, Form]] = {
    "hexagon": ("circle", lambda x, y: np.maximum(abs(y), 0.866 * abs(x) + 0.5 * abs(y)) < 0.92),
    "square frame": ("ring", lambda x, y: abs(np.maximum(abs(x), abs(y)) - 0.68) < 0.22),
    "diamond frame": ("ring", lambda x, y: abs(abs(x) + abs(y) - 0.85) < 0.3),
    "astroid": ("diamond", lambda x, y: abs(x) ** 0.6 + abs(y) ** 0.6 < 1),
    "thin cross": ("cross", lambda x, y: (np.minimum(abs(x), abs(y)) < 0.13) & (np.maximum(abs(x), abs(y)) < 1)),
    "speckled": ("cross", FORMS["cross"]),
    "dumb-bell": ("circle", FORMS["circle"]),
}


def near(name: str, size: str, offset: float, pixels: int) -> tuple[Scene, np.ndarray]:
    """A scene of two like things, and its image with one of them changed, or both joined, off the places that scenes have."""
    shape, form = NEAR[name]
    radius, colour = RADIUS[size], "green" if name == "speckled" else "pink"
    places = {"small": (24, 40), "large": (16, 48)}[size]
    slots = {"small": ("b2", "c2"), "large": ("top left", "top right")}[size]
    y = 24 if size == "small" else 16
    one, other = (Item(shape, colour, x, y, radius, radius, "", size, slot) for x, slot in zip(places, slots, strict=True))
    scene = Scene("objects", 1, "white", (one, other), "", "", "", 1)
    canvas = Canvas(scene, pixels)
    shifted = [item._replace(x=item.x + offset, y=item.y + offset) for item in (one, other)]
    canvas.thing(shifted[0])
    inside = form(*canvas.within(shifted[1]))
    if name == "speckled":
        canvas.paint(inside, colour)
        draws = np.random.default_rng(1)
        dots_HW1 = covered(inside, pixels) * (draws.random((pixels, pixels, 1)) < 0.5)
        canvas.image_HWC += dots_HW1 * (draws.uniform(0, 255, canvas.image_HWC.shape) - canvas.image_HWC)
    else:
        canvas.paint(inside, colour)
    if name == "dumb-bell":
        canvas.paint((abs(canvas.y - shifted[0].y) < 4) & (canvas.x > places[0]) & (canvas.x < places[1]), colour)
    return scene, np.clip(np.round(canvas.image_HWC), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("offset", (0, 0.4))
@pytest.mark.parametrize("name", NEAR)
def test_a_form_that_is_near_to_a_shape_is_not_taken_for_it(name: str, offset: float) -> None:
    sizes = [("small", 64), ("large", 64), ("large", 32)]
    if name not in ("hexagon", "astroid"):
        sizes.append(("small", 32))
    for size, pixels in sizes:
        scene, image_HWC = near(name, size, offset, pixels)
        (parsed,) = parse([image_HWC])
        assert [item.shape for item in parsed.items] != [item.shape for item in scene.items], (size, pixels)


@pytest.mark.parametrize("shape", FORMS)
@pytest.mark.parametrize("pixels", (32, 64))
def test_a_shape_off_its_place_and_slightly_larger_is_taken_for_itself(shape: str, pixels: int) -> None:
    for size, (x, y) in (("small", (24, 40)), ("large", (16, 48))):
        for offset, grown in ((0.5, 1.0), (0.0, 1.05), (-0.3, 0.95)):
            item = Item(shape, "red", x, y, RADIUS[size], RADIUS[size], "", size, "")
            canvas = Canvas(Scene("objects", 1, "black", (item,), "", "", "", 1), pixels)
            canvas.thing(item._replace(x=x + offset, y=y + offset, rx=item.rx * grown))
            (parsed,) = parse([np.clip(np.round(canvas.image_HWC), 0, 255).astype(np.uint8)])
            assert [(one.shape, one.colour, one.size) for one in parsed.items] == [(shape, "red", size)], (size, offset, grown)
