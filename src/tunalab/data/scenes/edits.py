"""Edits: a scene, an instruction, and the scene after it. What the instruction does not name stays exactly as it was."""

from dataclasses import replace
from random import Random

from tunalab.data.scenes.graph import Item, Scene, other, place
from tunalab.data.scenes.sampling import draw_scene
from tunalab.data.scenes.splits import belongs
from tunalab.data.scenes.vocabulary import CELLS, COLOURS, QUADRANTS, SHAPES

EDITS = ("recolour", "remove", "add", "move", "resize")
_TRIES = 20_000


def edit_items(rng: Random, edit: str, scene: Scene) -> tuple[str, list[Item]]:
    """One instruction of the given type for an "objects" scene, and the items after it (unsorted)."""
    items = list(scene.items)
    chosen = rng.randrange(len(items))
    item = items[chosen]
    name = f"{item.colour} {item.shape}"
    slots = CELLS if item.slot in CELLS else QUADRANTS
    free = [slot for slot in slots if slot not in {one.slot for one in items}]
    colours = [one.colour for one in items]
    if edit == "remove":
        return f"remove the {name}", items[:chosen] + items[chosen + 1 :]
    if edit == "recolour":
        items[chosen] = item._replace(colour=other(rng, COLOURS, *colours))
        return f"make the {name} {items[chosen].colour}", items
    if edit == "resize":
        size = "tiny" if item.slot in CELLS else "small" if item.size == "large" else "large"
        items[chosen] = place(None, scene.level, item.shape, item.colour, size, item.slot)._replace(x=item.x, y=item.y)
        return f"make the {name} {size}", items
    slot = rng.choice(free)
    if edit == "move":
        items[chosen] = place(None, scene.level, item.shape, item.colour, item.size, slot)
        return f"move the {name} to {slot}", items
    shape, colour = other(rng, SHAPES, *(one.shape for one in items)), other(rng, COLOURS, *colours)
    items.append(place(None, scene.level, shape, colour, item.size, slot))
    size = "" if item.slot in CELLS else f"{item.size} "
    return f"add a {size}{colour} {shape} {slot}", items


def draw_edit(rng: Random, split: str, level: int, edit: str | None = None) -> tuple[Scene, str, Scene]:
    """Source scene, instruction, target scene; both scenes belong to the split. ``edit``: one of EDITS, drawn where it is None."""
    edit = edit or rng.choice(EDITS)
    for _ in range(_TRIES):
        source = draw_scene(rng, split, "objects", level)
        if edit in ("add", "move") and level < 3 and len(source.items) == len(QUADRANTS):
            continue  # no free place
        instruction, items = edit_items(rng, edit, source)
        target = replace(source, items=tuple(sorted(items)))
        if belongs(target, split):
            return source, instruction, target
    raise RuntimeError(f"scenes: no edit {edit} of level {level} for split {split} in {_TRIES} tries")
