"""Scores: exact match of answers, counted by groups of questions, with a Wilson interval."""

from collections.abc import Sequence

from tunalab.data.questions import Question
from tunalab.errors import UserError
from tunalab.evaluation.benchmarks import Benchmark
from tunalab.evaluation.score import Score


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
