"""DPG-Bench: its questions, models that answer them, and the share of questions answered yes.

The rule of https://github.com/TencentQQGYLab/ELLA (dpg_bench/compute_dpg_bench.py), twice.
``OFFICIAL`` is what that script prints:

- it leaves out the first row of the table; with it goes the first item, whose other questions depend on that row;
- its categories pool the answers themselves, before the rule of dependencies, and of the last cell only;
- only the answer "yes" is right.

``ALL_ITEMS`` is the same without these three: no row is left out, categories pool the answers of
all cells, and "Yes." is yes.

Shapes: H W C image pixels and channels.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tunalab.data.buckets import Buckets
from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.subject import Subject
from tunalab.frontends.loading import read_transformers
from tunalab.interop.lmms.asking import fit
from tunalab.interop.outcomes import Outcomes, described, item_measure, pooled_measure, read_bytes, stamps
from tunalab.terminal import progress_bar

COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
YES, NO = "yes", "no"
OFFICIAL, ALL_ITEMS = "official rule", "all items"
RULES = (OFFICIAL, ALL_ITEMS)


@dataclass(frozen=True)
class Question:
    """``parents``: numbers of questions of the same item. ``category``: entity, attribute, relation, global, other.

    ``level2``: the finer one that the official script calls so, such as "entity - whole".
    """

    number: int
    parents: tuple[int, ...]
    category: str
    text: str
    level2: str = ""


@dataclass(frozen=True)
class ItemScore:
    """``share``: questions answered yes under the rule of dependencies, mean over the cells.

    ``plain``: of every category and level-2 category, how many answers are right without that rule, and of how many.
    """

    share: float
    plain: dict[str, tuple[int, int]]


def read_questions(path: Path) -> dict[str, list[Question]]:
    """Item -> its questions, both in the order of the file (DPG-Bench's ``dpg_bench.csv``).

    Raises UserError, one line: the file cannot be read, lacks a column, or a row depends on a question that its item lacks.
    """
    try:
        text = read_bytes(path, "DPG-Bench's questions").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 (byte {error.start})") from error
    table = csv.DictReader(text.splitlines(keepends=True))
    missing = [column for column in COLUMNS if column not in (table.fieldnames or ())]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)} (columns: {', '.join(table.fieldnames or ()) or 'none'})")
    items: dict[str, list[Question]] = {}
    for row in table:
        where = f"{path} line {table.line_num}"
        items.setdefault(row["item_id"], []).append(_question(where, row))
    if not items:
        raise UserError(f"DPG-Bench's questions: {path} is empty")
    for item, questions in items.items():
        numbers = [question.number for question in questions]
        if len(set(numbers)) < len(numbers):
            raise UserError(f"{path}: item {item} has two questions of one proposition_id")
        lost = {parent for question in questions for parent in question.parents} - set(numbers)
        if lost:
            raise UserError(f"{path}: item {item} has no question {min(lost)} that others depend on")
    return items


def _question(where: str, row: Mapping[str, str | None]) -> Question:
    texts = {column: row[column] or "" for column in COLUMNS}
    try:
        number = int(texts["proposition_id"])
        parents = tuple(parent for word in texts["dependency"].split(",") if (parent := int(word)))  # 0: none
    except ValueError as error:
        raise UserError(f"{where}: proposition_id and dependency must be numbers ({error})") from error
    if not texts["item_id"] or not texts["question_natural_language"]:
        raise UserError(f"{where}: item_id or question_natural_language is empty")
    level2 = texts["tuple"].split("(")[0].strip()
    return Question(number, parents, level2.split("-")[0].strip(), texts["question_natural_language"], level2)


def cells(pixels_HWC: np.ndarray, count: int) -> list[np.ndarray]:
    """The samples of an image: itself, or the quarters of a grid, row by row. Raises ValueError: a side cannot be halved."""
    if count == 1:
        return [pixels_HWC]
    height, width = pixels_HWC.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"{width}x{height} is no 2x2 grid")
    rows = (pixels_HWC[: height // 2], pixels_HWC[height // 2 :])
    return [np.ascontiguousarray(half) for row in rows for half in (row[:, : width // 2], row[:, width // 2 :])]


def plain_answer(answer: str) -> str:
    """Its first word, as far as letters go: what says "Yes." or "yes, it is" says yes."""
    words = answer.casefold().split()
    return words[0].strip(".,;:!?\"'()") if words else ""


def unclear(answers: Sequence[Sequence[str]]) -> int:
    """How many are neither yes nor no."""
    return sum(plain_answer(answer) not in (YES, NO) for row in answers for answer in row)


def item_score(
    questions: Sequence[Question], answers: Sequence[Sequence[str]], rule: str = ALL_ITEMS, first: bool = False
) -> ItemScore | None:
    """``answers``: of every cell, one a question, in order. ``first``: whether it is the first item of the file.

    None: the official script loses the item.
    """
    official = rule == OFFICIAL
    right = [[(answer if official else plain_answer(answer)) == YES for answer in row] for row in answers]
    if official and first:
        questions, right = questions[1:], [row[1:] for row in right]
        if not questions or {parent for one in questions for parent in one.parents} - {one.number for one in questions}:
            return None
    shares = [_share(questions, row) for row in right]
    plain: dict[str, tuple[int, int]] = {}
    for row in right[-1:] if official else right:
        for question, yes in zip(questions, row, strict=True):
            for name in {question.category, question.level2}:
                counted, of = plain.get(name, (0, 0))
                plain[name] = counted + yes, of + 1
    return ItemScore(sum(shares) / len(shares), plain)


def _share(questions: Sequence[Question], right: Sequence[bool]) -> float:
    counted = counted_right(questions, right)
    return sum(counted) / len(counted)


def counted_right(questions: Sequence[Question], right: Sequence[bool]) -> list[bool]:
    """Under the rule of dependencies: no question counts whose parent does not."""
    counted = {question.number: yes for question, yes in zip(questions, right, strict=True)}
    for question in questions:  # in order: a parent that fell through its own parent takes its children along
        if not all(counted[parent] for parent in question.parents):
            counted[question.number] = False
    return list(counted.values())


BATCH = 16
LONGEST = 8  # tokens of an answer: yes or no


class TransformersVQA:
    """A model for visual question answering in a folder of transformers' form: ViLT (classes of answers), BLIP (generates).

    Raises UserError, one line: no such folder, another kind of model, weights that do not fit.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

        source, config, self.processor = described(folder, "VQA model", AutoProcessor)
        self.model: Any = read_transformers(AutoModelForVisualQuestionAnswering, source, config).to(device).eval()
        self.name = f"{config.model_type} of transformers ({folder.resolve().name}), not official"
        self.identity: Any = stamps(folder)

    @torch.no_grad()
    def answers(self, questions: Sequence[tuple[np.ndarray, str]]) -> list[str]:
        """To every (image (H, W, 3) uint8, question)."""
        given: list[str] = []
        for first in range(0, len(questions), BATCH):
            batch = questions[first : first + BATCH]
            images, texts = [Image.fromarray(image) for image, _ in batch], [text for _, text in batch]
            inputs = self.processor(images=images, text=texts, padding=True, truncation=True, return_tensors="pt")
            inputs = inputs.to(self.model.device)
            if self.model.can_generate():
                ids = self.model.generate(**inputs, max_new_tokens=LONGEST)
                given += self.processor.batch_decode(ids, skip_special_tokens=True)
            else:
                best = self.model(**inputs).logits.argmax(dim=-1).tolist()
                given += [self.model.config.id2label[number] for number in best]
        return given


class OwnVQA:
    """A model of ours: a baseline, as good a judge as it answers questions."""

    def __init__(self, subject: Subject, identity: dict[str, Any]) -> None:
        self.subject = subject
        self.buckets = Buckets.of(subject.config.data)
        self.name = f"tunalab {identity['name']}, not official"
        self.identity: Any = identity

    def answers(self, questions: Sequence[tuple[np.ndarray, str]]) -> list[str]:
        shown = {id(image): fit(Image.fromarray(image), self.buckets) for image, _ in questions}
        return self.subject.answers([(shown[id(image)], text) for image, text in questions], LONGEST)


VQA = TransformersVQA | OwnVQA  # ``name`` for notes; ``identity``, plain: what its answers depend on
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
            raise UserError(f"{paths[item]}: {error}: single samples need --cells 1") from error
        texts = [question.text for question in questions[item]]
        given = vqa.answers([(part, text) for part in parts for text in texts])
        return {"answers": [given[first : first + len(texts)] for first in range(0, len(given), len(texts))]}

    answers: dict[str, list[list[str]] | None] = {}
    for item, path in progress_bar(list(paths.items()), desc=BENCHMARK):
        question = [count, [question.text for question in questions[item]]]
        found = outcomes.of(path, question, lambda pixels, item=item: find(item, pixels))  # type: ignore[misc]
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
            if (name in score.plain if score is not None else any(name in (one.category, one.level2) for one in questions[item]))
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
