"""Whether an image shows what its category of GenEval asks for, and nothing else about it: colours matter in two of the six.

Right is decided on what the parser finds, as GenEval decides on what a detector finds (arXiv 2310.11513, section 3), and stricter
in one way: as many things must be there as the prompt names, those that no shape fits included. Captions of scenes name everything,
and without this rule one image full of shapes would be right for most prompts.
"""

from collections.abc import Callable, Sequence

from tunalab.data.scenes import Item, Scene
from tunalab.data.scenes.vocabulary import DIRECTIONS, UNITS
from tunalab.evaluation.generation.parser import Parsed

DEAD_ZONE = UNITS // 8  # centres that are no further apart are at one height, or in one column
LEAST_COSINE = 0.5  # GenEval's: "left" may also be somewhat above or below


def right(category: str, scene: Scene, parsed: Parsed) -> bool:
    """The verdict on one image. What is unclear in shape counts as a thing, but is never taken for one that is asked for."""
    return len(parsed.items) == len(scene.items) and _VERDICTS[category](scene, parsed.items)


def direction(one: Item, other: Item) -> str:
    """Where ``one`` is from ``other``, along the axis on which they are further apart."""
    dx, dy = one.x - other.x, one.y - other.y
    return ("right" if dx > 0 else "left") if abs(dx) >= abs(dy) else ("below" if dy > 0 else "above")


def stands(one: Item, towards: str, other: Item) -> bool:
    """Whether ``one`` is left of, right of, above or below ``other``, as far apart as can be seen."""
    dx, dy = ((d if abs(d) > DEAD_ZONE else 0) for d in (one.x - other.x, one.y - other.y))
    x, y = DIRECTIONS[towards]
    return dx * x + dy * y > LEAST_COSINE * (dx * dx + dy * dy) ** 0.5


def _shapes(scene: Scene, items: Sequence[Item]) -> bool:
    return {item.shape for item in scene.items} <= {item.shape for item in items}


def _number(scene: Scene, items: Sequence[Item]) -> bool:
    return all(
        sum(item.shape == shape for item in items) == sum(item.shape == shape for item in scene.items)
        for shape in {item.shape for item in scene.items}
    )


def _colours(scene: Scene, items: Sequence[Item]) -> bool:
    return {(item.shape, item.colour) for item in scene.items} <= {(item.shape, item.colour) for item in items}


def _relation(scene: Scene, items: Sequence[Item]) -> bool:
    target, anchor = scene.items
    towards = direction(target, anchor)
    ones, others = ([item for item in items if item.shape == wanted.shape] for wanted in (target, anchor))
    return any(stands(one, towards, other) for one in ones for other in others)


_VERDICTS: dict[str, Callable[[Scene, Sequence[Item]], bool]] = {
    "single_object": _shapes,
    "two_object": _shapes,
    "counting": _number,
    "colors": _colours,
    "position": _relation,
    "color_attr": _colours,
}
