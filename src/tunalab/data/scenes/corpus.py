"""Documents of every kind made from scenes, edits among them, and the samples from which components are pretrained."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import numpy as np

from tunalab.data.documents import KINDS, Document, Image, Kind, Text
from tunalab.data.scenes.graph import Item, Scene, belongs, check_split, displaced, other, place
from tunalab.data.scenes.look import SHAPES as PLAIN
from tunalab.data.scenes.look import Look
from tunalab.data.scenes.sampling import EXAMPLE_LEVELS, SceneSettings, check_image_size, draw_level, draw_scene, stream
from tunalab.data.scenes.sentences import DESCRIBE, draw_text, further_questions, word_caption
from tunalab.data.scenes.vocabulary import CELLS, COLOURS, QUADRANTS, SCENE_KINDS, SHAPES
from tunalab.errors import UserError

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


def draw_edit(rng: Random, split: str, level: int, edit: str | None = None, placement: str = "grid") -> tuple[Scene, str, Scene]:
    """Source scene, instruction, target scene; both scenes belong to the split. ``edit``: one of EDITS, drawn where it is None."""
    edit = edit or rng.choice(EDITS)
    for _ in range(_TRIES):
        source = draw_scene(rng, split, "objects", level)
        if edit in ("add", "move") and level < 3 and len(source.items) == len(QUADRANTS):
            continue  # no free place
        instruction, items = edit_items(rng, edit, source)
        target = replace(source, items=tuple(sorted(items)))
        if placement == "free":
            source, target = displaced(rng, source, target)
        if belongs(source, split) and belongs(target, split):
            return source, instruction, target
    raise RuntimeError(f"scenes: no edit {edit} of level {level} for split {split} in {_TRIES} tries")


def turns(rng: Random, scene: Scene, count: int, look: Look = PLAIN) -> list[tuple[str, str]]:
    """Up to ``count`` (prompt, answer) turns about different facts of a scene, the main question always among them.

    Where few questions can be asked (words, patterns) the caption is the last turn: reading is learnt from it, and after it
    every question could be answered without looking.
    """
    further = further_questions(scene)
    facts = rng.sample(further, min(count - 1, len(further)))
    chosen = [(scene.prompt, scene.answer), *(rng.choice(fact) for fact in facts)]
    rng.shuffle(chosen)
    said = [(look.said(prompt, scene.kind), look.said(answer, scene.kind)) for prompt, answer in chosen]
    return [*said, (DESCRIBE, look.caption(scene))] if len(said) < count else said


class ScenesCorpus:
    """Documents of one kind, without end, a pure function of (split, settings, index).

    Raises:
        UserError: unknown kind or split.
    """

    family = "scenes"

    def __init__(self, kind: Kind, split: str, settings: SceneSettings) -> None:
        if kind not in KINDS:
            raise UserError(f"{self.family}: unknown document kind {kind!r}; choose from {', '.join(KINDS)}")
        check_split(split)
        self.name = f"{self.family}/{kind}"
        self.kind: Kind = kind
        self.split = split
        self.settings = settings

    @property
    def length(self) -> None:
        """None: a procedural corpus does not end."""
        return None

    def look(self, index: int) -> Look:
        """Of the document of an index."""
        return PLAIN

    def document(self, index: int) -> Document:
        """The document of an index (>= 0)."""
        look = self.look(index)
        rng = stream("document", self.kind, self.split, self.settings.seed, index)
        level = draw_level(rng, self.settings.levels)
        if self.kind == "text":
            return Document("text", (Text(look.said(draw_text(rng, self.split, level)), target=True),))
        if self.kind == "edit":
            source, instruction, target = draw_edit(rng, self.split, level, placement=self.settings.placement)
            before, after = self._image(look, source), self._image(look, target, generate=True)
            return Document("edit", (before, Text(look.told(instruction)), after))
        scene = draw_scene(rng, self.split, rng.choice(SCENE_KINDS), level, self.settings.placement)
        if self.kind == "caption":
            return Document("caption", (self._image(look, scene), Text(DESCRIBE), Text(look.caption(scene), target=True)))
        if self.kind == "text_to_image":
            return Document("text_to_image", (Text(look.caption(scene)), self._image(look, scene, generate=True)))
        segments: list[Text | Image] = [self._image(look, scene)]
        for prompt, answer in turns(rng, scene, self.settings.questions_per_image, look):
            segments += [Text(prompt), Text(answer, target=True)]
        return Document("vqa", tuple(segments))

    def _image(self, look: Look, scene: Scene, generate: bool = False) -> Image:
        return Image(look.image(scene, self.settings.image_size), generate)


def caption_examples(
    split: str,
    seed: int,
    count: int,
    image_size: int,
    kinds: Sequence[str] = SCENE_KINDS,
    short: float = 0.0,
    levels: tuple[float, float, float] = EXAMPLE_LEVELS,
    looks: Callable[[int], Look] = lambda index: PLAIN,
) -> tuple[np.ndarray, list[str]]:
    """``count`` images (count, image_size, image_size, 3) uint8 with their captions, the kinds of scenes in turn.

    ``short``: the share of the captions of words that name the word alone, and neither its colour nor its place. ``looks``: of the
    example of an index.
    """
    check_split(split)
    check_image_size(image_size)
    images_NHWC = np.empty((count, image_size, image_size, 3), dtype=np.uint8)
    captions = []
    for index in range(count):
        rng = stream("caption example", split, seed, index)
        scene = draw_scene(rng, split, kinds[index % len(kinds)], draw_level(rng, levels))
        look = looks(index)
        images_NHWC[index] = look.image(scene, image_size)
        captions.append(word_caption(scene) if scene.kind == "ocr" and rng.random() < short else look.caption(scene))
    return images_NHWC, captions


def text_sample(seed: int, count: int) -> list[str]:
    """``count`` texts of every sort that documents hold (split "components"), for training a tokenizer."""
    texts: list[str] = []
    index = 0
    while len(texts) < count:
        rng = stream("text sample", seed, index)
        level = 1 + index % 3
        scene = draw_scene(rng, "components", SCENE_KINDS[index % len(SCENE_KINDS)], level)
        texts += [DESCRIBE, PLAIN.caption(scene), draw_text(rng, "components", level)]
        texts += [text for turn in turns(rng, scene, 3) for text in turn]
        texts.append(draw_edit(rng, "components", level)[1])
        index += 1
    return texts[:count]
