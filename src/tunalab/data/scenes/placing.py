"""Small helpers that the scene builders share: putting things into slots, backgrounds and jitter by level."""

from random import Random

from tunalab.data.scenes.graph import Item
from tunalab.data.scenes.vocabulary import BACKGROUNDS, RADIUS, SLOTS, UNITS

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


def other(rng: Random, choices: tuple[str, ...], *taken: str) -> str:
    """A random choice that is none of those taken."""
    while (choice := rng.choice(choices)) in taken:
        pass
    return choice


def others(rng: Random, choices: tuple[str, ...], count: int, *taken: str) -> list[str]:
    """``count`` different choices, none of them taken."""
    return rng.sample([choice for choice in choices if choice not in taken], count)
