"""What guessing without the image reaches on each benchmark, and the file of it that evaluations and tables read.

Guesses are made of the text of a question alone: uniform among the answers that a question leaves open, the commonest training
answer to its template, and a multinomial logistic regression on its words, learned on training and on the split itself. A pair
counts where both of its questions are right.
"""

import csv
import io
import math
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from tunalab.data.easy_vqa import SPLITS as EASY_VQA_SPLITS
from tunalab.data.easy_vqa import worded_questions
from tunalab.data.scenes import BENCHMARKS, Scene, benchmark_scenes
from tunalab.data.scenes import scene as draw_scene
from tunalab.data.scenes.vocabulary import LEVELS
from tunalab.errors import UserError
from tunalab.evaluation.benchmarks import EASY_VQA, SPLIT, benchmark_name
from tunalab.evaluation.measure import FILE, GUESSES, USUAL
from tunalab.evaluation.parts import SCENE_SPLITS
from tunalab.files import write_atomically
from tunalab.terminal import progress_bar
from tunalab.verification import Table

LESSONS = 8000  # training scenes that guesses learn from
GROUPS = 8000  # groups a row, of as many benchmarks as it takes: a standard error of at most 0.6 points
TWINS = 800  # of pairs, whose two images share the question: a learned guess is never right twice, however many there are
SIZES = {1: (USUAL, 1000, 4000), 2: (USUAL,), 3: (USUAL,)}  # groups of a benchmark; levels 2 and 3 have far more scenes
_SEED = 11  # of the training scenes


class Question(NamedTuple):
    """A question without its image; ``options``: answers that it leaves open."""

    prompt: str
    answer: str
    template: str
    options: int


Group = Sequence[Question]
Guess = Callable[[Question], str | None]


@dataclass(frozen=True)
class Measured:
    """Shares of right groups, of ``n``. Chance is the best of them (``GUESSES``).

    ``own_words``: as words, learned not on training questions but on other scenes of the split itself.
    """

    benchmark: str
    split: str
    groups: int
    n: int
    uniform: float
    template: float
    words: float
    own_words: float


def tables() -> list[Table]:
    """Also writes the package's file of chances."""
    cells = [
        (kind, level, split, size)
        for level in LEVELS
        for split in SCENE_SPLITS
        for kind in BENCHMARKS
        for size in SIZES[level][: 1 if kind == "pairs" else None]
    ]
    path = Path(str(files("tunalab.evaluation") / FILE))
    if not os.access(path, os.W_OK):  # now, not after minutes
        raise UserError(f"{path} cannot be written: chance is measured in a checkout (make install)")
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        rows = list(progress_bar(pool.map(_measured, cells), total=len(cells)))
    rows.append(of_easy_vqa())
    write_atomically(path, as_csv(rows))
    return [table(rows)]


def _measured(cell: tuple[str, int, str, int]) -> Measured:
    return of_scenes(*cell)


def of_scenes(kind: str, level: int, split: str, size: int, lessons: int = LESSONS, groups: int = GROUPS) -> Measured:
    """Measured on at least ``groups`` groups (where benchmarks have ``size``), with what ``lessons`` training scenes teach.

    Benchmarks of other seeds than evaluations ask are drawn in the same way; in small ones the same scenes come again.
    """
    if kind == "pairs":
        groups = min(groups, TWINS)
    learned = [questions(draw_scene("train", _SEED, index, kind, level)) for index in range(lessons)]
    every = [
        scene for seed in range(math.ceil(groups / size)) for scene in benchmark_scenes(kind, level, split, seed, size, fewer=True)
    ]
    # No scene is in both halves, the one that teaches the split's own words and the one that is asked.
    halves: list[list[Group]] = [[], []]
    for scene in every:
        halves[zlib.crc32(scene.content.encode()) % 2].append(questions(scene))
    own = _of_halves(*halves)
    return _of(benchmark_name(kind, level), split, size, learned, [*map(questions, every)], own)


def of_easy_vqa() -> Measured:
    """All of its test split. Each wording is a template of its own. Raises UserError: it is not installed."""
    learned, groups = (
        [[Question(prompt, answer, prompt, 0)] for prompt, answer in worded_questions(split)] for split in EASY_VQA_SPLITS
    )
    # Which answers a wording leaves open: those that it has in training.
    open_answers = defaultdict(set)
    for (one,) in learned:
        open_answers[one.prompt].add(one.answer)
    groups = [[one._replace(options=len(open_answers[one.prompt]))] for (one,) in groups]
    own = _of_halves(groups[::2], groups[1::2])
    return _of(EASY_VQA, SPLIT, len(groups), learned, groups, own)


