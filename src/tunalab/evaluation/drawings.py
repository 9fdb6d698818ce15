"""Questions about drawings as benchmarks: a skill, and whether training shows such things and such a style.

evaluation.benchmarks.count_concepts: {name: tunalab.evaluation.drawings:Drawings, limit: 100,
                                       arguments: {folder: drawings, kind: count, part: concepts}}
"""

from tunalab.data.documents import Question
from tunalab.data.drawings import PARTS, benchmark, load_art, split_of
from tunalab.data.scenes import BENCHMARKS
from tunalab.data.scenes.vocabulary import LEVELS
from tunalab.errors import UserError
from tunalab.evaluation.benchmarks import QUESTION_SEED, benchmark_name
from tunalab.evaluation.measure import chance_of


class Drawings:
    """``kind``: one of the skills of the scenes. ``part``: seen (what training shows, on other layouts), concepts (things that
    training never shows; of ocr: words), styles (styles and fonts that it never shows). ``items``: groups of questions there are.

    Chance is that of the scenes, whose wordings these are.

    Raises UserError: an unknown kind, part or level, or the art cannot be read.
    """

    def __init__(self, image_size: int, folder: str, kind: str, part: str = "seen", level: int = 1, items: int = 200) -> None:
        for name, value, choices in (("kind", kind, tuple(BENCHMARKS)), ("part", part, PARTS), ("level", level, LEVELS)):
            if value not in choices:
                raise UserError(f"drawings: {name}={value} is not known (choices: {', '.join(map(str, choices))})")
        self._asked = (load_art(folder), kind, level, part, image_size, QUESTION_SEED, items)
        chance = chance_of(benchmark_name(kind, level), items, split_of(kind, part))
        assert chance is not None, "measured for every kind, level and split"
        self.chance = chance

    def questions(self) -> list[Question]:
        return benchmark(*self._asked)
