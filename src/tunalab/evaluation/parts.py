"""The parts of an evaluation, by name: each measures one kind of skill of a trained model, on its own and resumably.

A part is a module with a function ``measure(subject, settings) -> list[Measure]``; its settings are the field of the same name
in evaluation/settings.py. A new one: one module, one line here, one dataclass there.
"""

from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any, Protocol, cast

from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.settings import EvaluationSettings, among
from tunalab.evaluation.subject import Subject

# Name -> module; the default suite are those that need nothing but the model.
PARTS: dict[str, str] = {
    "understanding": "tunalab.evaluation.understanding.asking",
    "generation": "tunalab.evaluation.generation.following",
    "diversity": "tunalab.evaluation.generation.diversity",
    "fidelity": "tunalab.evaluation.generation.fidelity",
    "editing": "tunalab.evaluation.editing.scene_edits",
    "attention": "tunalab.evaluation.attention.on_object",
    "published": "tunalab.evaluation.lmms.published",
}
# Only on request: they need data, weights or a service that the package does not bring.
OPTIONAL: frozenset[str] = frozenset({"published"})


class Part(Protocol):
    def measure(self, subject: Subject, settings: Any) -> list[Measure]:
        """Measure a skill. Raises UserError, one line, when something it needs is missing."""
        ...


def find_parts(names: Sequence[str] | None) -> list[str]:
    """The names, or those of the default suite. Raises UserError for an unknown one."""
    for name in names or ():
        if name not in PARTS:
            raise UserError(f"unknown part {name!r} of an evaluation (choices: {', '.join(PARTS)})")
    return [name for name in PARTS if name not in OPTIONAL] if names is None else list(dict.fromkeys(names))


def load_part(name: str) -> Part:
    return cast(Part, import_module(PARTS[name]))


def describe(settings: EvaluationSettings) -> str:
    """Every part with what it measures and its settings, as text."""
    lines = []
    for name, module in PARTS.items():
        about = (import_module(module).__doc__ or "").splitlines()[0]
        lines.append(f"{name}{' (on request)' if name in OPTIONAL else ''}: {about}")
        chosen = getattr(settings, name)
        for entry in fields(chosen):
            limits = among(entry)
            lines.append(f"    {name}.{entry.name}={getattr(chosen, entry.name)}{f' ({limits})' if limits else ''}")
    return "\n".join(lines)
