"""DPG-Bench's scores of a folder of images: the share of questions answered yes, under both rules of dpg.py."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.published_generation.dpg import OFFICIAL, RULES, ItemScore, Question, cells, item_score, unclear
from tunalab.evaluation.published_generation.outcomes import Outcomes
from tunalab.evaluation.published_generation.summary import item_measure, pooled_measure
from tunalab.evaluation.published_generation.vqa import VQA
from tunalab.terminal import progress_bar

BENCHMARK = "DPG-Bench"


def score_dpg(folder: Path, questions: Mapping[str, Sequence[Question]], count: int, vqa: VQA, outcomes: Outcomes) -> list[Measure]:
    """Of each rule ``overall``, over items, then a measure a category and level-2 category, over questions.

    The rules score the same answers. ``count``: samples in an image, 1 or 4. Raises UserError: images are missing, are no grids,
    or none can be read.
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

    answers: dict[str, list[list[str]] | None] = {}
    for item, path in progress_bar(list(paths.items()), desc=BENCHMARK):
        asked = [count, [question.text for question in questions[item]]]
        found = outcomes.of(path, asked, lambda pixels, item=item: find(item, pixels))  # type: ignore[misc]
        answers[item] = None if found is None else found["answers"]
    return [one for rule in RULES for one in dpg_measures(questions, answers, rule, f"{vqa.name}; {count} samples an item")]


def dpg_measures(
    questions: Mapping[str, Sequence[Question]], answers: Mapping[str, Sequence[Sequence[str]] | None], rule: str, note: str
) -> list[Measure]:
    """Under a rule, from the answers of every item, cell by cell (None: its image cannot be read).

    Nothing where the official script loses the only item that can be read. Raises UserError: no image can be read.
    """
    benchmark, first = f"{BENCHMARK}, {rule}", next(iter(questions))
    scores: dict[str, ItemScore | None] = {}
    for item, given in answers.items():
        score = None if given is None else item_score(questions[item], given, rule, item == first)
        if given is None or score is not None:
            scores[item] = score
    if len(scores) < len(answers) and not any(scores.values()):
        return []
    failures = sum(score is None for score in scores.values())
    odd = sum(unclear(given) for given in answers.values() if given is not None)
    how = f"{note}; {odd} answers neither yes nor no count as no"
    plain = f"{note}; answers of all samples without the rule of dependencies"
    if rule == OFFICIAL:
        how += "" if first in scores else f"; without the first item ({first}), which the official script loses"
        plain = f"{note}; answers of the last sample without the rule of dependencies, as in the official script"
    shares = [None if score is None else score.share for score in scores.values()]
    measures = [item_measure(benchmark, "overall", shares, failures, how)]
    every = [question for row in questions.values() for question in row]
    for name in dict.fromkeys([one.category for one in every] + sorted(one.level2 for one in every)):
        counts = [
            None if score is None else score.plain[name]
            for item, score in scores.items()
            if (name in score.plain if score is not None else _asks(questions[item], name))
        ]
        if any(counts):
            measures.append(pooled_measure(benchmark, name, counts, plain))
    return measures


def find_images(folder: Path, items: Iterable[str]) -> dict[str, Path]:
    """The image of every item. Raises UserError when some are missing."""
    paths = {item: folder / f"{item}.png" for item in items}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise UserError(f"{missing[0]} is missing: {folder} lacks {len(missing)} of {len(paths)} images")
    return paths


def _asks(questions: Sequence[Question], name: str) -> bool:
    return any(name in (one.category, one.level2) for one in questions)