def _of_halves(one: Sequence[Group], other: Sequence[Group]) -> float:
    """What the words of each half tell of the other."""
    return (share(by_words(one), other) + share(by_words(other), one)) / 2


def _of(name: str, split: str, size: int, learned: Sequence[Group], groups: Sequence[Group], own: float) -> Measured:
    uniform = sum(math.prod(1 / one.options for one in group) for group in groups) / len(groups)
    template, words = (share(guess(learned), groups) for guess in (by_template, by_words))
    return Measured(name, split, size, len(groups), uniform, template, words, own)


def questions(scene: Scene) -> Group:
    """Of a scene, and of its twin if it has one."""
    views = [scene] if scene.twin is None else [scene, scene.twin]
    return [Question(view.prompt, view.answer, view.template, view.options) for view in views]


def share(guess: Guess, groups: Sequence[Group]) -> float:
    """Of groups with every answer right."""
    return sum(all(guess(one) == one.answer for one in group) for group in groups) / len(groups)


def by_template(learned: Iterable[Group]) -> Guess:
    """The commonest answer to the template."""
    counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for group in learned:
        for one in group:
            counted[one.template][one.answer] += 1
    usual = {template: answers.most_common(1)[0][0] for template, answers in counted.items()}
    return lambda one: usual.get(one.template)


def by_words(learned: Sequence[Group]) -> Guess:
    """A multinomial logistic regression on which words the question has."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    counted = Counter((one.prompt, one.answer) for group in learned for one in group)
    if len({prompt for prompt, _ in counted}) == 1:  # words tell nothing, and there may be thousands of answers
        return by_template(learned)
    words = CountVectorizer(token_pattern=r"\S+", binary=True)
    features = words.fit_transform([prompt for prompt, _ in counted])
    model = LogisticRegression(max_iter=1000)
    model.fit(features, [answer for _, answer in counted], sample_weight=list(counted.values()))
    answers: dict[str, str] = {}

    def guess(one: Question) -> str:
        if one.prompt not in answers:
            answers[one.prompt] = str(model.predict(words.transform([one.prompt]))[0])
        return answers[one.prompt]

    return guess


def as_csv(rows: Sequence[Measured]) -> str:
    """Shares with six decimals."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6f}" if isinstance(value, float) else value for key, value in asdict(row).items()})
    return text.getvalue()


def table(rows: Sequence[Measured]) -> Table:
    """The page of what was measured."""
    lines = []
    for row in rows:
        chance = max(getattr(row, guess) for guess in GUESSES)
        error = 0.0 if chance == row.uniform else math.sqrt(chance * (1 - chance) / row.n)  # uniform needs no sample
        shares = (row.uniform, row.template, row.words, row.own_words, chance, error)
        lines.append([row.benchmark, row.split, str(row.groups), str(row.n), *(f"{100 * value:.1f}" for value in shares)])
    return Table("Chance", ABOUT, COLUMNS, lines)


COLUMNS = (*("benchmark", "split", "groups", "n", "uniform", "template", "words", "own words", "chance", "standard error"),)
ABOUT = f"""\
Percent of groups that guessing without the image gets right; a group is a question, of pairs both.
Uniform: among the answers that the question leaves open. Template: the commonest training answer to
this form of question. Words: a multinomial logistic regression on the words of the question. Both
learn from {LESSONS:,} training scenes of the kind and level (easy-VQA: its training questions) and are
asked n groups of the split, from benchmarks of so many groups. Own words: the same regression,
learned from other scenes of the split itself. **Chance is the best of the four. It is what
evaluations, tables and figures show.** Where guesses are equally good, taking the best one adds
about half a standard error.

Own words gain little in `test`. In `composition` they gain much, as they know which combinations are
held out. A model that was trained on `train` does not know them, and one that follows the words of
its training falls below chance there; but only what lies above cannot come from the questions alone.

Where a kind has few scenes, a larger benchmark holds other shares of the answers (count at level 1).
For another number of groups chance is that of the next larger number here."""
