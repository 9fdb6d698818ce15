"""The scene graph, the exact truth from which image, caption, questions and edits are derived; and the split it may appear in.

The split is decided by what a scene shows, so that no image is ever in two splits.
"""

from dataclasses import dataclass, replace
from hashlib import blake2b
from random import Random
from typing import NamedTuple

from tunalab.data.scenes.vocabulary import (
    BACKGROUNDS,
    CELL,
    HELD_BARS,
    HELD_COUNTS,
    HELD_PAIRS,
    RADIUS,
    SLOTS,
    SPLITS,
    UNITS,
    held_word,
)
from tunalab.errors import UserError


class Item(NamedTuple):
    """One thing in the image. Positions and radii are in 1/64 of the image side.

    ``shape`` is one of SHAPES, or "bar", "word", "mark" (the question mark of a missing cell). ``slot`` names the place
    for captions; it is the nominal place, from which ``x, y`` differ by the jitter. A tuple rather than a dataclass,
    because thousands are made a second and their natural order is the order of drawing.
    """

    shape: str
    colour: str
    x: int
    y: int
    rx: int
    ry: int
    text: str = ""
    size: str = ""
    slot: str = ""

    @property
    def centre(self) -> tuple[float, float]:
        """Centre (x, y) as a fraction of the image side, y downwards."""
        return self.x / UNITS, self.y / UNITS

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Bounding box (left, top, right, bottom) as fractions of the image side."""
        x, y, rx, ry = self.x, self.y, self.rx, self.ry
        return (x - rx) / UNITS, (y - ry) / UNITS, (x + rx) / UNITS, (y + ry) / UNITS


@dataclass(frozen=True)
class Scene:
    """A scene with its main question.

    ``items`` are in drawing order. ``options`` is the number of equally likely answers that the prompt leaves open; ``choices`` are
    these answers where they are a few.
    ``twin`` is the near-identical second scene of kind "pairs", with the same prompt and another answer.
    """

    kind: str
    level: int
    background: str
    items: tuple[Item, ...]
    prompt: str
    answer: str
    template: str
    options: int
    twin: "Scene | None" = None
    choices: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """What the image shows and nothing else: scenes with equal content render equally, whatever their kind."""
        return f"{self.background}{[item[:7] for item in self.items]}"


JITTER = {1: 0, 2: 1, 3: 3}  # units; level 1 stays exactly on the grid of patches
_BACKGROUNDS = {1: BACKGROUNDS[:2], 2: BACKGROUNDS, 3: BACKGROUNDS}


def background(rng: Random, level: int) -> str:
    """A background: level 1 knows only white and black."""
    return rng.choice(_BACKGROUNDS[level])


def place(rng: Random | None, level: int, shape: str, colour: str, size: str, slot: str) -> Item:
    """A shape in a slot, displaced by the jitter of its level (none without ``rng``) but never out of the image."""
    x, y = SLOTS[slot]
    radius = RADIUS[size]
    jitter = JITTER[level]
    if rng is not None and jitter:
        x = min(max(x + rng.randint(-jitter, jitter), radius), UNITS - radius)
        y = min(max(y + rng.randint(-jitter, jitter), radius), UNITS - radius)
    return Item(shape, colour, x, y, radius, radius, "", size, slot)


PLACEMENTS = ("grid", "free")
_FARTHEST = CELL // 2 - 1  # from the nominal place: its slot stays the nearest one


def displaced(rng: Random, *scenes: Scene) -> tuple[Scene, ...]:
    """The scenes with their columns and rows of things displaced (placement "free"), alike in each: off the grid of patches, with
    every answer still right.

    What overlaps along an axis moves together along it, so that what is in a row stays in a row; columns neither meet nor pass each
    other. Things stay in the image and nearest to their slots, a word's corner in its cell, bars on the lower edge.
    """
    items = sorted({item for scene in scenes for item in scene.items})
    dx = _displacements(rng, items, 0)
    dy = dict.fromkeys(items, 0) if any(item.shape == "bar" for item in items) else _displacements(rng, items, 1)
    return tuple(
        replace(scene, items=tuple(sorted(item._replace(x=item.x + dx[item], y=item.y + dy[item]) for item in scene.items)))
        for scene in scenes
    )


def _displacements(rng: Random, items: list[Item], axis: int) -> dict[Item, int]:
    """Of each item along x (``axis`` 0) or y (1), drawn from the first column on within what leaves room for the others."""
    columns: list[list[Item]] = []
    ends: list[int] = []  # of each column along the axis
    gaps: list[int] = []  # ahead of each column
    for item in sorted(items, key=lambda item: _extent(item, axis)):
        begin, end = _extent(item, axis)
        if columns and begin < ends[-1]:
            columns[-1].append(item)
            ends[-1] = max(ends[-1], end)
        else:
            gaps.append(begin - ends[-1] if ends else UNITS)
            columns.append([item])
            ends.append(end)
    rooms = [_room(column, axis) for column in columns]
    greatest = rooms[-1][1]
    bounds = []
    for (_, most), gap in zip(reversed(rooms), [UNITS, *reversed(gaps[1:])], strict=True):
        greatest = min(most, greatest + gap)
        bounds.append(greatest)
    found: dict[Item, int] = {}
    moved = -UNITS
    for column, (least, _), most, gap in zip(columns, rooms, reversed(bounds), gaps, strict=True):
        moved = rng.randint(max(least, moved - gap), most)
        found |= dict.fromkeys(column, moved)
    return found


def _extent(item: Item, axis: int) -> tuple[int, int]:
    centre, radius = ((item.x, item.rx), (item.y, item.ry))[axis]
    return centre - radius, centre + radius


def _room(items: list[Item], axis: int) -> tuple[int, int]:
    """The least and the greatest displacement of things that move together, were they alone."""
    least, greatest = -_FARTHEST, _FARTHEST
    for item in items:
        begin, end = _extent(item, axis)
        least, greatest = max(least, -begin), min(greatest, UNITS - end)
        if item.shape == "word":
            corner = SLOTS[item.slot][axis] - CELL // 2 - begin  # of its cell, from its own
            least, greatest = max(least, corner), min(greatest, corner + CELL - 1)
        elif item.slot in SLOTS:
            off = (begin + end) // 2 - SLOTS[item.slot][axis]
            least, greatest = max(least, -_FARTHEST - off), min(greatest, _FARTHEST - off)
    return least, greatest


def other(rng: Random, choices: tuple[str, ...], *taken: str) -> str:
    """A random choice that is none of those taken."""
    while (choice := rng.choice(choices)) in taken:
        pass
    return choice


def others(rng: Random, choices: tuple[str, ...], count: int, *taken: str) -> list[str]:
    """``count`` different choices, none of them taken."""
    return rng.sample([choice for choice in choices if choice not in taken], count)


HASH_CLASSES = 8


def check_split(split: str) -> None:
    """Raises UserError for a name that is no split."""
    if split not in SPLITS:
        raise UserError(f"scenes: unknown split {split!r}; choose from {', '.join(SPLITS)}")


def hash_split(content: str) -> str:
    """The split of some content by its hash: one eighth test, one eighth components, the rest train."""
    value = int.from_bytes(blake2b(content.encode(), digest_size=4).digest(), "little") % HASH_CLASSES
    return {0: "test", 1: "components"}.get(value, "train")


def held_out(scene: Scene) -> bool:
    """Whether a scene shows a combination that only the split "composition" may show.

    It looks at the content alone, never at the kind: the same image may come from scenes of two kinds.
    """
    for item in scene.items:
        if (item.colour, item.shape) in HELD_PAIRS:
            return True
        if item.shape == "bar" and (item.colour, bar_value(item.ry)) in HELD_BARS:
            return True
        if item.shape == "word" and held_word(item.text):
            return True
    shapes = [item.shape for item in scene.items]
    return any((shape, shapes.count(shape)) in HELD_COUNTS for shape in set(shapes))


def bar_value(ry: int) -> int:
    """The value of a bar from its half height: one unit of value is an eighth of the image side."""
    return ry // 4


def belongs(scene: Scene, split: str) -> bool:
    """Whether a scene, and its twin if it has one, may appear in a split."""
    scenes = (scene,) if scene.twin is None else (scene, scene.twin)
    if split == "composition":
        return all(held_out(one) for one in scenes)
    return all(hash_split(one.content) == split and not held_out(one) for one in scenes)
