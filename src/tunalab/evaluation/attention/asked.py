"""Questions that name one thing of a scene, with the visual tokens on which that thing lies.

Shapes: H W image pixels; T visual tokens, row-major.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tunalab.data.scenes import Item, Scene, masks, render
from tunalab.data.scenes.benchmarks import benchmark_scenes
from tunalab.data.scenes.settings import check_image_size
from tunalab.data.scenes.vocabulary import COLOURS, SHAPES
from tunalab.data.tokenizer import Tokenizer
from tunalab.evaluation.benchmarks import QUESTION_SEED, SPLIT, benchmark_name
from tunalab.frontends.contract import TargetSpace
from tunalab.inference.attention_maps import cut_prompt, tokens_through
from tunalab.inference.prompts import Prompt

# The kinds that ask about one thing. Others ask about several (count), about what is not there (pattern), or name nothing (ocr).
KINDS = ("relations", "charts", "pairs", "search")
ROWS = ("first token", "word", "last token")  # of a question, at which attention is looked at
_SCENES = {"charts": 4}  # drawn for every question that is kept: of the charts, a third names a bar
_NAME = re.compile(rf"\b(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)}|bar)\b|\b({'|'.join(COLOURS)})\b")


@dataclass(frozen=True, eq=False)
class Asked:
    """``word``: the last of those that name the thing. ``thing_HW``: its visible pixels.

    ``cover_T``: the share of every token's area that the thing covers; ``others_T``: the same of every other thing of its size.
    """

    benchmark: str
    image_HWC: np.ndarray
    question: str
    word: str
    thing_HW: np.ndarray
    cover_T: np.ndarray
    others_T: list[np.ndarray]

    @property
    def area(self) -> float:
        """The thing's share of the image: what attention that prefers nothing gives it."""
        return float(self.cover_T.mean())

    @property
    def on_T(self) -> np.ndarray:
        """Tokens that lie on the thing: it covers at least half as much of them as of the one that it covers most."""
        return np.asarray(self.cover_T >= self.cover_T.max() / 2)


@lru_cache(maxsize=4)
def asked_things(levels: tuple[int, ...], count: int, image_size: int, token_pixels: int) -> tuple[Asked, ...]:
    """``count`` questions of every kind and level, the same for every model of one image and token size; of pairs one of the two
    images, as they are nearly the same.

    Raises UserError: unknown level, wrong image size, or not so many different scenes.
    """
    check_image_size(image_size)
    found = []
    for level in levels:
        for kind in KINDS:
            scenes = benchmark_scenes(kind, level, SPLIT, QUESTION_SEED, _SCENES.get(kind, 1) * count)
            named = ((scene, named_thing(scene)) for scene in scenes)
            kept = [(scene, name) for scene, name in named if name is not None][:count]
            found += [_asked(benchmark_name(kind, level), scene, *name, image_size, token_pixels) for scene, name in kept]
    return tuple(found)


def named_thing(scene: Scene) -> tuple[int, str] | None:
    """The thing that the prompt names first, by its number, and the last word of its name; None where no or several things are
    called so.
    """
    found = _NAME.search(scene.prompt)
    if found is None:
        return None
    colour, shape = found[1] or found[3], found[2]
    called = [n for n, item in enumerate(scene.items) if shape in (None, item.shape) and colour in (None, item.colour)]
    return (called[0], found[0].split()[-1]) if len(called) == 1 else None


def _asked(benchmark: str, scene: Scene, thing: int, word: str, image_size: int, token_pixels: int) -> Asked:
    masks_NHW = masks(scene, image_size)
    cover_NT = [cover(mask_HW, token_pixels) for mask_HW in masks_NHW]

    def size(item: Item) -> tuple[int, int]:
        return item.rx, item.ry

    like = [n for n, item in enumerate(scene.items) if n != thing and size(item) == size(scene.items[thing]) and masks_NHW[n].any()]
    image_HWC = render(scene, image_size)
    return Asked(benchmark, image_HWC, scene.prompt, word, masks_NHW[thing], cover_NT[thing], [cover_NT[n] for n in like])


def row_prompt(tokenizer: Tokenizer, space: TargetSpace, one: Asked, row: str) -> Prompt:
    """The prompt of a question up to one of ``ROWS``."""
    tokens = {
        "first token": 1,
        "word": tokens_through(tokenizer, one.question, one.word),
        "last token": len(tokenizer.encode(one.question)),
    }
    return cut_prompt(tokenizer, space, one.image_HWC, one.question, tokens[row])


def cover(mask_HW: np.ndarray, token_pixels: int) -> np.ndarray:
    """The share of every visual token's square that a mask covers (T)."""
    H, W = mask_HW.shape
    cut = mask_HW.reshape(H // token_pixels, token_pixels, W // token_pixels, token_pixels)
    return np.asarray(cut.mean(axis=(1, 3)).ravel())
