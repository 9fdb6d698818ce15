"""Art that the tests draw themselves: a colour for each thing, magenta for whatever training must never show."""

from pathlib import Path

import numpy as np
import pytest

from tunalab.data.drawings.art import CAPITAL, CHARACTERS, GLYPH, KINDS, SIDE, Art, Named, load_art, save_art

HELD = (255, 0, 255)  # no colour of the scenes has so little green and so much of both others


@pytest.fixture(scope="session")
def art_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three things of each kind, one of them held out; three styles and two fonts, one of each held out."""
    folder = tmp_path_factory.mktemp("art")
    things = [Named(f"{kind} {number}", number == 2, kind) for kind in KINDS for number in range(3)]
    styles = [Named("plain", False), Named("dark", False), Named("strange", True)]
    fonts = [Named("thin", False), Named("fat", True)]
    drawings = np.zeros((len(styles), len(things), SIDE, SIDE, 4), dtype=np.uint8)
    drawings[..., 3] = 255
    for s, style in enumerate(styles):
        for n, thing in enumerate(things):
            drawings[s, n, ..., :3] = HELD if thing.held or style.held else (10 * n, 255 - 10 * n, 60 * s)
    drawings[:, :, : SIDE // 4] = 0  # what is clear shows the card
    glyphs = np.zeros((len(fonts), len(CHARACTERS), *GLYPH), dtype=np.uint8)
    for f, font in enumerate(fonts):
        for g in range(len(CHARACTERS)):
            glyphs[f, g, :CAPITAL, 4 : 12 + 12 * font.held] = 255
            glyphs[f, g, g : g + 8, 4:30] = 255  # a stroke whose height tells the character
    widths = np.full((len(fonts), len(CHARACTERS)), 34, dtype=np.int32)
    save_art(folder, things, styles, fonts, {"drawings": drawings, "glyphs": glyphs, "widths": widths})
    return folder


@pytest.fixture(scope="session")
def art(art_folder: Path) -> Art:
    return load_art(str(art_folder))
