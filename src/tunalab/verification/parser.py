"""How often the parser of scenes errs: wrong images that it accepts, by what is wrong with them, and right ones that it rejects.

A wrong image is drawn from a scene that was changed in one way. The truth is the verdict on the scene that was drawn, given by the
same rule as the verdict on what the parser read; a change that leaves the verdict as it was makes no wrong image. Scenes are of
the kinds that are made of shapes, of all levels, and of those that prompts of GenEval's categories are drawn from.

Shapes: N images, H W C pixels.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice, product, repeat
from math import ceil
from multiprocessing import get_context
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from tunalab.data.scenes import Item, Scene, render
from tunalab.data.scenes.render import shape_coverage
from tunalab.data.scenes.sampling import draw_scene, stream
from tunalab.data.scenes.vocabulary import BACKGROUNDS, CELL, CELLS, COLOURS, QUADRANTS, RADIUS, RGB, SHAPES, SLOTS, UNITS
from tunalab.evaluation.generation.accuracy import is_exact
from tunalab.evaluation.generation.bank import UNCLEAR, distance
from tunalab.evaluation.generation.parser import Found, Parsed, parse
from tunalab.evaluation.generation.prompts import CATEGORIES, fits, right
from tunalab.evaluation.measure import wilson
from tunalab.terminal import progress_bar
from tunalab.verification import Table

KINDS = ("objects", "relations", "pairs", "search", "count", "pattern")
LEVELS = (1, 2, 3)
SIZES = (32, 64)
# Energy (squared differences, of a range of 1, summed over the channels of a 32-px image) by which a wrong image differs from the
# right one that it was made from; nearer ones are not scored. A small circle that another renderer antialiases with 2 x 2 samples a
# pixel lies so far from ours on the strongest contrast (see `limits`), and is right.
LEAST_ENERGY = 0.5
COUNT = 2000  # of wrong images of each change and size, and of right ones
PROCESSES = 2
SEED = "table"  # another than those that the parser was made with
_BLOB, _SPOT = "blob", "spot"
_TRIES = 200
Form = Callable[[np.ndarray, np.ndarray], np.ndarray]  # x, y in radii -> inside or not
# Shapes, and forms that no scene has, each with the shape that it is most like.
_FORMS: dict[str, tuple[str, Form]] = {
    "circle": ("circle", lambda x, y: np.hypot(x, y) < 1),
    "diamond": ("diamond", lambda x, y: abs(x) + abs(y) < 1),
    "hexagon": ("circle", lambda x, y: np.maximum(abs(y), 0.866 * abs(x) + 0.5 * abs(y)) < 0.92),
    "astroid": ("diamond", lambda x, y: abs(x) ** 0.6 + abs(y) ** 0.6 < 1),
}
_SAMPLES = 8  # a pixel and axis, of forms
_ODD = (_BLOB, _SPOT, "hexagon", "astroid")  # what no scene has
# Pixels. Smaller hexagons and astroids lie about as near to a right drawing as a circle or diamond that another renderer
# antialiases (`limits`), and a smaller spot is one pixel: they are not scored.
LEAST_RADIUS = {"hexagon": 4.0, "astroid": 4.0, _SPOT: 1.0}


@dataclass(frozen=True, eq=False)
class Picture:
    """An image (H, W, 3) uint8 of ``drawn``, judged as an answer to ``prompt``, one of a GenEval ``category`` or of none."""

    prompt: Scene
    category: str
    drawn: Scene
    image_HWC: np.ndarray


# A change of a scene's things: the changed ones, or None where the scene has no place for it.
Change = Callable[[Random, Scene], Scene | None]
SIMILAR = {
    "circle": ("diamond", "ring", "square"),
    "square": ("circle", "diamond"),
    "triangle": ("diamond", "square"),
    "cross": ("diamond", "circle"),
    "diamond": ("circle", "cross"),
    "ring": ("circle", "square"),
}


def _with(scene: Scene, items: Iterable[Item], on_top: bool = False) -> Scene:
    """In the order of drawing of scenes, or the last thing ``on_top``."""
    return replace(scene, items=tuple(items) if on_top else tuple(sorted(items)))


def _one_changed(change: Callable[[Random, Item], dict[str, Any] | None]) -> Change:
    """Fields of one shape are replaced; where ``change`` gives None, the shape is left out."""

    def changed(rng: Random, scene: Scene) -> Scene:
        number = rng.choice([number for number, item in enumerate(scene.items) if item.shape in SHAPES])
        items, new = list(scene.items), change(rng, scene.items[number])
        items[number : number + 1] = [] if new is None else [items[number]._replace(**new)]
        return _with(scene, items)

    return changed


def _near_colour(rng: Random, item: Item) -> dict[str, Any]:
    by_nearness = sorted((name for name in COLOURS if name != item.colour), key=lambda name: distance(name, item.colour))
    return {"colour": rng.choice(by_nearness[:2])}


def _apart(one: Item, other: Item) -> int:
    """Units between the boxes of two things, negative where they overlap."""
    return max(abs(one.x - other.x) - one.rx - other.rx, abs(one.y - other.y) - one.ry - other.ry)


def _thing(rng: Random, x: int, y: int, size: str, colour: str = "") -> Item:
    radius = RADIUS[size]
    x, y = (min(max(c, radius), UNITS - radius) for c in (x, y))
    return Item(rng.choice(SHAPES), colour or rng.choice(COLOURS), x, y, radius, radius, "", size, "")


def _size(rng: Random) -> str:
    return rng.choice(("small", "small", "tiny"))


def _far(rng: Random, scene: Scene) -> Scene | None:
    for _ in range(_TRIES):
        new = _thing(rng, rng.randrange(UNITS), rng.randrange(UNITS), _size(rng))
        if all(_apart(new, item) >= 2 for item in scene.items):
            return _with(scene, [*scene.items, new])
    return None


def _one_more(rng: Random, scene: Scene, apart: range, size: str, on_top: bool = False, same_colour: bool = False) -> Scene | None:
    """``apart`` from one shape, over no other thing."""
    for _ in range(_TRIES):
        near = rng.choice([item for item in scene.items if item.shape in SHAPES])
        new = _thing(rng, rng.randrange(UNITS), rng.randrange(UNITS), size, near.colour if same_colour else "")
        if _apart(new, near) in apart and all(_apart(new, item) >= 0 or item is near for item in scene.items):
            return _with(scene, [*scene.items, new], on_top)
    return None


def _overlapping(rng: Random, scene: Scene) -> Scene | None:
    return _one_more(rng, scene, range(-8, -1), rng.choice(("small", "tiny", "large")), rng.random() < 0.5)


def _small_on_large(rng: Random, scene: Scene) -> Scene | None:
    large = [item for item in scene.items if item.size == "large" and item.shape in SHAPES]
    if not large:
        return None
    on = rng.choice(large)
    reach = RADIUS["large"] - RADIUS["small"]
    new = _thing(rng, on.x + rng.randint(-reach, reach), on.y + rng.randint(-reach, reach), _size(rng))
    return None if new.colour == on.colour else _with(scene, [*scene.items, new], on_top=True)


def _background(rng: Random, scene: Scene) -> Scene | None:
    return replace(scene, background=rng.choice([name for name in BACKGROUNDS if name != scene.background]))


def _moved(rng: Random, scene: Scene) -> Scene | None:
    item = rng.choice([item for item in scene.items if item.shape in SHAPES])
    x, y = SLOTS[item.slot]
    dx, dy = rng.choice(((0, CELL), (0, -CELL), (CELL, 0), (-CELL, 0)))
    slots = {place: name for name, place in (QUADRANTS if item.slot in QUADRANTS else CELLS).items()}
    if not all(item.rx <= c <= UNITS - item.rx for c in (x + dx, y + dy)):
        return None
    moved = item._replace(x=item.x + dx, y=item.y + dy, slot=slots.get((x + dx, y + dy), ""))
    others = [other for other in scene.items if other is not item]
    return None if any(_apart(moved, other) < -6 for other in others) else _with(scene, [*others, moved])


def _mirrored(rng: Random, scene: Scene) -> Scene | None:
    slots = {place: name for slot_set in (QUADRANTS, CELLS) for name, place in slot_set.items()}
    across = rng.random() < 0.5

    def mirrored(x: int, y: int) -> tuple[int, int]:
        return (UNITS - x, y) if across else (x, UNITS - y)

    items = []
    for item in scene.items:
        x, y = mirrored(item.x, item.y)
        items.append(item._replace(slot=slots[mirrored(*SLOTS[item.slot])], x=x, y=y))
    return _with(scene, items)


def _mark(form: str, radii: tuple[int, ...], grid: int) -> Change:
    """A mark of another ``form`` than scenes have, on top; its place on every ``grid``-th unit."""

    def change(rng: Random, scene: Scene) -> Scene:
        radius = rng.choice(radii)
        x, y = (radius + grid * rng.randrange((UNITS - 2 * radius) // grid + 1) for _ in range(2))
        return _with(scene, [*scene.items, Item(form, rng.choice(COLOURS), x, y, radius, radius)], on_top=True)

    return change


def _like(form: str) -> Change:
    """A thing that nothing overlaps is drawn as ``form`` instead of the shape that it is most like."""

    def change(rng: Random, scene: Scene) -> Scene | None:
        like = [item for item in scene.items if item.shape == _FORMS[form][0] and item.size in RADIUS]
        free = [item for item in like if all(_apart(item, other) >= 0 for other in scene.items if other is not item)]
        if not free:
            return None
        chosen = rng.choice(free)
        others = [item for item in scene.items if item is not chosen]
        return _with(scene, [*others, chosen._replace(shape=form)], on_top=True)

    return change


CHANGES: dict[str, Change] = {
    "near colour": _one_changed(_near_colour),
    "similar shape": _one_changed(lambda rng, item: {"shape": rng.choice(SIMILAR[item.shape])}),
    "one thing less": _one_changed(lambda rng, item: None),
    "one more far away": _far,
    "one more overlapping": _overlapping,
    "one more touching, same colour": lambda rng, scene: _one_more(rng, scene, range(-1, 2), _size(rng), same_colour=True),
    "small one on a large one": _small_on_large,
    "another background": _background,
    "moved by one cell": _moved,
    "mirrored relation": _mirrored,
    "extra blob": _mark(_BLOB, (3, 4, 5, 6), 1),
    "extra square spot of 2 to 4 px": _mark(_SPOT, (1, 2), 2),  # on whole pixels
    "hexagon for a circle": _like("hexagon"),
    "astroid for a diamond": _like("astroid"),
}


def draw(scene: Scene, size: int) -> np.ndarray:
    """As scenes are rendered, with what no scene has upon it: a blob has a soft edge (a Gaussian), forms are antialiased."""
    image_HWC = render(replace(scene, items=tuple(item for item in scene.items if item.shape not in _ODD)), size)
    for item in scene.items:
        if item.shape in _ODD:
            cover_HW1 = _cover(item, size)[:, :, None]
            image_HWC = np.round(image_HWC + cover_HW1 * (np.array(RGB[item.colour]) - image_HWC)).astype(np.uint8)
    return image_HWC


def _cover(item: Item, size: int) -> np.ndarray:
    """(H, W) of what no scene has."""
    if item.shape in _FORMS:
        scale = size / UNITS
        return _form_coverage(_FORMS[item.shape][1], item.x * scale, item.y * scale, item.rx * scale, size, _SAMPLES)
    y, x = ((np.arange(size) + 0.5) * UNITS / size - centre for centre in (item.y, item.x))
    if item.shape == _SPOT:
        return ((abs(y) < item.ry)[:, None] & (abs(x) < item.rx)).astype(float)
    return np.exp(-2 * (np.square(y)[:, None] + np.square(x)) / item.rx**2)


def _form_coverage(form: Form, x: float, y: float, radius: float, size: int, samples: int) -> np.ndarray:
    """(H, W): the share of ``samples`` x ``samples`` points of each pixel that lie in a form; place and radius in pixels."""
    at = (np.arange(size * samples) + 0.5) / samples
    inside = form(*np.broadcast_arrays((at - x) / radius, ((at - y) / radius)[:, None]))
    return inside.reshape(size, samples, size, samples).mean((1, 3))


def scenes(seed: str) -> Iterator[tuple[Scene, str]]:
    """Held-out scenes without end, those of all kinds and levels and those of GenEval's categories (with the category) in turn."""
    of_kinds = [(kind, level) for level in LEVELS for kind in KINDS]
    index = 0
    while True:
        kind, level = of_kinds[index // 2 % len(of_kinds)]
        category = CATEGORIES[index // 2 % len(CATEGORIES)] if index % 2 else ""
        rng = stream("parser", seed, index)
        index += 1
        if not category:
            yield draw_scene(rng, "test", kind, level), ""
        else:
            yield fits(rng, "test", category), category


def verdicts(picture: Picture, parsed: Parsed) -> list[bool]:
    """Whether an image shows its caption, no more and no less; and what its prompt's category asks for, where it has one."""
    given = [is_exact(parsed, picture.prompt)]
    return [*given, right(picture.category, picture.prompt, parsed)] if picture.category else given


def truth(picture: Picture) -> list[bool]:
    items = (item._replace(shape=UNCLEAR) if item.shape in _ODD else item for item in picture.drawn.items)
    return verdicts(picture, Parsed(picture.drawn.background, tuple(Found(item, 1.0) for item in items)))


def wrong(change: str, size: int, count: int, seed: str) -> tuple[list[Picture], int]:
    """``count`` images that are wrong by the caption, and by the prompt's category where they have one; and how many of those drawn
    meanwhile were too near to the right one to be scored."""
    found: list[Picture] = []
    near = 0
    for number, (scene, category) in enumerate(scenes(f"{seed} {change}")):
        if len(found) == count:
            break
        changed = CHANGES[change](stream("change", seed, change, number), scene)
        if changed is None:
            continue
        picture = Picture(scene, category, changed, draw(changed, size))
        if not any(truth(picture)):
            if energy(picture) >= LEAST_ENERGY and _is_scored(picture):
                found.append(picture)
            else:
                near += 1
    return found, near


def _is_scored(picture: Picture) -> bool:
    scale = len(picture.image_HWC) / UNITS
    return all(item.rx * scale >= LEAST_RADIUS.get(item.shape, 0) for item in picture.drawn.items)


def energy(picture: Picture) -> float:
    """By how much the image differs from the right one that it was made from, as of 32-px images."""
    size = len(picture.image_HWC)
    difference_HWC = (picture.image_HWC - render(picture.prompt, size).astype(np.float32)) / 255
    return float(np.square(difference_HWC).sum()) * (32 / size) ** 2


def unchanged(size: int, count: int, seed: str) -> list[Picture]:
    """Right images."""
    chosen = islice(scenes(seed), count)
    return [Picture(scene, category, scene, render(scene, size)) for scene, category in chosen]


def disturbances(images_NHWC: np.ndarray, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Name and images, uint8."""
    draws = np.random.default_rng(seed)

    def whole(images: np.ndarray) -> np.ndarray:
        return np.clip(np.round(images), 0, 255).astype(np.uint8)

    pixels_NHWC = images_NHWC.astype(np.float64)
    yield "clean", images_NHWC
    yield "blur 0.7 px", whole(gaussian_filter(pixels_NHWC, (0, 0.7, 0.7, 0), mode="nearest"))
    yield "noise 8/255", whole(pixels_NHWC + draws.normal(0, 8, pixels_NHWC.shape))
    yield "JPEG quality 60", np.stack([_jpeg(image_HWC) for image_HWC in images_NHWC])
    yield "brightness +8%", whole(pixels_NHWC * 1.08)
    yield "brightness -8%", whole(pixels_NHWC * 0.92)


def _jpeg(image_HWC: np.ndarray) -> np.ndarray:
    content = io.BytesIO()
    Image.fromarray(image_HWC).save(content, "JPEG", quality=60)
    return np.asarray(Image.open(content))


def accepted(change: str, size: int, count: int, seed: str = SEED) -> tuple[list[bool], int]:
    """Whether any verdict on each wrong image is that it is right; and how many were too near to be scored."""
    pictures, near = wrong(change, size, count, seed)
    read = parse([picture.image_HWC for picture in pictures])
    return [any(verdicts(picture, one)) for picture, one in zip(pictures, read, strict=True)], near


def recalled(size: int, count: int, seed: str = SEED) -> dict[str, list[tuple[bool, float]]]:
    """Disturbance -> of each right image, whether all verdicts on it are that it is right, and its residual (``Parsed``)."""
    pictures = unchanged(size, count, seed)
    return {
        name: [(all(verdicts(picture, one)), one.residual) for picture, one in zip(pictures, parse(images_NHWC), strict=True)]
        for name, images_NHWC in disturbances(np.stack([picture.image_HWC for picture in pictures]))
    }


def limits(form: str, samples: int, radius: float, count: int = 12) -> tuple[float, float]:
    """Median and most of the energy by which a form of ``radius`` pixels differs from the nearest right drawing, as a share of the
    squared contrast: from its shape at any place within a pixel, 8% smaller to 8% larger (of a small or a tiny thing), 15% fainter
    or stronger. ``samples``: points a pixel and axis from which the form is antialiased; 1 is not at all.
    """
    shape, inside = _FORMS[form]
    draws, side = np.random.default_rng(0), 2 * ceil(radius) + 8
    radii = [radius * size * grown for size in (1, RADIUS["tiny"] / RADIUS["small"]) for grown in (0.92, 0.96, 1, 1.04, 1.08)]
    energies = []
    for _ in range(count):
        x, y = side / 2 + draws.uniform(-0.5, 0.5, 2)
        image_HW = _form_coverage(inside, x, y, radius, side, samples)
        nearest = np.inf
        for dx, dy, right_radius in product(*[np.arange(-1, 1.01, 0.25)] * 2, radii):
            cover_HW = np.zeros_like(image_HW)
            patch_hw = shape_coverage(shape, right_radius, right_radius, x + dx, y + dy, 1)[:, :, 0]
            cover_HW[: patch_hw.shape[0], : patch_hw.shape[1]] = patch_hw
            strength = np.clip((cover_HW * image_HW).sum() / np.square(cover_HW).sum(), 0.85, 1.15)
            nearest = min(nearest, float(np.square(image_HW - strength * cover_HW).sum()))
        energies.append(nearest)
    return float(np.median(energies)), max(energies)


def tables(count: int = COUNT) -> list[Table]:
    cells = [(name, size) for name in (*CHANGES, RECALL) for size in SIZES]
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as processes:
        measured = progress_bar(
            processes.map(_row, *zip(*cells, strict=True), repeat(count)), False, desc="parser", total=len(cells)
        )
        of = dict(zip(cells, measured, strict=True))
    wrong_rows = []
    for name in CHANGES:
        of_sizes = [of[name, size] for size in SIZES]
        wrong_rows.append([name, *(_share(*counts) for counts, _ in of_sizes), *(str(near) for _, near in of_sizes)])
    right_rows = [[name, *(_share(*of[RECALL, size][name][:2]) for size in SIZES)] for name in of[RECALL, SIZES[0]]]
    residual_rows = [[name, *(_residuals(of[RECALL, size][name][2]) for size in SIZES)] for name in of[RECALL, SIZES[0]]]
    sizes = [f"{size} px" for size in SIZES]
    return [
        Table(
            "Wrong images that are called right",
            f"Share of {count} images of each change and size, with its 95% interval (Wilson); promised: at most 2%. "
            "An image is called right where it is said to show its caption exactly, or what its prompt's category asks "
            "for; it is in the table if what was drawn is wrong by each of these that applies. Scenes of the kinds that "
            "are made of shapes, of all levels, and of GenEval's categories in turn; words and bars are not read. Not "
            f"scored: images within {LEAST_ENERGY} of the one they were made from (squared differences, of values up to "
            "1, summed over the channels of a 32-px image: a pixel and a half of the faintest colour), spots of a single "
            f"pixel, hexagons and astroids of a radius below {LEAST_RADIUS['hexagon']:.0f} px (the last table says why). They "
            "are counted in the last columns. More forms, frames and marks that scenes do not have are in "
            "tests/evaluation/generation/test_parser_attack.py.",
            ["change", *sizes, *(f"not scored, {size}" for size in sizes)],
            wrong_rows,
        ),
        Table(
            "Right images that are called right",
            f"Share of {count} images of each size; promised: 97% clean, 90% under each disturbance.",
            ["image", *sizes],
            right_rows,
        ),
        Table(
            "Residual of right images",
            "How far each of these lies from its parsed scene drawn again, as a share of what is rejected: median, what 3 in 100 "
            "exceed, and how many are rejected for it (above 1). The generation part of an evaluation reports the same of a "
            "model's images: `residual of right images`, `rejected by residual`.",
            ["image", *sizes],
            residual_rows,
        ),
        Table(
            "What a right drawing and a wrong form differ by",
            "Energy left by the nearest drawing of the circle or diamond (place within a pixel, radius within 8% of a small or "
            "tiny one's, 15% fainter or stronger) as a share of the squared contrast: median and most of 12 places. The squared "
            "contrast of scenes is .13 to 1.67. Circles and diamonds from few samples a pixel are right ones of another "
            "renderer. A wrong form that lies hardly further than they do cannot be told from them.",
            ["drawn", *(f"radius {radius:g} px" for radius in _RADII)],
            [
                [name, *("{:.2f} ({:.2f})".format(*limits(form, samples, radius)) for radius in _RADII)]
                for name, form, samples in _LIMITS
            ],
        ),
    ]


RECALL = "recall"
_RADII = (2.5, 3.5, 5.0, 7.0)  # of tiny and small things at 32 px and at 64 px; of large ones at 32 px
_LIMITS = [
    *((f"{form} from {n} x {n} samples", form, n) for form in ("circle", "diamond") for n in (1, 2, 4)),
    ("hexagon for a circle", "hexagon", _SAMPLES),
    ("astroid for a diamond", "astroid", _SAMPLES),
]


def _row(name: str, size: int, count: int) -> Any:
    """For :func:`tables`, in a process of its own: numbers of images and of those called right."""
    if name == RECALL:
        return {
            of: (sum(right_one for right_one, _ in found), len(found), [residual for _, residual in found])
            for of, found in recalled(size, count).items()
        }
    called, near = accepted(name, size, count)
    return (sum(called), len(called)), near


def _residuals(of: list[float]) -> str:
    above = sum(residual > 1 for residual in of) / len(of)
    return f"{np.median(of):.2f}, {np.quantile(of, 0.97):.2f}, {above:.2%}"


def _share(right_ones: int, count: int) -> str:
    low, high = wilson(right_ones, count)
    return f"{right_ones / count:.2%} [{low:.2%}, {high:.2%}]"
