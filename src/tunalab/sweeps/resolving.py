"""The configurations of the runs of a sweep, a thousand as fast as a dozen.

Reading the files and laying the layers takes a tenth of a second, while cells differ in a few numbers. So the first cell of each
kind is resolved whole, and the others are that one with their own numbers put in: the same configuration, checked alike.
"""

import copy
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tunalab.config import RunConfig, check, identity, load_config, text_digest
from tunalab.errors import UserError
from tunalab.layers import read_setting, settings_layers
from tunalab.redaction import redacted_settings
from tunalab.sweeps.grid import Cell
from tunalab.values import resolved

Files = Callable[[str, str], tuple[Path, Path]]  # names of experiment and variant -> their files
Number = int | float | bool
_GAP = os.urandom(8).hex()  # in no setting


def own_settings(cell: Cell, settings: Sequence[str]) -> list[str]:
    """What stands behind experiment and variant on the command line of a cell."""
    return [*cell.overrides, *settings, f"seed={cell.seed}"]


class Resolved:
    """The configuration of one cell: that of ``first`` with ``numbers`` in their places."""

    def __init__(self, first: "_First", numbers: dict[str, Number]) -> None:
        self._first, self._numbers = first, numbers

    @cached_property
    def plain(self) -> dict[str, Any]:
        """As ``to_plain`` gives it. Not to be changed: cells share what is equal."""
        plain = self._first.plain
        for key, number in self._numbers.items():
            plain = _with(plain, key.split("."), number)
        return plain

    @cached_property
    def hash(self) -> str:
        """As ``plain_hash`` gives it."""
        text = self._first.identity(tuple(self._numbers))
        for key, number in self._numbers.items():
            text = text.replace(_gap(key), json.dumps(number))
        return text_digest(text)

    @property
    def tokens(self) -> int:
        """The budget."""
        return sum(stage["tokens"] for stage in self.plain["stages"].values())

    @cached_property
    def config(self) -> RunConfig:
        """Raises UserError: a number is out of range, or does not go with the others."""
        config = copy.deepcopy(self._first.config)
        for key, number in self._numbers.items():
            *path, last = key.split(".")
            node: Any = config
            for name in path:
                node = node[name] if isinstance(node, dict) else getattr(node, name)
            if isinstance(node, dict):
                node[last] = number
            else:
                setattr(node, last, number)
        check(config)
        return config


def resolve(cells: Iterable[Cell], settings: Sequence[str], files: Files) -> dict[str, Resolved]:
    """By name of the cell.

    Raises UserError: a file, a key or a value is wrong. What a number may not be, ``Resolved.config`` tells.
    """
    firsts: dict[tuple[str, ...], _First] = {}
    named: dict[tuple[str, str], tuple[tuple[Path, Path], bool]] = {}
    resolved = {}
    for cell in cells:
        own, names = own_settings(cell, settings), (cell.experiment, cell.variant)
        kind = (*names, *(_key(text) if _is_number(text) else text for text in own))
        first = firsts.get(kind)
        numbers = None if first is None else first.others(own)
        if first is None or numbers is None:
            if names not in named:
                named[names] = files(*names), _refers(files(*names))
            paths, refers = named[names]
            first, numbers = _First(paths, own, independent=not refers and _independent(own)), {}
            firsts.setdefault(kind, first)
        resolved[cell.name] = Resolved(first, numbers)
    return resolved


class _First:
    """The first cell of a kind: ``own`` settings, the same as those of its kind but for numbers."""

    def __init__(self, files: tuple[Path, Path], own: list[str], independent: bool) -> None:
        self.config = load_config(*files, own)
        self.plain = redacted_settings(asdict(self.config))
        self._own, self._independent = own, independent
        self._typed: dict[str, Number | None] = {}
        self._identities: dict[tuple[str, ...], str] = {}

    def identity(self, keys: tuple[str, ...]) -> str:
        """The text that is hashed, with gaps for the numbers of other cells at these keys: most of hashing is writing it."""
        if keys not in self._identities:
            plain = self.plain
            for key in keys:
                plain = _with(plain, key.split("."), json.loads(_gap(key)))
            self._identities[keys] = identity(plain)
        return self._identities[keys]

    def others(self, own: list[str]) -> dict[str, Number] | None:
        """Numbers of another cell that differ from the first's, by key, in the types of their settings; None where the whole way
        must be gone: a number has no place, or something else depends on it.
        """
        differing = [text for text, of_first in zip(own, self._own, strict=True) if text != of_first]
        if differing and not self._independent:
            return None
        found: dict[str, Number] = {}
        for text in differing:
            if text not in self._typed:
                self._typed[text] = self._number(text)
            number = self._typed[text]
            if number is None:
                return None
            found[_key(text)] = number
        return found

    def _number(self, text: str) -> Number | None:
        """In the type of the first's, as ``typed`` converts it where no question is left."""
        node: Any = self.plain
        for name in _key(text).split("."):
            node = node.get(name) if isinstance(node, dict) else None
        value = _value(text)
        if type(node) is float and type(value) in (int, float):
            return float(value)
        return value if type(node) is type(value) and isinstance(value, Number) else None


def _refers(files: tuple[Path, Path]) -> bool:
    """Whether some setting of the files is another's value (``${seed}``)."""
    return any("${" in json.dumps(layer.settings) for layer in settings_layers(*files, []))


def _independent(own: Sequence[str]) -> bool:
    """Whether none of the settings refers to another, and none lies inside another."""
    keys = [f"{_key(text)}." for text in own]
    inside = any(a.startswith(b) for i, a in enumerate(keys) for j, b in enumerate(keys) if i != j)
    return not inside and not any("${" in text for text in own)


def _key(text: str) -> str:
    return text.partition("=")[0]


def _gap(key: str) -> str:
    """Stands for a setting's number in JSON."""
    return json.dumps(f"{_GAP} {key}")


@cache
def _value(text: str) -> Any:
    return resolved(read_setting(text)[1])


@cache
def _is_number(text: str) -> bool:
    """Anything else may mean more than it says: a mix by its name, another setting's value."""
    try:
        return "=" in text and "[" not in _key(text) and isinstance(_value(text), Number)
    except UserError:
        return False


def _with(plain: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    return {**plain, path[0]: value if len(path) == 1 else _with(plain[path[0]], path[1:], value)}
