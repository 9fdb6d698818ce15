"""The parts of an evaluation, by name: each measures one kind of skill of a trained model, on its own and resumably.

A part is a module with a function ``measure(subject, settings) -> list[Measure]``; its settings are the field of the same name
in evaluation/settings.py. A new one: one module, one line here, one dataclass there. A part of several benchmarks that have nothing
to do with one another is divided: its module has a function ``pieces(settings) -> list[Piece]`` instead.
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from tunalab.errors import UserError
from tunalab.evaluation.settings import EvaluationSettings
from tunalab.settings.declaration import DECLARED

if TYPE_CHECKING:  # they bring torch, and a mistyped part should be told at once
    from tunalab.evaluation.measure import Measure
    from tunalab.evaluation.subject import Subject

# Name -> module; the default suite are those that need nothing but the model.
PARTS: dict[str, str] = {
    "understanding": "tunalab.evaluation.understanding",
    "generation": "tunalab.evaluation.generation.following",
    "diversity": "tunalab.evaluation.generation.diversity",
    "fidelity": "tunalab.evaluation.generation.fidelity",
    "reconstruction": "tunalab.evaluation.reconstruction",
    "editing": "tunalab.evaluation.editing",
    "attention": "tunalab.evaluation.attention",
    "published": "tunalab.interop.lmms.published",
}
# Only on request: they need data, weights or a service that the package does not bring.
OPTIONAL: frozenset[str] = frozenset({"published"})
DIVIDED: frozenset[str] = frozenset({"published"})
# They judge what the parser of scenes reads. Its revision is among their settings, raised with whatever reads an image otherwise:
# what an earlier one judged is measured again, and never compared with what a later one does. Results without it are of the first.
OF_PARSER: frozenset[str] = frozenset({"generation", "diversity", "editing"})
PARSER, PARSER_REVISION, PARSER_SINCE = "parser", 3, "2026-11-29"
# They look at the same sampled images: which of them is first samples.
_OF_SAMPLES = ("generation", "diversity", "fidelity")


@dataclass(frozen=True)
class Piece:
    """What is measured at a time: a part, or a benchmark of a divided one. It has a folder of its own and is replaced as a whole.

    ``settings``, plain: all that its result hangs on besides the model, and nothing else.
    """

    name: str
    settings: dict[str, Any]
    measure: "Callable[[Subject], list[Measure]]"


class Part(Protocol):
    def measure(self, subject: "Subject", settings: Any) -> "list[Measure]":
        """Measure a skill. Raises UserError, one line, when something it needs is missing."""
        ...


class Divided(Protocol):
    def pieces(self, settings: Any) -> list[Piece]:
        """Raises UserError, one line, when something is missing that all of them need."""
        ...


def find_parts(names: Sequence[str] | None) -> list[str]:
    """The names, or those of the default suite. Raises UserError for an unknown one."""
    for name in names or ():
        if name not in PARTS:
            raise UserError(f"unknown part {name!r} of an evaluation (choices: {', '.join(PARTS)})")
    return [name for name in PARTS if name not in OPTIONAL] if names is None else list(dict.fromkeys(names))


def independent(parts: Sequence[str]) -> list[list[str]]:
    """Parts in groups that need nothing of one another, and so may be measured at the same time."""
    groups: dict[str, list[str]] = {}
    for name in parts:
        groups.setdefault(_OF_SAMPLES[0] if name in _OF_SAMPLES else name, []).append(name)
    return list(groups.values())


def load_part(name: str) -> Part:
    return cast(Part, import_module(PARTS[name]))


def pieces_of(name: str, settings: Any) -> list[Piece]:
    """The part itself, or what it is divided into. Raises UserError as :class:`Divided`."""
    if name in DIVIDED:
        return cast(Divided, import_module(PARTS[name])).pieces(settings)
    of_parser = {PARSER: PARSER_REVISION} if name in OF_PARSER else {}
    return [Piece(name, asdict(settings) | of_parser, partial(load_part(name).measure, settings=settings))]


def describe(settings: EvaluationSettings) -> str:
    """Every part with what it measures and its settings, as text."""
    lines = []
    for name, module in PARTS.items():
        lines.append(f"{name}{' (on request)' if name in OPTIONAL else ''}: {_about(module)}")
        chosen = getattr(settings, name)
        for entry in fields(chosen):
            value, limits = getattr(chosen, entry.name), entry.metadata[DECLARED].allowed
            text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else value  # as it is given on the command line
            lines.append(f"    {name}.{entry.name}={text}{f' ({limits})' if limits else ''}")
    return "\n".join(lines)


def _about(module: str) -> str:
    """The first line of a module's docstring, without seconds of imports."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return (ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or "").splitlines()[0]
