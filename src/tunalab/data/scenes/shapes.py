"""Builders of the scenes made of plain shapes: objects, relations, pairs, search, count.

A builder is a function of (rng, level, pick). ``pick`` is a large integer that alone decides template and answer: it is
kept while a scene is redrawn until it belongs to its split, which is what keeps answers balanced in every split.
"""

from random import Random

from tunalab.data.scenes.graph import Item, Scene, background, other, others, place
from tunalab.data.scenes.vocabulary import CELL_AT, CELLS, COLOURS, DIRECTIONS, PLURALS, QUADRANTS, SHAPES

_QUADRANTS = tuple(QUADRANTS)
_CELLS = tuple(CELLS)
_QUADRANT_AT = {centre: slot for slot, centre in QUADRANTS.items()}


def colour_question(shape: str) -> str:
    """Asks the colour of the only thing of a shape."""
    return f"what colour is the {shape}?"


def shape_question(colour: str) -> str:
    """Asks the shape of the only thing of a colour."""
    return f"what shape is {colour}?"


def _attribute(pick: int) -> tuple[str, str]:
    """Template (colour or shape) and answer of a question for one attribute, from the pick."""
    template = ("colour", "shape")[pick % 2]
    choices = COLOURS if template == "colour" else SHAPES
    return template, choices[pick // 2 % len(choices)]


def build_objects(rng: Random, level: int, pick: int) -> Scene:
    """A few shapes, all of different shape and colour; one is asked about."""
    template, answer = _attribute(pick)
    number = {1: 2, 2: rng.randint(3, 4), 3: 5}[level]
    colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
    if template == "colour":
        colour = answer
    else:
        shape = answer
    shapes = [shape, *others(rng, SHAPES, number - 1, shape)]
    colours = [colour, *others(rng, COLOURS, number - 1, colour)]
    slots = rng.sample(_CELLS if level == 3 else _QUADRANTS, number)
    sizes = [rng.choice(("large", "small")) if level == 2 else {1: "large", 3: "small"}[level] for _ in slots]
    items = [place(rng, level, *parts) for parts in zip(shapes, colours, sizes, slots, strict=True)]
    prompt = colour_question(shape) if template == "colour" else shape_question(colour)
    choices = COLOURS if template == "colour" else SHAPES
    on = background(rng, level)
    return Scene("objects", level, on, tuple(sorted(items)), prompt, answer, template, len(choices), choices=choices)


def build_relations(rng: Random, level: int, pick: int) -> Scene:
    """Where one thing is from another, or what is on one side of a thing."""
    template = ("where", "what")[pick % 2]
    pick //= 2
    build = _relations_in_quadrants if level == 1 else _relations_in_cells
    items, target, anchor, direction = build(rng, level, template, pick)
    name = anchor.shape if level == 1 else f"{anchor.colour} {anchor.shape}"
    if template == "where":
        subject = target.shape if level == 1 else f"{target.colour} {target.shape}"
        prompt, answer, choices = f"where is the {subject} from the {name}?", direction, tuple(DIRECTIONS)
    else:
        side = f"{direction} of" if direction in ("left", "right") else direction
        prompt, answer = f"what is {side} the {name}?", target.shape
        choices = tuple(shape for shape in SHAPES if shape != anchor.shape)
    on = background(rng, level)
    return Scene("relations", level, on, tuple(sorted(items)), prompt, answer, template, len(choices), choices=choices)


def _relations_in_quadrants(rng: Random, level: int, template: str, pick: int) -> tuple[list[Item], Item, Item, str]:
    """Level 1: two large neighbours; asked "what", a third one stands at the anchor's other side."""
    names = tuple(DIRECTIONS)
    direction = names[pick % 4] if template == "where" else rng.choice(names)
    shape = SHAPES[pick % 6] if template == "what" else rng.choice(SHAPES)
    dx, dy = DIRECTIONS[direction]
    free = rng.choice((16, 48))  # the coordinate that the direction leaves open
    x, y = (32 - 16 * dx, free) if dx else (free, 32 - 16 * dy)
    target_at = (64 - x, y) if dx else (x, 64 - y)
    shapes = [shape, *others(rng, SHAPES, 2, shape)]
    colours = rng.sample(COLOURS, 3)
    centres = [target_at, (x, y), (x, 64 - y) if dx else (64 - x, y)]
    items = [
        place(rng, level, shapes[i], colours[i], "large", _QUADRANT_AT[centres[i]]) for i in range(3 if template == "what" else 2)
    ]
    return items, items[0], items[1], direction


def _relations_in_cells(rng: Random, level: int, template: str, pick: int) -> tuple[list[Item], Item, Item, str]:
    """Levels 2 and 3: small things, others about; at level 3 others share the shapes, so that colour must be bound.

    Asked "what", only the target is on the asked side of the anchor: the rest lies beyond the anchor.
    """
    names = tuple(DIRECTIONS)
    direction = names[pick % 4] if template == "where" else rng.choice(names)
    shape = SHAPES[pick % 6] if template == "what" else rng.choice(SHAPES)
    dx, dy = DIRECTIONS[direction]
    # Along the direction the target lies at `near`, the anchor next to it or further on, the rest beyond for "what".
    line = [0, 1, 2, 3] if dx + dy < 0 else [3, 2, 1, 0]
    across = rng.randrange(4)
    gap = 1 if template == "what" else rng.randint(1, 3)
    start = rng.randrange(4 - gap) if template == "where" else 0

    def cell(along: int, side: int) -> str:
        return CELL_AT[(line[along], side) if dx else (side, line[along])]

    target_slot, anchor_slot = cell(start, across), cell(start + gap, across)
    rest = [cell(along, side) for along in range(2 if template == "what" else 0, 4) for side in range(4)]
    rest = [slot for slot in rest if slot not in (target_slot, anchor_slot)]
    number = 2 if level == 2 else 4
    anchor_shape = other(rng, SHAPES, shape)
    colours = rng.sample(COLOURS, number + 2)
    taken = (shape, anchor_shape)
    more = others(rng, SHAPES, number, *taken) if level == 2 else [rng.choice(taken), *others(rng, SHAPES, 3, *taken)]
    slots = [target_slot, anchor_slot, *rng.sample(rest, number)]
    shapes = [shape, anchor_shape, *more]
    items = [place(rng, level, shapes[i], colours[i], "small", slots[i]) for i in range(number + 2)]
    return items, items[0], items[1], direction


def build_pairs(rng: Random, level: int, pick: int) -> Scene:
    """Two images that differ in one attribute of one thing; the question offers both values."""
    template = ("colour", "shape", "size")[pick % (2 if level == 1 else 3)]
    number = {1: 2, 2: 3, 3: 6}[level]
    colours = rng.sample(COLOURS, number + 1)
    if level == 3:
        shape, new_shape = rng.sample(SHAPES, 2)
        rest = [s for s in SHAPES if s not in (shape, new_shape)]
        shapes = [shape, *(rng.choice(rest) for _ in range(number - 1)), new_shape]
        slots, sizes = rng.sample(_CELLS, number), ("small", "tiny")
    else:
        shapes = rng.sample(SHAPES, number + 1)
        slots, sizes = rng.sample(_QUADRANTS, number), ("large", "small")
    items = [place(rng, level, shapes[i], colours[i], sizes[0], slots[i]) for i in range(number)]
    mine = items[0]
    if template == "colour":
        values = (mine.colour, colours[-1])
        if level > 1:  # something else has the other colour: naming a colour that is there does not suffice
            items[1] = items[1]._replace(colour=colours[-1])
        changed, subject = mine._replace(colour=colours[-1]), f"the {mine.shape}"
    elif template == "shape":
        values = (mine.shape, shapes[-1])
        if level > 1:
            items[1] = items[1]._replace(shape=shapes[-1])
        changed, subject = mine._replace(shape=shapes[-1]), f"the {mine.colour} one"
    else:
        values = sizes
        changed, subject = place(None, level, mine.shape, mine.colour, sizes[1], mine.slot), f"the {mine.shape}"
        changed = changed._replace(x=mine.x, y=mine.y)
    first, second = values if pick // 6 % 2 else values[::-1]
    prompt = f"is {subject} {first} or {second}?"
    on = background(rng, level)
    one = tuple(sorted(items))
    two = tuple(sorted([changed, *items[1:]]))
    if pick // 12 % 2:
        one, two, values = two, one, values[::-1]
    twin = Scene("pairs", level, on, two, prompt, values[1], template, 2, choices=values)
    return Scene("pairs", level, on, one, prompt, values[0], template, 2, twin, values)


def build_search(rng: Random, level: int, pick: int) -> Scene:
    """One thing that stands out among distractors; its colour or its shape is asked. At level 3 it is tiny."""
    template, answer = _attribute(pick)
    colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
    if template == "colour":
        colour = answer
    else:
        shape = answer
    kinds = {1: 1, 2: 2, 3: 3}[level]
    number = {1: rng.randint(3, 5), 2: rng.randint(5, 7), 3: rng.randint(8, 10)}[level]
    # Only what the question names must be unique; from level 2 on, distractors may share the answer.
    avoid_colour = () if template == "colour" and level > 1 else (colour,)
    avoid_shape = () if template == "shape" and level > 1 else (shape,)
    distractors = list(zip(others(rng, SHAPES, kinds, *avoid_shape), others(rng, COLOURS, kinds, *avoid_colour), strict=True))
    if (shape, colour) in distractors:
        return build_search(rng, level, pick)
    slots = rng.sample(_CELLS, number + 1)
    items = [place(rng, level, shape, colour, "tiny" if level == 3 else "small", slots[0])]
    for i, slot in enumerate(slots[1:]):
        items.append(place(rng, level, *distractors[i % kinds], "small", slot))
    prompt = colour_question(shape) if template == "colour" else shape_question(colour)
    choices = COLOURS if template == "colour" else SHAPES
    on = background(rng, level)
    return Scene("search", level, on, tuple(sorted(items)), prompt, answer, template, len(choices), choices=choices)


def build_count(rng: Random, level: int, pick: int) -> Scene:
    """Several like things, from level 2 on among others; at level 3 only those of one colour count."""
    most = {1: 4, 2: 6, 3: 8}[level]
    number = pick % most + 1
    shape, colour = rng.choice(SHAPES), rng.choice(COLOURS)
    things = [(shape, colour)] * number
    if level == 2:
        things += [(other(rng, SHAPES, shape), other(rng, COLOURS, colour))] * rng.randint(1, 3)
    if level == 3:
        things += [(shape, other(rng, COLOURS, colour))] * rng.randint(1, 3)
        things += [(other(rng, SHAPES, shape), colour)] * rng.randint(1, 3)
    slots = rng.sample(_CELLS, len(things))
    items = [place(rng, level, *thing, "small", slot) for thing, slot in zip(things, slots, strict=True)]
    prompt = count_question(PLURALS[shape] if level < 3 else f"{colour} {PLURALS[shape]}")
    choices = tuple(str(one) for one in range(1, most + 1))
    on = background(rng, level)
    return Scene("count", level, on, tuple(sorted(items)), prompt, str(number), "number", most, choices=choices)


def count_question(things: str) -> str:
    """Asks for the number of some things, named in the plural."""
    return f"how many {things}?"
