"""The words of the scenes corpus: what may appear in an image and in its text, and which combinations are held out.

Lengths are integers in 1/64 of the image side (``UNITS``): half a pixel at 32 px. Integers keep two different scenes
from differing by less than the renderer shows, which the disjointness of the splits rests on.
"""

import zlib

UNITS = 64
CELL = UNITS // 4  # one 8-px patch at 32 px: level 1 aligns everything to this grid

SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
BACKGROUNDS = ("white", "black", "grey", "navy")
RGB: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (30, 160, 50),
    "blue": (50, 95, 250),
    "yellow": (245, 215, 25),
    "purple": (150, 45, 190),
    "orange": (245, 125, 15),
    "cyan": (45, 205, 220),
    "pink": (250, 140, 200),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
    "grey": (170, 170, 170),
    "navy": (18, 22, 75),
}
INK = {"white": "black", "black": "white", "grey": "black", "navy": "white"}  # of the mark in a missing cell

RADIUS = {"large": 14, "small": 7, "tiny": 5}  # large fills a quarter of the image, small one cell
QUADRANTS = {  # slot name -> centre, for large things
    "top left": (16, 16),
    "top right": (48, 16),
    "bottom left": (16, 48),
    "bottom right": (48, 48),
}
CELLS = {f"{column}{row + 1}": (8 + 16 * i, 8 + 16 * row) for row in range(4) for i, column in enumerate("abcd")}
CELL_AT = {((x - 8) // 16, (y - 8) // 16): slot for slot, (x, y) in CELLS.items()}  # (column, row) -> slot name
SLOTS = QUADRANTS | CELLS
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
EASY_LETTERS = "EHLOTX"  # of level 1: few, and unlike each other

# Raised whenever the same (split, seed, index) begins to give another document or image: components trained before are others.
CORPUS_VERSION = 2

LEVELS = (1, 2, 3)
SPLITS = ("train", "components", "test", "composition")
SCENE_KINDS = ("objects", "relations", "charts", "ocr", "pairs", "search", "count", "pattern")
BENCHMARKS: dict[str, str] = {
    "relations": "GQA",
    "charts": "ChartQA",
    "ocr": "OCRBench",
    "pairs": "MMVP",
    "search": "V*",
    "count": "CountBench",
    "pattern": "VisuLogic",
}

# Held out: seen only in the split "composition". Every colour, shape, value and letter occurs in training, these
# combinations never do.
HELD_PAIRS = frozenset({("red", "ring"), ("green", "cross"), ("blue", "triangle"), ("yellow", "diamond")})
HELD_BARS = frozenset({("red", 4), ("purple", 2), ("cyan", 6), ("green", 8), ("orange", 3), ("pink", 5)})
# Counts start at four: the tables of "pattern" show a shape at most three times, so none of their answers is given away.
HELD_COUNTS = frozenset({("circle", 4), ("square", 5), ("triangle", 6), ("diamond", 7)})


def held_word(word: str) -> bool:
    """Whether a word belongs to the sixteenth of all words that is held out."""
    return zlib.crc32(word.encode()) % 16 == 0
