"""Which split a scene may appear in, decided by what it shows, so that no image is ever in two splits."""

from hashlib import blake2b

from tunalab.data.scenes.graph import Scene
from tunalab.data.scenes.vocabulary import HELD_BARS, HELD_COUNTS, HELD_PAIRS, SPLITS, held_word
from tunalab.errors import UserError

HASH_CLASSES = 8


def check_split(split: str) -> None:
    """Raises UserError for a name that is no split."""
    if split not in SPLITS:
        raise UserError(f"scenes: unknown split {split!r}; choose from {', '.join(SPLITS)}")


def hash_split(content: str) -> str:
    """The split of some content by its hash: one eighth test, one eighth components, the rest train."""
    value = int.from_bytes(blake2b(content.encode(), digest_size=4).digest(), "little") % HASH_CLASSES
    return {0: "test", 1: "components"}.get(value, "train")


def held_out(scene: Scene) -> bool:
    """Whether a scene shows a combination that only the split "composition" may show.

    It looks at the content alone, never at the kind: the same image may come from scenes of two kinds.
    """
    for item in scene.items:
        if (item.colour, item.shape) in HELD_PAIRS:
            return True
        if item.shape == "bar" and (item.colour, bar_value(item.ry)) in HELD_BARS:
            return True
        if item.shape == "word" and held_word(item.text):
            return True
    shapes = [item.shape for item in scene.items]
    return any((shape, shapes.count(shape)) in HELD_COUNTS for shape in set(shapes))


def bar_value(ry: int) -> int:
    """The value of a bar from its half height: one unit of value is an eighth of the image side."""
    return ry // 4


def belongs(scene: Scene, split: str) -> bool:
    """Whether a scene, and its twin if it has one, may appear in a split."""
    scenes = (scene,) if scene.twin is None else (scene, scene.twin)
    if split == "composition":
        return all(held_out(one) for one in scenes)
    return all(hash_split(one.content) == split and not held_out(one) for one in scenes)
