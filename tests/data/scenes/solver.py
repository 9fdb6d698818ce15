"""An answerer that reads the scene graph and the prompt's words only: independent of how questions are made."""

from collections import Counter

from tunalab.data.scenes import Scene, caption
from tunalab.data.scenes.vocabulary import COLOURS, DIRECTIONS, PLURALS, SHAPES

SINGULAR = {plural: shape for shape, plural in PLURALS.items()}


def solve(scene: Scene, prompt: str) -> str:
    words = [SINGULAR.get(word, word) for word in prompt.strip("?").split()]
    items = scene.items

    def matching(named):
        return [i for i in items if all(word in (i.shape, i.colour, i.size) for word in named)]

    def only(named):
        (item,) = matching(named)
        return item

    attributes = {*SHAPES, *COLOURS}
    if prompt == "describe the image":
        return caption(scene)
    if prompt == "what word is this?":
        return only(["word"]).text
    if prompt.endswith("is missing?"):
        return _missing(scene, words[1])
    if prompt.startswith("which bar"):
        extreme = {"tallest": max, "shortest": min}[words[-1]](i.ry for i in items)
        (bar,) = [i for i in items if i.ry == extreme]
        return bar.colour
    if prompt.startswith("how tall"):
        return str(only([words[4]]).ry * 2 // 8)
    if prompt.startswith("how many"):
        return str(len(matching(words[2:])))
    if prompt.startswith("what colour"):
        (colour,) = {i.colour for i in matching([words[-1]])}
        return colour
    if prompt.startswith("what shape"):
        (shape,) = {i.shape for i in matching([words[-1]])}
        return shape
    if prompt.startswith("where"):
        middle = words.index("from")
        one, two = only(attributes.intersection(words[:middle])), only(attributes.intersection(words[middle:]))
        dx, dy = one.x - two.x, one.y - two.y
        if abs(dx) > abs(dy):
            return "right" if dx > 0 else "left"
        return "below" if dy > 0 else "above"
    if prompt.startswith("what is"):
        dx, dy = DIRECTIONS[words[2]]
        anchor = only(attributes.intersection(words[3:]))
        (there,) = [i for i in items if (i.x - anchor.x) * dx + (i.y - anchor.y) * dy > 6]
        return there.shape
    if prompt.startswith("is the"):
        first, second = words[-3], words[-1]
        item = only([words[2]])
        (true,) = {first, second} & {item.colour, item.shape, item.size}
        return true
    raise AssertionError(f"unknown prompt {prompt!r}")


def _missing(scene: Scene, attribute: str) -> str:
    """In a row of four: continue the alternation. In a square of nine: the value that keeps all rows alike."""
    (gap,) = [i for i in scene.items if i.shape == "mark"]
    places = {(i.slot[0], i.slot[1]): getattr(i, attribute) for i in scene.items if i is not gap}
    column, row = gap.slot
    if len(scene.items) == 4:
        near, far = (("b", "d") if column in "ac" else ("a", "c")), (("a", "c") if column in "ac" else ("b", "d"))
        assert len({places[c, row] for c in near}) == 1
        (value,) = {places[c, row] for c in far if c != column}
        return value
    if scene.level == 2:
        line = {v for (c, r), v in places.items() if (r == row if attribute == "shape" else c == column)}
        (value,) = line
        return value
    count = Counter(places.values())
    (value,) = [v for v in count if count[v] == 2]
    assert value not in {v for (c, r), v in places.items() if c == column or r == row}
    return value
