"""All parts of an evaluation in turn. What is measured is kept: an interrupted evaluation goes on, a failed part costs no other."""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure
from tunalab.files import write_atomically
from tunalab.redaction import redacted_settings

if TYPE_CHECKING:  # records hold what is defined here, and are read without a model, its data or numpy
    from tunalab.evaluation.parts import EvaluationSettings, Piece
    from tunalab.evaluation.subject import Subject

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluated:
    """One part of an evaluation of one model, or a piece of one: ``settings`` and ``origin`` say of what, ``seconds`` how long it
    took."""

    part: str
    settings: dict[str, Any]
    origin: dict[str, Any]
    seconds: float
    measures: list[Measure]


def evaluate_parts(
    subject: "Subject",
    settings: "EvaluationSettings",
    parts: Sequence[str],
    log: Callable[[str], None] = print,
    done: Callable[[Evaluated], None] = lambda result: None,
) -> tuple[list[Evaluated], dict[str, str]]:
    """Results of the parts, of a divided one those of its pieces; and by name the errors of what could not be measured.

    ``subject.folder`` gets a folder a piece; there ``result.json`` holds what was measured, and a piece that has one of the same
    model and settings is not measured again. ``done`` gets each result at once: what follows may be interrupted.
    """
    from tunalab.evaluation.parts import pieces_of

    results: list[Evaluated] = []
    errors: dict[str, str] = {}

    def attempt(name: str, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except UserError as error:
            errors[name] = str(error)
            log(f"error: {name}: {error}")
            return None

    for number, name in enumerate(parts, start=1):
        log(f"{name} ({number} of {len(parts)})")
        for piece in attempt(name, partial(pieces_of, name, getattr(settings, name))) or []:
            result = attempt(piece.name, partial(_evaluate, subject, piece, log))
            if result is not None:
                results.append(result)
                done(result)
    return results, errors


def _evaluate(subject: "Subject", piece: "Piece", log: Callable[[str], None]) -> Evaluated:
    from tunalab.evaluation.subject import identity

    # What is kept in the folder of a piece is of one model and one set of settings.
    of_part = subject.of_part(f"{piece.name}-{identity(subject.origin, piece.settings | _own_questions(subject, piece))}")
    path = of_part.folder / "result.json"
    if path.exists():
        kept = read_evaluated(path)
        log(f"measured already: {path}")
        return kept
    began = time.perf_counter()
    measures = piece.measure(of_part)
    twice = [key for key, count in Counter(measure.key for measure in measures).items() if count > 1]
    if twice:
        raise ValueError(f"{piece.name} measures twice: {twice}")
    result = Evaluated(piece.name, piece.settings, subject.origin, time.perf_counter() - began, measures)
    write_atomically(path, to_text(result))
    return result


def _own_questions(subject: "Subject", piece: "Piece") -> dict[str, Any]:
    """Which questions of the user's own a part asks: a file may hold others the next time."""
    from tunalab.evaluation.benchmarks import outside

    asked = [key for key, chosen in subject.config.evaluation.benchmarks.items() if not chosen.task]
    if piece.name != "understanding" or not asked:
        return {}
    return {"own": {key: outside(key, subject.config).describe()["questions"] for key in asked}}


def to_text(result: Evaluated) -> str:
    """JSON with a line a measure."""
    plain = asdict(result)
    plain["settings"] = redacted_settings(plain["settings"])
    measures = plain.pop("measures")
    head = json.dumps(plain, allow_nan=False)[:-1]
    lines = ",\n".join(" " + json.dumps(measure, allow_nan=False, separators=(",", ":")) for measure in measures)
    return f'{head}, "measures": [\n{lines}\n]}}\n'


def read_evaluated(path: Path) -> Evaluated:
    """Raises UserError: the file is missing, damaged, or of another version."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return Evaluated(**{**plain, "measures": [Measure(**measure) for measure in plain["measures"]]})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no result of an evaluation ({error}): remove it to measure again") from error
