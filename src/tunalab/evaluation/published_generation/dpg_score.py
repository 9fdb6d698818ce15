"""DPG-Bench's score of a folder of images: the share of questions answered yes, under the rule of dpg.py."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.published_generation.dpg import GridScore, Question, cells, grid_score
from tunalab.evaluation.published_generation.outcomes import Outcomes
from tunalab.evaluation.published_generation.summary import item_measure
from tunalab.evaluation.published_generation.vqa import VQA
from tunalab.terminal import progress_bar

BENCHMARK = "DPG-Bench"


def score_dpg(folder: Path, questions: Mapping[str, Sequence[Question]], count: int, vqa: VQA, outcomes: Outcomes) -> list[Measure]:
    """``overall`` over items, then a measure a category of questions, these without the rule, as the official script has them.

    ``count``: samples in an image, 1 or 4. Raises UserError: images are missing, are no grids, or none can be read.
    """
    paths = find_images(folder, questions)

    def find(item: str, pixels_HWC: np.ndarray) -> dict[str, Any]:
        try:
            parts = cells(pixels_HWC, count)
        except ValueError as error:
            raise UserError(f"{paths[item]}: {error}: of single samples say --cells 1") from error
        texts = [question.text for question in questions[item]]
        given = vqa.answers([(part, text) for part in parts for text in texts])
        return {"answers": [given[first : first + len(texts)] for first in range(0, len(given), len(texts))]}

    scores: list[GridScore | None] = []
    for item, path in progress_bar(list(paths.items()), desc=BENCHMARK):
        asked = [count, [question.text for question in questions[item]]]
        found = outcomes.of(path, asked, lambda pixels, item=item: find(item, pixels))  # type: ignore[misc]
        scores.append(None if found is None else grid_score(questions[item], found["answers"]))
    failures, unclear = scores.count(None), sum(score.unclear for score in scores if score is not None)
    note = f"{vqa.name}; {count} samples an item; {unclear} answers neither yes nor no count as no"
    overall = item_measure(BENCHMARK, "overall", [None if score is None else score.share for score in scores], failures, note)
    measures = [overall]
    for category in dict.fromkeys(question.category for row in questions.values() for question in row):
        values = [
            None if score is None else score.plain[category]
            for item, score in zip(paths, scores, strict=True)
            if _has(questions[item], category)
        ]
        if any(value is not None for value in values):
            plain = f"{vqa.name}; answers of all samples without the rule of dependencies"
            measures.append(item_measure(BENCHMARK, category, values, values.count(None), plain))
    return measures


def find_images(folder: Path, items: Iterable[str]) -> dict[str, Path]:
    """The image of every item. Raises UserError when some are missing."""
    paths = {item: folder / f"{item}.png" for item in items}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise UserError(f"{missing[0]} is missing: {folder} lacks {len(missing)} of {len(paths)} images")
    return paths


def _has(questions: Sequence[Question], category: str) -> bool:
    return any(question.category == category for question in questions)
