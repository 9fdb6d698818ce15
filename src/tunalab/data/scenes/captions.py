"""Captions that determine the image, up to the jitter of levels 2 and 3.

Large things stand in named quadrants and get a size word; small ones stand in cells named like a chess board's (column
a to d, row 1 to 4 from the top), and like things share one phrase: "on white: red circle a1 c3, blue ring d2".
"""

from tunalab.data.scenes.graph import Item, Scene
from tunalab.data.scenes.splits import bar_value
from tunalab.data.scenes.vocabulary import CELLS, SLOTS

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
