"""Which drawings, style and letters a scene is shown with, and what it is called then.

A shape stands for a kind of thing (:data:`~tunalab.data.drawings.art.KINDS`): a red circle is a red card with an animal on it. In
charts a colour stands for a kind, which a card below each bar shows. The words of the graph are replaced one for one, so chance and
balance of the questions are those of the scenes, and so is the split by layout.
"""

import re
from dataclasses import dataclass, replace
from math import floor
from random import Random

import numpy as np

from tunalab.data.drawings.art import KINDS, Art
from tunalab.data.scenes.graph import Scene, bar_value
from tunalab.data.scenes.look import Look
from tunalab.data.scenes.render import cached_coverage, clip
from tunalab.data.scenes.sampling import stream
from tunalab.data.scenes.sentences import caption
from tunalab.data.scenes.vocabulary import COLOURS, EASY_LETTERS, INK, LETTERS, PLURALS, RGB, SHAPES, UNITS
from tunalab.errors import UserError

PARTS = ("seen", "concepts", "styles")  # what training shows; things that it never shows; styles and fonts that it never shows

_KIND_OF = dict(zip(SHAPES, KINDS[: len(SHAPES)], strict=True))  # the last kinds are of bars alone
_BAR_KIND = dict(zip(COLOURS, KINDS, strict=True))
_CARD = {shape: f"{kind} card" for shape, kind in _KIND_OF.items()}
_CARD |= {PLURALS[shape]: f"{kind} cards" for shape, kind in _KIND_OF.items()} | {"shape": "kind", "shapes": "cards"}
_BARE = {**_KIND_OF, "one": "card"}
_WORD = re.compile(r"[a-z]+")
_OR = re.compile(rf"one ({'|'.join(SHAPES)}) or")  # "is the red one circle or ring?"
_NEAR = 8  # words that the options of "ocr" are

# Of a chart, in units: where bars begin at the left and stand, a step of value, the middle of the cards below.
_LEFT, _FLOOR, _STEP, _CARDS = 9, 48, 5.5, 56
_RGB = {name: np.array(rgb, dtype=np.float32) for name, rgb in RGB.items()}


def _worded(text: str, words: dict[str, str]) -> str:
    return _WORD.sub(lambda found: words.get(found[0], found[0]), text)


