"""Published understanding benchmarks of the paper, through lmms-eval on local copies of their data (extra ``lmms``).

One image a question, stretched to the nearest image size of the run; greedy answers. Accuracy is each benchmark's own; MMVet's is
the mean score of a judge (evaluation/judging/endpoint.py says how one is named), and what it did not score is a failure.

On three of the twelve the paper's scores follow other rules than lmms-eval 0.7.3 (lmms/rules.py). ``published.rules=published``
gives both accuracies from one set of replies, for a comparison with the paper; ``stock`` that of 0.7.3 alone, as its own program.

Every task is a piece of its own (``published-gqa``): it is kept, recorded and replaced alone, and where it fails it costs no other.
"""

import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from tunalab.errors import UserError
from tunalab.evaluation.judging.endpoint import MODEL, Endpoint
from tunalab.evaluation.lmms.catalogue import BENCHMARKS
from tunalab.evaluation.lmms.items import mmvet
from tunalab.evaluation.lmms.offline import offline
from tunalab.evaluation.lmms.ready import check_data, copy_identity, load, manager, stock, write_ready
from tunalab.evaluation.lmms.rules import PUBLISHED, RULED
from tunalab.evaluation.lmms.scores import measures
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.parts import Piece
from tunalab.evaluation.settings import PublishedSettings
from tunalab.evaluation.subject import Subject

_SEED = 0  # MMMU's rules guess where no choice can be read
_JUDGED_AT_ONCE = 8
_JUDGE_SECONDS, _JUDGE_RETRIES = 60.0, 3
_JUDGE_TEMPERATURE = 0.0  # of the stock task


def pieces(settings: PublishedSettings) -> list[Piece]:
    """A piece a task. Raises UserError: lmms-eval or the folder of the data is missing."""
    stock()
    if not settings.data:
        raise UserError("published.data=FOLDER says where the benchmarks are, a folder a task (see published.tasks)")
    if not Path(settings.data).is_dir():
        raise UserError(f"published.data={settings.data}: no such folder (it holds a folder a task, see published.tasks)")
    return [_piece(task, settings) for task in dict.fromkeys(settings.tasks)]


def _piece(task: str, settings: PublishedSettings) -> Piece:
    about: dict[str, Any] = {"limit": settings.limit, "data": copy_identity(Path(settings.data) / task)}
    if task in RULED:
        about["rules"] = settings.rules
    if BENCHMARKS[task].judged:
        about["judge"] = [os.environ.get(MODEL), _JUDGE_TEMPERATURE, settings.judge_tokens]
    return Piece(f"published-{task}", about, partial(_measure, task=task, settings=settings))


def _measure(subject: Subject, task: str, settings: PublishedSettings) -> list[Measure]:
    """``subject.folder`` keeps the replies and the judge's answers.

    Raises UserError, one line: data or the judge is missing, or the task cannot read its data.
    """
    data = Path(settings.data)
    check_data(data, task)
    changes: dict[str, Any] = {}
    if task == "mmvet":
        how = _JUDGE_SECONDS, _JUDGE_RETRIES, _JUDGE_TEMPERATURE, settings.judge_tokens
        judge = Endpoint.from_environment(os.environ, subject.folder / "judge", *how)
        changes["process_results"] = mmvet(judge)
    write_ready(data, task, subject.folder / "tasks")
    results, cut = _results(subject, settings, task, changes)
    return measures(results, settings.rules, cut)


def _results(
    subject: Subject, settings: PublishedSettings, task: str, changes: dict[str, Any]
) -> tuple[dict[str, Any], dict[tuple[str, int], str]]:
    """As ``simple_evaluate`` returns them, and the replies under the paper's limit. Raises UserError as :func:`_measure`."""
    data = Path(settings.data)
    # What its tasks print, and in quiet evaluations its own bars.
    with offline(data / task), redirect_stdout(StringIO()), redirect_stderr(StringIO() if subject.quiet else sys.stderr):
        from lmms_eval.evaluator import simple_evaluate
        from tenacity import RetryError

        from tunalab.evaluation.lmms.answerer import Answerer

        tasks = manager(subject.folder / "tasks")
        made = load(data, task, tasks, changes)
        shorter = RULED[task].max_tokens if task in RULED and settings.rules == PUBLISHED else None
        answerer = Answerer(subject, settings.batch_tokens, cut_at=shorter)
        try:
            results: dict[str, Any] = simple_evaluate(
                model=answerer,
                tasks=[made],
                task_manager=tasks,
                limit=settings.limit or None,
                bootstrap_iters=0,
                random_seed=_SEED,
                numpy_random_seed=None,
                torch_random_seed=None,
                # In order where nothing is waited for: guesses are drawn in the order of scoring.
                process_docs_parallel=_JUDGED_AT_ONCE if BENCHMARKS[task].judged else 1,
            )
        except RetryError as error:  # around whatever the scoring of an item raised
            reason = error.last_attempt.exception()
            if isinstance(reason, UserError):
                raise reason from error
            raise UserError(f"{task}: an item of {data / task} cannot be scored: {type(reason).__name__}: {reason}") from error
    return results, answerer.cut
