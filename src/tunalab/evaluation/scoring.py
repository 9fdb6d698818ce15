"""Scores: exact match of answers, counted by groups of questions, with a Wilson interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunalab.data.questions import Question
from tunalab.errors import UserError
from tunalab.evaluation.benchmarks import Benchmark
from tunalab.evaluation.intervals import wilson


@dataclass(frozen=True)
class Score:
    """``correct`` of ``n`` groups. ``low`` and ``high`` are the 95% Wilson interval, ``chance`` the level of guessing.

    ``outcomes``: right or wrong per group in the benchmark's order, bits packed into hexadecimal digits, so that two models
    can be compared group by group.
    """

    correct: int
    n: int
    chance: float
    accuracy: float
    low: float
    high: float
    outcomes: str


def score(benchmark: Benchmark, answers: Sequence[str]) -> Score:
    """The score of one answer a question, in order.

    Raises UserError when the benchmark has no questions or the answers are not as many: a share of what happens to be there would
    look like a result.
    """
    if not benchmark.questions:
        raise UserError(f"benchmark {benchmark.name} has no questions")
    if len(answers) != len(benchmark.questions):
        raise UserError(f"benchmark {benchmark.name}: {len(answers)} answers to {len(benchmark.questions)} questions")
    outcomes = right_groups(benchmark.questions, answers)
    correct, n = sum(outcomes), len(outcomes)
    low, high = wilson(correct, n)
    return Score(correct, n, benchmark.chance, correct / n, low, high, np.packbits(outcomes).tobytes().hex())


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