@dataclass(frozen=True, eq=False)
class Cast(Look):
    """``things``: the number of one thing of each kind. ``colour``: of all bars of a chart."""

    art: Art
    things: tuple[int, ...]
    style: int
    font: int
    colour: str

    @staticmethod
    def drawn(art: Art, rng: Random, part: str = "seen") -> "Cast":
        """Raises UserError: an unknown part."""
        if part not in PARTS:
            raise UserError(f"drawings: unknown part {part!r} (choices: {', '.join(PARTS)})")
        things = tuple(rng.choice(art.numbers[kind, part == "concepts"]) for kind in KINDS)
        style, font = (rng.choice(art.numbers[what, part == "styles"]) for what in ("style", "font"))
        return Cast(art, things, style, font, rng.choice(COLOURS))

    def _thing(self, kind: str) -> int:
        return self.things[KINDS.index(kind)]

    def _name(self, kind: str) -> str:
        return self.art.things[self._thing(kind)].name

    def said(self, text: str, kind: str = "") -> str:
        if kind == "charts":
            return _worded(text, _BAR_KIND)
        return _worded(text, _BARE if text in SHAPES or _OR.search(text) else _CARD)

    def told(self, instruction: str) -> str:
        return _worded(instruction, {shape: self._name(kind) for shape, kind in _KIND_OF.items()})

    def choices(self, scene: Scene) -> tuple[str, ...]:
        if scene.kind != "ocr":
            return tuple(self.said(choice, scene.kind) for choice in scene.choices)
        letters = EASY_LETTERS if scene.level == 1 else LETTERS
        word, rng = scene.answer, stream("near words", scene.answer)
        near = {word[:i] + letter + word[i + 1 :] for i in range(len(word)) for letter in letters if letter != word[i]}
        return tuple(sorted([word, *rng.sample(sorted(near), _NEAR - 1)]))

    def caption(self, scene: Scene) -> str:
        style, font = self.art.styles[self.style].name, self.art.fonts[self.font].name
        if scene.kind == "charts":
            named = [bar._replace(colour=self._name(_BAR_KIND[bar.colour])) for bar in scene.items]
            looks = f"{style}, {font}, {self.colour} "
        else:
            named = [item if item.text else item._replace(shape=self._name(_KIND_OF[item.shape])) for item in scene.items]
            shown = {style: any(not item.text for item in scene.items), font: any(item.text for item in scene.items)}
            looks = "".join(f"{name}, " for name, is_there in shown.items() if is_there)
        return looks + caption(replace(scene, items=tuple(named)))

    def image(self, scene: Scene, image_size: int) -> np.ndarray:
        image_HWC = np.empty((image_size, image_size, 3), dtype=np.float32)
        image_HWC[:] = _RGB[scene.background]
        if scene.kind == "charts":
            self._chart(image_HWC, scene)
        for item in scene.items if scene.kind != "charts" else ():
            if item.text:
                self._write(image_HWC, item.text, item.colour, item.x, item.y, item.rx, item.ry)
            else:
                self._card(image_HWC, _KIND_OF[item.shape], item.colour, item.x, item.y, item.rx)
        image_HWC += 0.5
        return image_HWC.astype(np.uint8)

    def _chart(self, image_HWC: np.ndarray, scene: Scene) -> None:
        """Bars over cards; a line and a number at every second step of value."""
        ink = INK[scene.background]
        for value in range(0, 9, 2):
            y = _FLOOR - value * _STEP
            _fill(image_HWC, ink, (UNITS + _LEFT) / 2, y, (UNITS - _LEFT) / 2, 0.25)
            self._write(image_HWC, str(value), ink, _LEFT / 2, max(y, 3.5), _LEFT / 2 - 1, 3)
        shrunk = (UNITS - _LEFT) / UNITS
        for bar in scene.items:
            x, half = _LEFT + bar.x * shrunk, bar_value(bar.ry) * _STEP / 2
            _fill(image_HWC, self.colour, x, _FLOOR - half, (bar.rx - 1) * shrunk, half)
            self._card(image_HWC, _BAR_KIND[bar.colour], self.colour, x, _CARDS, min(7, bar.rx + 1) * shrunk)

    def _card(self, image_HWC: np.ndarray, kind: str, colour: str, x: float, y: float, radius: float) -> None:
        """A square of a colour with a drawing on it; its rim is what is seen of the colour at least."""
        _fill(image_HWC, colour, x, y, radius, radius)
        scale = len(image_HWC) / UNITS
        side = max(1, round(2 * radius * scale * 0.8))
        drawing_HWC = self.art.drawing(self.style, self._thing(kind), side)
        corner = floor((y * scale) - side / 2 + 0.5), floor((x * scale) - side / 2 + 0.5)
        _blend(image_HWC, *corner, drawing_HWC[:, :, 3:] / np.float32(255), drawing_HWC[:, :, :3])

    def _write(self, image_HWC: np.ndarray, text: str, colour: str, x: float, y: float, rx: float, ry: float) -> None:
        """Capitals in the middle of a box."""
        scale = len(image_HWC) / UNITS
        coverage = self.art.word(self.font, text, 2 * ry * scale, 2 * rx * scale)
        height = len(coverage) * 0.75  # of the capitals alone
        corner = floor(y * scale - height / 2 + 0.5), floor(x * scale - coverage.shape[1] / 2 + 0.5)
        _blend(image_HWC, *corner, coverage, _RGB[colour])


def _fill(image_HWC: np.ndarray, colour: str, x: float, y: float, rx: float, ry: float) -> None:
    """A rectangle around a centre, in units."""
    scale = len(image_HWC) / UNITS
    left, top = floor((x - rx) * scale) - 1, floor((y - ry) * scale) - 1
    _blend(image_HWC, top, left, cached_coverage("bar", rx, ry, x * scale - left, y * scale - top, scale), _RGB[colour])


def _blend(image_HWC: np.ndarray, top: int, left: int, coverage: np.ndarray, rgb: np.ndarray) -> None:
    """``rgb``: a colour, or one for each pixel of the window; what lies outside of the image is cut off."""
    rows, columns, alpha = clip(top, left, coverage, len(image_HWC))
    if rgb.ndim == 3:
        rgb = clip(top, left, rgb, len(image_HWC))[2]
    window = image_HWC[rows, columns]
    window += alpha * (rgb - window)
