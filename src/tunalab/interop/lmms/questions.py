"""A published benchmark as questions, asked along a run: requests, images and limits are those of its task in lmms-eval.

A reply is judged as `tunalab evaluate --parts published` judges it, item by item: by the paper's rules where they differ, or by
the stock ones.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from tunalab.data.buckets import Buckets
from tunalab.data.documents import Question
from tunalab.errors import UserError
from tunalab.evaluation.published import BENCHMARKS, PUBLISHED, RULED
from tunalab.interop.lmms.asking import Request, cut, first_image
from tunalab.interop.lmms.published import check_data, load, manager, offline, stock, write_ready

_CANDIDATES = 20  # answers, the most frequent ones, of which one might be right for all questions
Chosen = Callable[[Sequence[int]], set[int]]


@dataclass(frozen=True, eq=False)
class PublishedQuestions:
    """``right``: whether a reply answers a question; ``of``: items there are in all; ``max_tokens``: limit of a reply."""

    questions: list[Question]
    right: Callable[[str, Question], bool]
    chance: float
    of: int
    max_tokens: int


def published_questions(task: str, data: Path, rules: str, buckets: Buckets, chosen: Chosen) -> PublishedQuestions:
    """``data``: the folder with a folder of the task's name; ``chosen``: of the items' numbers those that are asked.

    Chance is the greater of the published one and what the best single answer gets right, of the most frequent ones.
    Raises UserError, one line: lmms-eval or the data is missing, the task cannot read it, an image is broken.
    """
    stock()
    check_data(data, task)
    ruled = RULED[task] if task in RULED and rules == PUBLISHED else None
    with _silent(data / task), TemporaryDirectory() as folder:
        write_ready(data, task, Path(folder))
        made = load(data, task, manager(Path(folder)), {})
        made.build_all_requests()
        asked = chosen([one.doc_id for one in made.instances])
        questions, doc_of, limit = [], {}, 1
        for instance in made.instances:
            if instance.doc_id not in asked:
                continue
            text, generation, visual, item, _, split = instance.args
            doc = made.dataset[split][item]
            request = Request.of(task, item, text, partial(visual, doc), generation)
            image_HWC = first_image(request, buckets)
            if image_HWC is None:
                raise UserError(f"{task}, item {item} has no image: it cannot be asked along a run")
            question = Question(image_HWC, text, _target(made, doc), item)
            questions.append(question)
            doc_of[question] = (doc, request.stops)
            limit = max(limit, request.max_tokens)

    def right(reply: str, question: Question) -> bool:
        doc, stops = doc_of[question]
        text = cut(reply, stops)
        if ruled is not None:
            return ruled.right(doc, text, Random(question.group))
        with _silent(data / task):
            random.seed(question.group)  # of rules that guess where no choice can be read
            found = made.process_results(doc, [_filtered(made, doc, text)])
        return BENCHMARKS[task].outcome(found[BENCHMARKS[task].metric]) == 1

    limit = limit if ruled is None or ruled.max_tokens is None else ruled.max_tokens
    best = _best_constant(questions, right)
    return PublishedQuestions(questions, right, max(best, BENCHMARKS[task].chance or 0.0), len(made.instances), limit)


@contextmanager
def _silent(snapshot: Path) -> Iterator[None]:
    """Without network and without what the tasks print."""
    with offline(snapshot), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


def _filtered(made: Any, doc: Any, reply: str) -> Any:
    """A reply as the task's first filter leaves it: some read the option out of it."""
    replies: Any = [[reply]]
    for one in made._filters[0].filters:
        replies = one.apply(replies, [doc])
    return next(iter(replies))


def _target(made: Any, doc: Any) -> str:
    target = made.doc_to_target(doc)
    first = target[0] if isinstance(target, list) and target else target
    return str(first)


def _best_constant(questions: Sequence[Question], right: Callable[[str, Question], bool]) -> float:
    """The largest share of questions that one answer to all of them gets right; below 1."""
    usual = [answer for answer, _ in Counter(question.answer for question in questions).most_common(_CANDIDATES)]
    shares = [sum(right(answer, question) for question in questions) / len(questions) for answer in usual]
    return min(max(shares, default=0.0), 1 - 1 / (len(questions) + 1))
