"""Published understanding benchmarks of the paper, through lmms-eval on local copies of their data (extra ``lmms``).

One image a question, stretched to the nearest image size of the run; greedy answers. Accuracy is each benchmark's own; MMVet's is
the mean score of a judge (evaluation/judging/endpoint.py says how one is named), and what it did not score is a failure.
"""

import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

from tunalab.errors import UserError
from tunalab.evaluation.judging.endpoint import Endpoint
from tunalab.evaluation.lmms.catalogue import BENCHMARKS
from tunalab.evaluation.lmms.items import mmvet
from tunalab.evaluation.lmms.offline import offline
from tunalab.evaluation.lmms.ready import check_data, load, manager, stock, write_ready
from tunalab.evaluation.lmms.scores import measures
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.settings import PublishedSettings
from tunalab.evaluation.subject import Subject
from tunalab.files import write_atomically

_SEED = 0  # MMMU's rules guess where no choice can be read
_JUDGED_AT_ONCE = 8
_JUDGE_SECONDS, _JUDGE_RETRIES = 60.0, 3


def measure(subject: Subject, settings: PublishedSettings) -> list[Measure]:
    """``subject.folder`` keeps the replies, the judge's answers, and the measures of every task that is done.

    Raises UserError, one line: lmms-eval, data or the judge is missing, or a task cannot read its data.
    """
    stock()
    if not settings.data:
        raise UserError("published.data=FOLDER says where the benchmarks are, a folder a task (see published.tasks)")
    data, tasks = Path(settings.data), list(dict.fromkeys(settings.tasks))
    check_data(data, tasks)
    changes: dict[str, dict[str, Any]] = {}
    if "mmvet" in tasks:
        judge = Endpoint.from_environment(os.environ, subject.folder / "judge", _JUDGE_SECONDS, _JUDGE_RETRIES)
        changes["mmvet"] = {"process_results": mmvet(judge)}
    write_ready(data, tasks, subject.folder / "tasks")
    found: list[Measure] = []
    for task in tasks:
        path = subject.folder / f"{task}.json"
        if not path.exists():
            new = measures(_results(subject, settings, task, changes.get(task, {})))
            write_atomically(path, json.dumps([asdict(one) for one in new], allow_nan=False))
        found += [Measure(**plain) for plain in json.loads(path.read_text())]
    return found


def _results(subject: Subject, settings: PublishedSettings, task: str, changes: dict[str, Any]) -> dict[str, Any]:
    """As ``simple_evaluate`` returns them. Raises UserError as :func:`measure`."""
    data = Path(settings.data)
    # What its tasks print, and in quiet evaluations its own bars.
    with offline(data / task), redirect_stdout(StringIO()), redirect_stderr(StringIO() if subject.quiet else sys.stderr):
        from lmms_eval.evaluator import simple_evaluate
        from tenacity import RetryError

        from tunalab.evaluation.lmms.answerer import Answerer

        tasks = manager(subject.folder / "tasks")
        made = load(data, task, tasks, changes)
        try:
            results: dict[str, Any] = simple_evaluate(
                model=Answerer(subject, settings.batch_tokens),
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
    return results
