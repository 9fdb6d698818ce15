"""All parts of an evaluation in turn. What is measured is kept: an interrupted evaluation goes on, a failed part costs no other."""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.parts import load_part
from tunalab.evaluation.settings import EvaluationSettings
from tunalab.evaluation.subject import Subject, identity
from tunalab.files import write_atomically


@dataclass(frozen=True)
class Evaluated:
    """One part of an evaluation of one model: ``settings`` and ``origin`` say of what, ``seconds`` how long it took."""

    part: str
    settings: dict[str, Any]
    origin: dict[str, Any]
    seconds: float
    measures: list[Measure]


def evaluate_parts(
    subject: Subject,
    settings: EvaluationSettings,
    parts: Sequence[str],
    say: Callable[[str], None] = print,
    done: Callable[[Evaluated], None] = lambda result: None,
) -> tuple[list[Evaluated], dict[str, str]]:
    """Results by part, and the errors of those that could not be measured.

    ``subject.folder`` gets a folder a part; there ``result.json`` holds what was measured, and a part that has one of the same
    model and settings is not measured again. ``done`` gets each result at once: what follows may be interrupted.
    """
    results, errors = [], {}
    for number, name in enumerate(parts, start=1):
        say(f"{name} ({number} of {len(parts)})")
        try:
            result = _evaluate_part(subject, name, getattr(settings, name), say)
        except UserError as error:
            errors[name] = str(error)
            say(f"error: {name}: {error}")
            continue
        results.append(result)
        done(result)
    return results, errors


def _evaluate_part(subject: Subject, name: str, settings: Any, say: Callable[[str], None]) -> Evaluated:
    # What is kept in the folder of a part is of one model and one set of settings.
    of_part = subject.of_part(f"{name}-{identity(subject.origin, asdict(settings))}")
    path = of_part.folder / "result.json"
    if path.exists():
        kept = read_evaluated(path)
        say(f"measured already: {path}")
        return kept
    began = time.perf_counter()
    measures = load_part(name).measure(of_part, settings)
    twice = [key for key, count in Counter(measure.key for measure in measures).items() if count > 1]
    if twice:
        raise ValueError(f"{name} measures twice: {twice}")
    result = Evaluated(name, asdict(settings), subject.origin, time.perf_counter() - began, measures)
    write_atomically(path, to_text(result))
    return result


def to_text(result: Evaluated) -> str:
    """JSON with a line a measure."""
    plain = asdict(result)
    measures = plain.pop("measures")
    head = json.dumps(plain, allow_nan=False)[:-1]
    lines = ",\n".join(" " + json.dumps(measure, allow_nan=False, separators=(",", ":")) for measure in measures)
    return f'{head}, "measures": [\n{lines}\n]}}\n'


def read_evaluated(path: Path) -> Evaluated:
    """Raises UserError: the file is missing, damaged, or of another version."""
    try:
        plain = json.loads(path.read_text())
        return Evaluated(**{**plain, "measures": [Measure(**measure) for measure in plain["measures"]]})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no result of an evaluation ({error}): remove it to measure again") from error
