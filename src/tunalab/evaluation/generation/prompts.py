"""Prompts that each ask for one skill, in the six categories of GenEval (arXiv 2310.11513), and dense ones as in DPG-Bench.

A prompt is the caption of a held-out scene, in the form that text-to-image documents have: it always names shape, colour and place.
What isolates a skill is the scene behind it and what is scored of the image (verdicts.py, dense.py).
"""

from dataclasses import dataclass
from functools import lru_cache
from random import Random

from tunalab.data.scenes import Scene, caption
from tunalab.data.scenes.sampling import draw_scene, stream
from tunalab.errors import UserError

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
