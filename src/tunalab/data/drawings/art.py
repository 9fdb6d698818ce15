"""The art of a folder that `tunalab drawings` made: drawings of things in several styles, and letters of several fonts.

It is one file of arrays (``art.npz``), so that every machine composes the same pictures. Shapes: S styles; N things; F fonts; G
characters; H, W rows and columns; C colour channels and opacity.
"""

import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tunalab.errors import UserError
from tunalab.files import sha256, whole_file

FILE = "art.npz"
# A shape of the scenes is a kind of thing; a bar of a colour is named by a kind too. The same order as there.
KINDS = ("animal", "food", "vehicle", "building", "plant", "clothes", "face", "tool")
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789?"
SIDE = 64  # pixels of a drawing as it is kept
CAPITAL = 48  # rows of a capital letter as it is kept; tails hang below
GLYPH = (64, 96)
FORMAT = 1


class Named(NamedTuple):
    """A thing (with its kind), a style or a font. ``held``: training never shows it."""

    name: str
    held: bool
    kind: str = ""


@dataclass(frozen=True, eq=False)
class Art:
    """``fingerprint``: of the file. ``widths_FG``: columns from a character to the next one."""

    things: tuple[Named, ...]
    styles: tuple[Named, ...]
    fonts: tuple[Named, ...]
    drawings_SNHWC: np.ndarray
    glyphs_FGHW: np.ndarray
    widths_FG: np.ndarray
    fingerprint: str

    @cached_property
    def numbers(self) -> dict[tuple[str, bool], list[int]]:
        """(kind, whether held out) -> numbers of the things; ("style", ...) and ("font", ...) too."""
        every = [*((kind, self.things) for kind in KINDS), ("style", self.styles), ("font", self.fonts)]
        return {
            (what, held): [number for number, one in enumerate(members) if one.held == held and one.kind in ("", what)]
            for what, members in every
            for held in (False, True)
        }

    def drawing(self, style: int, thing: int, side: int) -> np.ndarray:
        """(side, side, 4) uint8."""
        return _resized(self, style, thing, side)

    def word(self, font: int, text: str, height: float, width: float) -> np.ndarray:
        """Coverage (H, W, 1), of capitals as high as ``height`` pixels, or lower where ``width`` does not suffice."""
        return _written(self, font, text, height, width)


@lru_cache(maxsize=16384)
def _resized(art: Art, style: int, thing: int, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(art.drawings_SNHWC[style, thing]).resize((side, side), Image.Resampling.LANCZOS))


@lru_cache(maxsize=4096)
def _written(art: Art, font: int, text: str, height: float, width: float) -> np.ndarray:
    numbers = [CHARACTERS.index(one) for one in text]
    ends = np.cumsum([art.widths_FG[font, number] for number in numbers])
    line_HW = np.zeros((GLYPH[0], int(ends[-1]) + GLYPH[1]), dtype=np.uint8)
    for number, end in zip(numbers, ends, strict=True):
        left = int(end - art.widths_FG[font, number])
        window = line_HW[:, left : left + GLYPH[1]]
        np.maximum(window, art.glyphs_FGHW[font, number], out=window)
    line_HW = line_HW[:, : np.flatnonzero(line_HW.any(0))[-1] + 1]
    scale = min(height / CAPITAL, width / line_HW.shape[1])
    size = max(1, round(line_HW.shape[1] * scale)), max(1, round(GLYPH[0] * scale))
    return (np.asarray(Image.fromarray(line_HW).resize(size, Image.Resampling.LANCZOS)) / np.float32(255))[:, :, None]


@lru_cache(maxsize=2)
def load_art(folder: str) -> Art:
    """The art of a folder. Raises UserError, one line: there is none, or it is damaged."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise UserError(f"data.drawings={folder}: there is no {FILE}: make it with `tunalab drawings --to {folder}`")
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            drawings, glyphs, widths = (file[name] for name in ("drawings", "glyphs", "widths"))
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}, this version reads {FORMAT}")
        things, styles, fonts = (tuple(Named(*one) for one in about[key]) for key in ("things", "styles", "fonts"))
        _check(things, styles, fonts, [drawings, glyphs, widths])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): make it again with `tunalab drawings --to {folder}`") from error
    return Art(things, styles, fonts, drawings, glyphs, widths, sha256(path)[:32])


def _check(things: Sequence[Named], styles: Sequence[Named], fonts: Sequence[Named], arrays: Sequence[np.ndarray]) -> None:
    shapes = [(len(styles), len(things), SIDE, SIDE, 4), (len(fonts), len(CHARACTERS), *GLYPH), (len(fonts), len(CHARACTERS))]
    if [one.shape for one in arrays] != shapes:
        raise ValueError("its arrays have other shapes than its lists say")
    for what, members in (("styles", styles), ("fonts", fonts), *((kind, [t for t in things if t.kind == kind]) for kind in KINDS)):
        if {one.held for one in members} != {False, True}:
            raise ValueError(f"{what}: some must be shown in training and some held out")


def save_art(
    folder: Path, things: Sequence[Named], styles: Sequence[Named], fonts: Sequence[Named], arrays: dict[str, np.ndarray]
) -> None:
    """Write ``art.npz``. ``arrays``: drawings, glyphs, widths, as :class:`Art` holds them. Raises ValueError: they do not fit."""
    _check(things, styles, fonts, [arrays[name] for name in ("drawings", "glyphs", "widths")])
    about: dict[str, Any] = {"format": FORMAT, "things": things, "styles": styles, "fonts": fonts}
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / FILE) as path, path.open("wb") as file:
        save: Callable[..., None] = np.savez_compressed
        save(file, about=np.array(json.dumps(about)), **arrays)
