"""A setting is declared once, at its field of a dataclass:

    width: int = setting(128, at_least=8, help="features of a token in the decoder")

All else about settings comes from these declarations: what a value may be, what a run's hash is of
(loading.py), `tunalab settings` and the reference page in docs (reference.py).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin

from tunalab.errors import UserError
from tunalab.settings.values import hints, member

Acts = Literal["start", "masking", "stage", "never"]
Changes = Literal["results", "rounding", "nothing"]
T = TypeVar("T")

DECLARED = "setting"  # the key of a field's metadata
NAME = "NAME"  # stands in a dotted key for the name that a user gives to a member


@dataclass(frozen=True)
class Declared:
    """What is declared at a field. Bounds and choices are those of each member of a list or mapping.

    ``acts``: when in training the setting first has an effect: from its ``start``, from the first
    step with ``masking``, from the setting's own ``stage``, or ``never`` (it is about evaluation,
    reports or checks). ``changes``: what another value can change: ``results``, only ``rounding``,
    or ``nothing``. None of either: as the group says, else ``start`` and ``results``. ``identity``:
    whether it enters the hash of a run; None: if it changes results. ``empty``: whether a list may be.
    """

    help: str
    at_least: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()
    acts: Acts | None = None
    changes: Changes | None = None
    identity: bool | None = None
    empty: bool = True

    @property
    def allowed(self) -> str:
        """Range or choices; empty where the type says all."""
        ends = (("from", self.at_least), ("to", self.at_most))
        return ", ".join(self.choices) or " ".join(f"{word} {end:.10g}" for word, end in ends if end is not None)

    def check(self, name: str, value: Any) -> None:
        """Raises UserError, one line naming the setting: ``value`` is not what it may be."""
        if isinstance(value, dict):
            for key, inside in value.items():
                self.check(f"{name}.{key}", inside)
        elif isinstance(value, list):
            if not value and not self.empty:
                raise UserError(f"{name}=[] leaves nothing (choices: {self.allowed})")
            for inside in value:
                self.check(name, inside)
        elif self.choices and value not in self.choices:
            raise UserError(f"{name}={value} is not known (choices: {self.allowed})")
        elif isinstance(value, int | float):
            low, high = self.at_least, self.at_most
            if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
                raise UserError(f"{name}={value} is out of range ({self.allowed or 'any finite number'})")


def setting(default: T, **declared: Any) -> T:
    """A field with its declaration; the keywords are those of :class:`Declared`."""
    metadata = {DECLARED: Declared(**declared)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(made: Callable[[], T], acts: Acts | None = None, changes: Changes | None = None) -> T:
    """A field of settings, or a mapping of members that users name, with what holds for all inside."""
    return field(default_factory=made, metadata={"acts": acts, "changes": changes})


@dataclass(frozen=True)
class Setting:
    """``key``: dotted, with NAME for names that users give. ``group``: the dataclass of the field.

    What its declaration leaves open is filled in: ``acts``, ``changes``, ``identity``.
    """

    key: str
    type: Any
    default: Any
    group: type
    declared: Declared
    acts: Acts
    changes: Changes

    @property
    def identity(self) -> bool:
        own = self.declared.identity
        return self.changes == "results" if own is None else own


def settings_of(cls: Any, prefix: str = "", acts: Acts = "start", changes: Changes = "results") -> dict[str, Setting]:
    """Every setting of a dataclass and of those inside it, by key."""
    found: dict[str, Setting] = {}
    for item in fields(cls):
        key, hint = f"{prefix}{item.name}", hints(cls)[item.name]
        if DECLARED in item.metadata:
            own = item.metadata[DECLARED]
            made: Any = item.default_factory
            default = made() if item.default is MISSING else item.default
            when, what = own.acts or acts, own.changes or changes
            found[key] = Setting(key, hint, default, cls, own, when, what)
            continue
        inner = members_of(hint)
        inside = (f"{key}.", hint) if inner is None else (f"{key}.{NAME}.", inner)
        when, what = item.metadata["acts"] or acts, item.metadata["changes"] or changes
        found |= settings_of(inside[1], inside[0], when, what)
    return found


def members_of(hint: Any) -> Any:
    """The dataclass of the members of a mapping that users name, None for anything else."""
    inner = get_args(hint)[1] if get_origin(hint) is dict else None
    return inner if is_dataclass(inner) else None


def check_values(node: Any, prefix: str = "") -> None:
    """Every value of a dataclass of settings. Raises UserError for the first that is not allowed."""
    cls: Any = type(node)
    for name, declared in _declared(cls):
        value, key = getattr(node, name), f"{prefix}{name}"
        if declared is not None:
            declared.check(key, value)
        elif isinstance(value, dict):
            for member, inside in value.items():
                check_values(inside, f"{key}.{member}.")
        else:
            check_values(value, f"{key}.")


@cache
def _declared(cls: Any) -> list[tuple[str, Declared | None]]:
    """Name of each field, and what is declared of it; None of a group."""
    return [(item.name, item.metadata.get(DECLARED)) for item in fields(cls)]


def misfit(layer: dict[Any, Any], hint: Any, prefix: str = "") -> str | None:
    """The first key of ``layer`` that is unknown, or whose value has another shape than ``hint``:
    a single value, a list or a mapping. ``hint``: a dataclass, or the annotation of a mapping."""
    names = hints(hint) if is_dataclass(hint) else None
    for name, value in layer.items():
        key = f"{prefix}{name}"
        if value == "???":  # to OmegaConf "set me later", which would be never
            return f"{key} has no value"
        if names is not None and name not in names:
            return f"unknown key '{key}'{_meant(str(name), names)} (choices: {', '.join(sorted(names))})"
        due = member(hint, name)
        if is_dataclass(due) or get_origin(due) is dict:
            if not isinstance(value, dict):
                keys = ", ".join(sorted(hints(due))) if is_dataclass(due) else "names of your own"
                return f"{key}={value} is not a mapping (its keys: {keys})"
            inner = misfit(value, due, f"{key}.")
            if inner is not None:
                return inner
        elif get_origin(due) is list:
            if not isinstance(value, list):
                return f"{key}={value} is not a list"
            if any(isinstance(one, list | dict) for one in value):
                return f"{key}={value} is nested: it takes single values"
        elif isinstance(value, list | dict):
            return f"{key}={value} is not a single value"
    return None


def _meant(name: str, names: Any) -> str:
    close = get_close_matches(name, names, n=1)
    return f", did you mean {close[0]}?" if close else ""
