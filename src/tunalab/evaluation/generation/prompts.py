"""Prompts in the six categories of GenEval (arXiv 2310.11513), and dense ones as in DPG-Bench.

A prompt is the caption of a held-out scene, in the form that text-to-image documents have: it
always names shape, colour and place. What isolates a skill is the scene behind it and what is
scored of the image.

A verdict is decided on what the parser finds, as GenEval decides on what a detector finds (section
3), and stricter in one way: the image must show as many things as the prompt names, counting those
that no shape fits. Captions of scenes name everything; without this rule one image full of shapes
would be right for most prompts.

A scene graph's questions: is there the shape (entity), has it the colour, the size, the place,
the number (attributes), do two things stand as they should (relations), and the background
(global). A question whose parent is answered with no counts 0, whatever is to be seen: no colour
without its thing. The score of an image is the mean over its questions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby, pairwise
from random import Random

from tunalab.data.scenes import Item, Scene, caption
from tunalab.data.scenes.sampling import draw_scene, stream
from tunalab.data.scenes.vocabulary import DIRECTIONS, UNITS
from tunalab.errors import UserError
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
    ones, others = ([item for item in items if item.shape == expected.shape] for expected in (target, anchor))
    return any(stands(one, towards, other) for one in ones for other in others)


_VERDICTS: dict[str, Callable[[Scene, Sequence[Item]], bool]] = {
    "single_object": _shapes,
    "two_object": _shapes,
    "counting": _number,
    "colors": _colours,
    "position": _relation,
    "color_attr": _colours,
}


DENSE = "dense"
_REPEATS = 500  # so many scenes in a row that are known or unfit: there are hardly any others


@dataclass(frozen=True)
class Prompt:
    """``scene`` is what the image should show."""

    category: str
    scene: Scene

    @property
    def text(self) -> str:
        return caption(self.scene)


@dataclass(frozen=True)
class _Source:
    """Scenes of these kinds and levels, in turn, with so many things. Level 1 is most of what models are trained on."""

    kinds: tuple[tuple[str, int], ...]
    things: range


_SOURCES = {
    "single_object": _Source((("count", 1),), range(1, 2)),
    "two_object": _Source((("objects", 1),), range(2, 3)),
    "counting": _Source((("count", 1),), range(2, 5)),
    "colors": _Source((("count", 1),), range(1, 2)),
    "position": _Source((("relations", 1),), range(2, 3)),
    "color_attr": _Source((("objects", 1),), range(2, 3)),
    DENSE: _Source((("search", 1), ("objects", 2), ("relations", 2), ("count", 2), ("objects", 3), ("relations", 3)), range(3, 17)),
}
CATEGORIES = tuple(name for name in _SOURCES if name != DENSE)


@lru_cache(maxsize=32)
def prompts(category: str, split: str, count: int, series: int = 0) -> tuple[Prompt, ...]:
    """The first ``count`` prompts of a category or of DENSE, no two alike. Another ``series`` is drawn independently.

    Raises UserError when the split has not so many.
    """
    source = _SOURCES[category]
    found: dict[str, Prompt] = {}
    index = repeats = 0
    while len(found) < count and repeats < _REPEATS:
        kind, level = source.kinds[len(found) % len(source.kinds)]
        scene = draw_scene(stream("generation", category, split, series, index), split, kind, level)
        index += 1
        repeats += 1
        if len(scene.items) in source.things and caption(scene) not in found:
            found[caption(scene)] = Prompt(category, scene)
            repeats = 0
    if len(found) < count:
        raise UserError(f"scenes: split {split} has only {len(found)} prompts of category {category!r}, {count} are asked for")
    return tuple(found.values())


def fits(rng: Random, split: str, category: str) -> Scene:
    """A scene that a prompt of a category may be the caption of."""
    source = _SOURCES[category]
    while True:
        scene = draw_scene(rng, split, *rng.choice(source.kinds))
        if len(scene.items) in source.things:
            return scene


KINDS = ("global", "entity", "colour", "size", "number", "place", "relation")


@dataclass(frozen=True, eq=False)
class Question:
    """``text`` for people; ``holds`` of a parsed image; ``parents``: numbers of the questions that it depends on."""

    kind: str
    text: str
    holds: Callable[[Parsed], bool]
    parents: tuple[int, ...] = ()


def questions(scene: Scene) -> list[Question]:
    """Every parent before its children. Things of one shape, colour and size are asked about together."""
    found = [Question("global", f"is the background {scene.background}?", partial(_background, scene.background))]

    def add(kind: str, text: str, holds: Callable[[Parsed], bool], *parents: int) -> int:
        found.append(Question(kind, text, holds, parents))
        return len(found) - 1

    alone: list[tuple[Item, int]] = []  # things that shape and colour tell from all others, with the question for their colour
    for _, group in groupby(sorted(scene.items, key=_head), key=_head):
        items = list(group)
        item = items[0]
        name = f"{item.colour} {item.shape}"
        entity = add("entity", f"is there a {item.shape}?", partial(_there, item.shape, None))
        coloured = add("colour", f"is there a {name}?", partial(_there, item.shape, item.colour), entity)
        add("size", f"is a {name} {item.size}?", partial(_sized, item), coloured)
        if len(items) > 1:
            add("number", f"are there {len(items)} like the {name}?", partial(_numbered, item, len(items)), coloured)
        for one in items:
            add("place", f"is a {name} at {one.slot}?", partial(_placed, one), coloured)
        if sum((one.shape, one.colour) == (item.shape, item.colour) for one in scene.items) == 1:
            alone.append((item, coloured))
    for (one, first), (other, second) in pairwise(alone):
        towards = direction(one, other)
        text = f"is the {one.colour} {one.shape} {towards} from the {other.colour} {other.shape}?"
        add("relation", text, partial(_related, one, towards, other), first, second)
    return found


def answers(questions: Sequence[Question], parsed: Parsed) -> list[bool]:
    """Yes or no to each; no where a parent is no."""
    given: list[bool] = []
    for question in questions:
        given.append(all(given[parent] for parent in question.parents) and question.holds(parsed))
    return given


def _head(item: Item) -> tuple[str, str, str]:
    return item.shape, item.colour, item.size


def _those(parsed: Parsed, shape: str, colour: str | None = None) -> list[Item]:
    return [item for item in parsed.items if item.shape == shape and colour in (None, item.colour)]


def _background(colour: str, parsed: Parsed) -> bool:
    return parsed.background == colour


def _there(shape: str, colour: str | None, parsed: Parsed) -> bool:
    return bool(_those(parsed, shape, colour))


def _sized(expected: Item, parsed: Parsed) -> bool:
    return any(item.size == expected.size for item in _those(parsed, expected.shape, expected.colour))


def _numbered(expected: Item, number: int, parsed: Parsed) -> bool:
    return len(_those(parsed, expected.shape, expected.colour)) == number


def _placed(expected: Item, parsed: Parsed) -> bool:
    return any(item.slot == expected.slot for item in _those(parsed, expected.shape, expected.colour))


def _related(one: Item, towards: str, other: Item, parsed: Parsed) -> bool:
    ones, others = (_those(parsed, item.shape, item.colour) for item in (one, other))
    return any(stands(a, towards, b) for a in ones for b in others)
