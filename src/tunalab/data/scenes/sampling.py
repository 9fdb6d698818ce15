"""The scenes corpus: its settings, and scenes as a pure function of (split, seed, index)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import isfinite
from random import Random

from tunalab.data.scenes.graph import PLACEMENTS, Scene, belongs, check_split, displaced
from tunalab.data.scenes.shapes import build_count, build_objects, build_pairs, build_relations, build_search
from tunalab.data.scenes.symbols import build_charts, build_ocr, build_pattern
from tunalab.data.scenes.vocabulary import LEVELS, SCENE_KINDS
from tunalab.errors import UserError


def check_image_size(image_size: int) -> None:
    """Raises UserError unless the size is a positive multiple of 16."""
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 16 or image_size % 16:
        raise UserError(f"data.image_size={image_size!r}: scenes are drawn at multiples of 16 (choices: 16, 32, 48, ...)")


# Weights of the levels in scenes that no run's settings are for, such as the images that components are pretrained on.
EXAMPLE_LEVELS = (0.6, 0.3, 0.1)


@dataclass(frozen=True)
class SceneSettings:
    """What a user chooses about the corpus; the defaults stand with the run's settings (config.DataConfig).

    image_size: side in pixels, a multiple of 16. levels: weight of levels 1, 2, 3 in the stream. questions_per_image:
    question-answer turns of a vqa document. seed: of the stream, not of the splits. placement: "grid", or "free" (graph.displaced).

    Raises:
        UserError: a value out of range.
    """

    image_size: int
    levels: tuple[float, float, float]
    questions_per_image: int
    seed: int
    placement: str

    def __post_init__(self) -> None:
        check_image_size(self.image_size)
        weights = self.levels
        if len(weights) != 3 or not all(isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
            raise UserError(f"scenes: levels is {weights!r}; it must be three weights >= 0, not all 0")
        if not isinstance(self.questions_per_image, int) or not 1 <= self.questions_per_image <= 8:
            raise UserError(f"scenes: questions_per_image is {self.questions_per_image!r}; it must be 1 to 8")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise UserError(f"scenes: seed is {self.seed!r}; it must be an integer >= 0")
        if self.placement not in PLACEMENTS:
            raise UserError(f"scenes: placement is {self.placement!r}; choose from {', '.join(PLACEMENTS)}")


_TRIES = 20_000
_BUILDERS: dict[str, Callable[[Random, int, int], Scene]] = {
    "objects": build_objects,
    "relations": build_relations,
    "charts": build_charts,
    "ocr": build_ocr,
    "pairs": build_pairs,
    "search": build_search,
    "count": build_count,
    "pattern": build_pattern,
}


def stream(*key: object) -> Random:
    """A generator that depends on the key alone, on every machine and in every process."""
    return Random(int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little"))


def draw_level(rng: Random, weights: tuple[float, float, float]) -> int:
    """A level with the given weights, which need not sum to one."""
    point = rng.random() * sum(weights)
    return 1 if point < weights[0] else 2 if point < weights[0] + weights[1] else 3


def draw_scene(rng: Random, split: str, kind: str, level: int, placement: str = "grid") -> Scene:
    """A scene of a kind and level that belongs to a split. Template and answer are fixed before the redrawing."""
    build = _BUILDERS[kind]
    pick = rng.getrandbits(40)
    for _ in range(_TRIES):
        scene = build(rng, level, pick)
        if placement == "free":
            one, *twin = displaced(rng, *filter(None, (scene, scene.twin)))
            scene = replace(one, twin=twin[0] if twin else None)
        if belongs(scene, split):
            return scene
    raise RuntimeError(f"scenes: no {kind} of level {level} for split {split} in {_TRIES} tries")


def scene(
    split: str,
    seed: int,
    index: int,
    kind: str | None = None,
    level: int | None = None,
    levels: tuple[float, float, float] = EXAMPLE_LEVELS,
) -> Scene:
    """The scene of an index. ``kind`` and ``level`` are drawn (levels by weight) where they are None.

    Raises:
        UserError: unknown split, kind or level.
    """
    check_split(split)
    if kind is not None and kind not in SCENE_KINDS:
        raise UserError(f"scenes: unknown scene kind {kind!r}; choose from {', '.join(SCENE_KINDS)}")
    if level is not None and level not in LEVELS:
        raise UserError(f"scenes: unknown level {level!r}; choose from 1, 2, 3")
    rng = stream("scene", split, seed, index, kind, level)
    return draw_scene(rng, split, kind or rng.choice(SCENE_KINDS), level or draw_level(rng, levels))
