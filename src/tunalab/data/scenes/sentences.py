"""Captions that determine the image up to jitter, questions read off the graph, and text without an image.

Large things stand in named quadrants and get a size word; small ones stand in cells named like a
chess board's (column a to d, row 1 to 4 from the top), and like things share one phrase: "on
white: red circle a1 c3, blue ring d2".
"""

from collections import Counter
from itertools import pairwise
from random import Random

from tunalab.data.scenes.graph import Item, Scene, bar_value, hash_split, other
from tunalab.data.scenes.shapes import colour_question, count_question, shape_question
from tunalab.data.scenes.symbols import SHORTEST, TALLEST, value_question
from tunalab.data.scenes.vocabulary import CELLS, COLOURS, DIRECTIONS, PLURALS, SHAPES, SLOTS

DESCRIBE = "describe the image"


def _phrase_head(item: Item) -> str:
    if item.shape == "word":
        return f"{item.colour} word {item.text}"
    if item.shape == "mark":
        return "gap"
    size = "" if item.size == "small" and item.slot in CELLS else item.size + " "
    return f"{size}{item.colour} {item.shape}"


def _reading_order(item: Item) -> tuple[int, int]:
    x, y = SLOTS[item.slot]
    return y, x


def caption(scene: Scene) -> str:
    """The caption of a scene, things in reading order."""
    if scene.kind == "charts":
        bars = sorted(scene.items, key=lambda item: item.x)
        return f"bars on {scene.background}: " + ", ".join(f"{bar.colour} {bar_value(bar.ry)}" for bar in bars)
    phrases: dict[str, str] = {}
    for item in sorted(scene.items, key=_reading_order):
        head = _phrase_head(item)
        phrases[head] = f"{phrases.get(head, head)} {item.slot}"
    return f"on {scene.background}: " + ", ".join(phrases.values())


def word_caption(scene: Scene) -> str:
    """Of a scene of kind "ocr": its word."""
    return next(f"word {item.text}" for item in scene.items if item.shape == "word")


Turn = tuple[str, str]  # prompt, answer


def further_questions(scene: Scene) -> list[list[Turn]]:
    """What can be asked about the things of a scene beside its main question: facts, each with the turns that ask for it.

    Turns of one fact give each other away ("what colour is the ring?", "what shape is red?"): whoever asks two of them in one
    document trains a model to read the first answer and not the image.
    """
    if scene.kind == "charts":
        facts = _about_bars(scene.items)
    elif scene.kind in ("ocr", "pattern"):
        facts = []
    else:
        facts = _about_shapes(scene.items)
        if scene.kind == "relations":
            facts += _about_places(scene)
        if scene.kind == "count":
            facts += _about_numbers(scene)
    return [fact for fact in facts if scene.prompt not in {prompt for prompt, _ in fact}]


def _about_bars(items: tuple[Item, ...]) -> list[list[Turn]]:
    facts = [[(value_question(bar.colour), str(bar_value(bar.ry)))] for bar in items]
    for prompt, extreme in ((TALLEST, max), (SHORTEST, min)):
        height = extreme(bar.ry for bar in items)
        colours = [bar.colour for bar in items if bar.ry == height]
        if len(colours) == 1:
            facts.append([(prompt, colours[0])])
    return facts


def _about_shapes(items: tuple[Item, ...]) -> list[list[Turn]]:
    """Colour of each shape, shape of each colour, as long as the answer is one."""
    things = {(item.shape, item.colour) for item in items}
    shapes, colours = Counter(shape for shape, _ in things), Counter(colour for _, colour in things)
    facts = []
    for shape, colour in sorted(things):
        fact = [(colour_question(shape), colour)] if shapes[shape] == 1 else []
        fact += [(shape_question(colour), shape)] if colours[colour] == 1 else []
        facts += [fact] if fact else []
    return facts


def _about_places(scene: Scene) -> list[list[Turn]]:
    """Where each thing is from each other thing of its row or column; both ways round are one fact."""
    facts: dict[frozenset[int], list[Turn]] = {}
    for first, one in enumerate(scene.items):
        for second, two in enumerate(scene.items):
            (x, y), (from_x, from_y) = SLOTS[one.slot], SLOTS[two.slot]
            if (x == from_x) == (y == from_y):
                continue
            step = ((x > from_x) - (x < from_x), (y > from_y) - (y < from_y))
            direction = next(name for name, towards in DIRECTIONS.items() if towards == step)
            names = [item.shape if scene.level == 1 else f"{item.colour} {item.shape}" for item in (one, two)]
            turn = (f"where is the {names[0]} from the {names[1]}?", direction)
            facts.setdefault(frozenset((first, second)), []).append(turn)
    return list(facts.values())


def _about_numbers(scene: Scene) -> list[list[Turn]]:
    if scene.level < 3:
        counted = Counter(PLURALS[item.shape] for item in scene.items)
    else:
        counted = Counter(f"{item.colour} {PLURALS[item.shape]}" for item in scene.items)
    return [[(count_question(things), str(number))] for things, number in sorted(counted.items())]


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
    expected = "test" if split == "composition" else split
    while hash_split(text := _sentence(rng, level)) != expected:
        pass
    return text
