"""DPG-Bench's questions and its rule: a question whose parent was answered no counts as no.

The rule of https://github.com/TencentQQGYLab/ELLA (dpg_bench/compute_dpg_bench.py), twice. ``OFFICIAL`` is what that script prints:

- it leaves out the first row of the table; with it goes the first item, whose other questions depend on that row;
- its categories pool the answers themselves, before the rule of dependencies, and of the last cell only;
- only the answer "yes" is right.

``ALL_ITEMS`` is the same without these three: no row is left out, categories pool the answers of all cells, and "Yes." is yes.

Shapes: H W C image pixels and channels.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunalab.errors import UserError
from tunalab.evaluation.published_generation.lines import read_bytes

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


def _share(questions: Sequence[Question], said_yes: Sequence[bool]) -> float:
    counted = {question.number: yes for question, yes in zip(questions, said_yes, strict=True)}
    for question in questions:  # in order: a parent that fell through its own parent takes its children along
        if not all(counted[parent] for parent in question.parents):
            counted[question.number] = False
    return sum(counted.values()) / len(counted)
