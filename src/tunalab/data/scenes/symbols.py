"""Builders of the scenes with a code to read: charts, words, patterns. See ``shapes`` for what a builder is."""

from random import Random

from tunalab.data.scenes.graph import Item, Scene, background, other, others, place
from tunalab.data.scenes.render import DOT, HEIGHT, WIDTH
from tunalab.data.scenes.vocabulary import CELL, CELL_AT, CELLS, COLOURS, EASY_LETTERS, INK, LETTERS, SHAPES, UNITS

TALLEST, SHORTEST = "which bar is tallest?", "which bar is shortest?"
READ = "what word is this?"
VALUE_STEP = UNITS // 8


def value_question(colour: str) -> str:
    """Asks the value of the bar of a colour."""
    return f"how tall is the {colour} bar?"


def build_charts(rng: Random, level: int, pick: int) -> Scene:
    """Bars of different colours on the lower edge: the colour of the extreme one, or the value of a named one."""
    template = ("tallest", "value", "shortest")[pick % (2 if level == 1 else 3)]
    pick //= 6
    number, columns = {1: (rng.randint(2, 3), 4), 2: (4, 4), 3: (rng.randint(5, 6), 6)}[level]
    values = (2, 4, 6, 8) if level == 1 else tuple(range(1, 9))
    if template == "value":
        answer = str(values[pick % len(values)])
        heights = [int(answer), *(rng.choice(values) for _ in range(number - 1))]
        colours = rng.sample(COLOURS, number)
        prompt, choices = value_question(colours[0]), tuple(str(value) for value in values)
    else:
        answer = COLOURS[pick % len(COLOURS)]
        ordered = sorted(values, reverse=template == "tallest")
        extreme = rng.randrange(len(ordered) - 1)
        heights = [ordered[extreme], *(rng.choice(ordered[extreme + 1 :]) for _ in range(number - 1))]
        colours = [answer, *others(rng, COLOURS, number - 1, answer)]
        prompt, choices = (TALLEST if template == "tallest" else SHORTEST), COLOURS
    order = rng.sample(range(number), number)
    pitch = UNITS // columns
    shift = rng.randint(0, UNITS - number * pitch) if level == 3 else 0
    items = []
    for column, i in enumerate(order):
        half = heights[i] * VALUE_STEP // 2
        x = column * pitch + pitch // 2 + shift
        items.append(Item("bar", colours[i], x, UNITS - half, pitch // 2 - 1, half, "", "", str(column)))
    on = background(rng, level)
    return Scene("charts", level, on, tuple(sorted(items)), prompt, answer, template, len(choices), choices=choices)


def word_item(text: str, colour: str, left: int, top: int, pitch: int, slot: str, dot: int = DOT) -> Item:
    """A word whose first letter has its corner at ``left, top``; ``pitch`` is the distance between letters, ``dot`` the side of a
    dot of the font (both even)."""
    rx, ry = ((len(text) - 1) * pitch + WIDTH * dot) // 2, HEIGHT * dot // 2
    return Item("word", colour, left + rx, top + ry, rx, ry, text, "", slot)


def build_ocr(rng: Random, level: int, pick: int) -> Scene:
    """A word of random letters. Level 1: two large letters of few; level 2: small ones, displaced; level 3: long, among shapes."""
    letters = EASY_LETTERS if level == 1 else LETTERS
    number = 2 if level == 1 else level + 1 + pick % 2
    text = "".join(rng.choice(letters) for _ in range(number))
    colour = rng.choice(COLOURS)
    pitch, dot = {1: (3 * CELL // 2, 2 * DOT), 2: (14, DOT), 3: (12, DOT)}[level]
    if level == 1:
        column, row = rng.randrange(2), rng.randrange(3)
        left, top = column * CELL + DOT, row * CELL + DOT
    else:
        row = rng.randrange(4)
        step = DOT if level == 2 else 1  # level 2 stays on whole pixels of the 32-px image
        width = (number - 1) * pitch + WIDTH * DOT
        left = rng.randrange(0, UNITS - width + 1, step)
        column = min(left // CELL, 3)
        top = row * CELL + (rng.randrange(0, 3, step) if level == 2 else rng.randint(0, 2))
    items = [word_item(text, colour, left, top, pitch, CELL_AT[column, row], dot)]
    if level == 3:
        free = [slot for (_, cell_row), slot in CELL_AT.items() if abs(cell_row - row) > 1]
        for slot in rng.sample(free, 2):
            items.append(place(rng, level, rng.choice(SHAPES), other(rng, COLOURS, colour), "small", slot))
    prompt, options = READ, len(letters) ** number
    return Scene("ocr", level, background(rng, level), tuple(sorted(items)), prompt, text, "word", options)


def build_pattern(rng: Random, level: int, pick: int) -> Scene:
    """A rule with one missing cell. Level 1: a row that alternates; level 2: a table; level 3: a Latin square."""
    template = ("shape", "colour")[pick % 2]
    choices = SHAPES if template == "shape" else COLOURS
    answer = choices[pick // 2 % len(choices)]
    on = background(rng, level)
    if level == 1:
        cells = _alternation(rng, template, answer)
    elif level == 2:
        cells = _table(rng, template, answer)
    else:
        cells = _latin_square(rng, template, answer)
    items = []
    for (column, row), thing in cells.items():
        slot = CELL_AT[column, row]
        if thing is None:
            x, y = CELLS[slot][0] - 1, CELLS[slot][1] + 1  # on whole pixels of the 32-px image
            items.append(Item("mark", INK[on], x, y, WIDTH * DOT // 2, HEIGHT * DOT // 2, "?", "", slot))
        else:
            items.append(place(rng, level, *thing, "small", slot))
    prompt = f"what {template} is missing?"
    return Scene("pattern", level, on, tuple(sorted(items)), prompt, answer, template, len(choices), choices=choices)


_Cells = dict[tuple[int, int], tuple[str, str] | None]


def _alternation(rng: Random, template: str, answer: str) -> _Cells:
    row, missing = rng.randrange(4), rng.randrange(4)
    shape, colour = rng.choice(SHAPES), rng.choice(COLOURS)
    if template == "shape":
        two = [(answer, colour), (other(rng, SHAPES, answer), colour)]
    else:
        two = [(shape, answer), (shape, other(rng, COLOURS, answer))]
    return {(i, row): None if i == missing else two[(i - missing) % 2] for i in range(4)}


def _table(rng: Random, template: str, answer: str) -> _Cells:
    """Rows share a shape and columns a colour."""
    left, top = rng.randrange(2), rng.randrange(2)
    column, row = rng.randrange(3), rng.randrange(3)
    shapes, colours = rng.sample(SHAPES, 3), rng.sample(COLOURS, 3)
    if template == "shape":
        shapes = others(rng, SHAPES, 3, answer)
        shapes[row] = answer
    else:
        colours = others(rng, COLOURS, 3, answer)
        colours[column] = answer
    return {(left + i, top + j): None if (i, j) == (column, row) else (shapes[j], colours[i]) for j in range(3) for i in range(3)}


def _latin_square(rng: Random, template: str, answer: str) -> _Cells:
    """Each row and column holds each of three values once; the other attribute varies without meaning."""
    left, top = rng.randrange(2), rng.randrange(2)
    column, row = rng.randrange(3), rng.randrange(3)
    step = rng.choice((1, 2))
    values = [answer, *others(rng, SHAPES if template == "shape" else COLOURS, 2, answer)]
    noise = rng.sample(COLOURS if template == "shape" else SHAPES, 2)
    cells: _Cells = {}
    for j in range(3):
        for i in range(3):
            value = values[(i - column + step * (j - row)) % 3]
            drawn = (value, rng.choice(noise)) if template == "shape" else (rng.choice(noise), value)
            cells[left + i, top + j] = None if (i, j) == (column, row) else drawn
    return cells
