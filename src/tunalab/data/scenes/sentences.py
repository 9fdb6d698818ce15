"""Text without an image: a small scene in words and what follows from it."""

from itertools import pairwise
from random import Random

from tunalab.data.scenes.placing import other
from tunalab.data.scenes.splits import hash_split
from tunalab.data.scenes.vocabulary import COLOURS, DIRECTIONS, PLURALS, SHAPES

_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def _side(direction: str) -> str:
    return f"{direction} of" if direction in ("left", "right") else direction


def _sentence(rng: Random, level: int) -> str:
    one, two, three, four = rng.sample(SHAPES, 4)
    direction = rng.choice(tuple(DIRECTIONS))
    side = _side(direction)
    deduction = rng.randrange(4)
    if deduction == 0:
        return f"the {one} is {side} the {two}, so the {two} is {_side(_OPPOSITE[direction])} the {one}."
    if deduction == 1:
        chain = [one, two, three] if level == 1 else [one, two, three, four]
        links = [f"the {a} is {side} the {b}" for a, b in pairwise(chain)]
        if level == 3:
            rng.shuffle(links)
        return f"{', '.join(links)}, so the {chain[0]} is {side} the {chain[-1]}."
    if deduction == 2:
        first, second = rng.randint(2, 4), rng.randint(2, 4)
        return f"{first} {PLURALS[one]} and {second} {PLURALS[two]} are {first + second} shapes."
    colour = rng.choice(COLOURS)
    new = other(rng, COLOURS, colour)
    if level == 1:
        return f"the {one} is {colour}. make it {new}: the {one} is {new}."
    return f"the {one} is {colour}, the {two} is {new}. swap them: the {one} is {new}, the {two} is {colour}."


def draw_text(rng: Random, split: str, level: int) -> str:
    """A text whose hash falls into the split; "composition" shares the texts of "test", which have no combinations."""
    wanted = "test" if split == "composition" else split
    while hash_split(text := _sentence(rng, level)) != wanted:
        pass
    return text
