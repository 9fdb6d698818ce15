"""The benchmarks of a run, by name: the scenes benchmarks at each level, and easy-VQA."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tunalab.data.documents import Question
from tunalab.data.easy_vqa import easy_vqa_benchmark
from tunalab.data.scenes import BENCHMARKS
from tunalab.data.scenes import benchmark as scenes_benchmark
from tunalab.errors import UserError
from tunalab.evaluation.score import Score, chance_of
from tunalab.settings.schema import RunConfig

SPLIT = "test"
QUESTION_SEED = 0  # never the run's: all runs are asked the same questions
EASY_VQA = "easy_vqa"


@dataclass(frozen=True, eq=False)
class Benchmark:
    """``published``: the benchmark whose skill it isolates, or which it is. ``level``: of difficulty, None where there is one.

    ``chance``: the share of right groups that guessing without the image reaches (``chance_of``).
    """

    name: str
    published: str
    level: int | None
    questions: Sequence[Question]
    chance: float


def benchmark_name(kind: str, level: int) -> str:
    """``count`` at level 1, ``count@3`` at level 3."""
    return kind if level == 1 else f"{kind}@{level}"


def benchmarks(config: RunConfig) -> list[Benchmark]:
    """Every benchmark that the evaluation settings ask for; 0 groups or questions leave a family out.

    Raises UserError: easy-VQA is not installed, or there are not as many different questions as asked for.
    """
    evaluation, size = config.evaluation, config.data.image_size
    found = []
    if evaluation.groups:
        found += [
            _scenes(kind, level, SPLIT, size, evaluation.groups) for level in sorted(set(evaluation.levels)) for kind in BENCHMARKS
        ]
    if evaluation.easy_vqa:
        found.append(_easy_vqa(size, evaluation.easy_vqa))
    return found


def scenes(kind: str, level: int, split: str, image_size: int, groups: int, fewer: bool = False) -> Benchmark:
    """Raises UserError as data.scenes.benchmark, whose ``fewer`` it is."""
    questions = scenes_benchmark(kind, level, split, image_size, QUESTION_SEED, groups, fewer)
    return _benchmark(benchmark_name(kind, level), BENCHMARKS[kind], level, questions, split)


def easy_vqa(image_size: int, count: int) -> Benchmark:
    """Questions of the published test split, all of them where there are not so many. Raises UserError: it is not installed."""
    return _benchmark(EASY_VQA, "easy-VQA", None, easy_vqa_benchmark(image_size, count, QUESTION_SEED), SPLIT)


def _benchmark(name: str, published: str, level: int | None, questions: Sequence[Question], split: str) -> Benchmark:
    chance = chance_of(name, len({question.group for question in questions}), split)
    if chance is None:
        raise UserError(f"the chance of {name} in {split} was not measured (splits: test, composition)")
    return Benchmark(name, published, level, questions, chance)


# Rendering costs seconds and a run evaluates many times, so a process keeps the last settings' questions.
_scenes = lru_cache(maxsize=64)(scenes)
_easy_vqa = lru_cache(maxsize=2)(easy_vqa)


# Scores: exact match of answers, counted by groups of questions, with a Wilson interval.


def score(benchmark: Benchmark, answers: Sequence[str]) -> Score:
    """The score of one answer a question, in order.

    Raises UserError when the benchmark has no questions or the answers are not as many: a share of what happens to be there would
    look like a result.
    """
    if not benchmark.questions:
        raise UserError(f"benchmark {benchmark.name} has no questions")
    if len(answers) != len(benchmark.questions):
        raise UserError(f"benchmark {benchmark.name}: {len(answers)} answers to {len(benchmark.questions)} questions")
    return Score.from_outcomes(right_groups(benchmark.questions, answers), benchmark.chance)


def right_groups(questions: Sequence[Question], answers: Sequence[str]) -> list[bool]:
    """Whether all questions of a group are right, for every group in order of its first question."""
    groups: dict[int, bool] = {}
    for question, given in zip(questions, answers, strict=True):
        groups[question.group] = groups.get(question.group, True) and is_right(given, question.answer)
    return list(groups.values())


def is_right(given: str, expected: str) -> bool:
    """Exact match but for case and white space: an answer that says more than was asked is wrong."""
    return _normal(given) == _normal(expected)


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()
