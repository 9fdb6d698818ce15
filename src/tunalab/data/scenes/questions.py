"""Questions about a scene beyond its main one, all with answers read off the graph: the further turns of vqa documents."""

from collections import Counter

from tunalab.data.scenes.graph import Item, Scene
from tunalab.data.scenes.shapes import colour_question, count_question, shape_question
from tunalab.data.scenes.splits import bar_value
from tunalab.data.scenes.symbols import SHORTEST, TALLEST, value_question
from tunalab.data.scenes.vocabulary import DIRECTIONS, PLURALS, SLOTS

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
    asked = [[(value_question(bar.colour), str(bar_value(bar.ry)))] for bar in items]
    for prompt, extreme in ((TALLEST, max), (SHORTEST, min)):
        height = extreme(bar.ry for bar in items)
        colours = [bar.colour for bar in items if bar.ry == height]
        if len(colours) == 1:
            asked.append([(prompt, colours[0])])
    return asked


def _about_shapes(items: tuple[Item, ...]) -> list[list[Turn]]:
    """Colour of each shape, shape of each colour, as long as the answer is one."""
    things = {(item.shape, item.colour) for item in items}
    shapes, colours = Counter(shape for shape, _ in things), Counter(colour for _, colour in things)
    asked = []
    for shape, colour in sorted(things):
        fact = [(colour_question(shape), colour)] if shapes[shape] == 1 else []
        fact += [(shape_question(colour), shape)] if colours[colour] == 1 else []
        asked += [fact] if fact else []
    return asked


def _about_places(scene: Scene) -> list[list[Turn]]:
    """Where each thing is from each other thing of its row or column; both ways round are one fact."""
    asked: dict[frozenset[int], list[Turn]] = {}
    for first, one in enumerate(scene.items):
        for second, two in enumerate(scene.items):
            (x, y), (from_x, from_y) = SLOTS[one.slot], SLOTS[two.slot]
            if (x == from_x) == (y == from_y):
                continue
            step = ((x > from_x) - (x < from_x), (y > from_y) - (y < from_y))
            direction = next(name for name, towards in DIRECTIONS.items() if towards == step)
            names = [item.shape if scene.level == 1 else f"{item.colour} {item.shape}" for item in (one, two)]
            turn = (f"where is the {names[0]} from the {names[1]}?", direction)
            asked.setdefault(frozenset((first, second)), []).append(turn)
    return list(asked.values())


def _about_numbers(scene: Scene) -> list[list[Turn]]:
    if scene.level < 3:
        counted = Counter(PLURALS[item.shape] for item in scene.items)
    else:
        counted = Counter(f"{item.colour} {PLURALS[item.shape]}" for item in scene.items)
    return [[(count_question(things), str(number))] for things, number in sorted(counted.items())]
