"""Plain JSON values into dataclasses, every field checked by its type hint and named when it is wrong.

A hint becomes a function once, not at every value: a thousand records hold a million of them. Where a value stands is put
together on the way out of a mismatch, so that right values cost no names.
"""

import dataclasses
import types
from collections.abc import Callable
from functools import cache
from math import isfinite
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
Convert = Callable[[Any], Any]  # a plain value into one of a hint; raises Mismatch

_NAMES: dict[Any, str] = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


class Mismatch(ValueError):
    """A field whose value is not what it has to be."""

    def __init__(self, where: str, expected: str, value: Any) -> None:
        super().__init__(where, expected, value)
        self.where, self.expected, self.value = where, expected, value

    def __str__(self) -> str:
        return f"field {self.where or '(top level)'} must be {self.expected}, got {self.value!r}"[:300]

    def inside(self, outer: str) -> None:
        """Say further out where the value stands: in which field, or at which place of a list (``[3]``)."""
        between = "." if self.where and not self.where.startswith("[") else ""
        self.where = f"{outer}{between}{self.where}"


def build(cls: type[T], plain: Any) -> T:
    """An instance of the dataclass ``cls`` from a dictionary, recursively. Fields with a default may be absent.

    Raises:
        Mismatch: a field is unknown, missing, of another type or not finite.
    """
    return cast(T, _converter(cast(Any, cls))(plain))


@cache
def _converter(hint: Any) -> Convert:
    origin = get_origin(hint)
    if hint is Any:
        return lambda value: value
    if origin in (Union, types.UnionType):
        (inner,) = [choice for choice in get_args(hint) if choice is not type(None)]
        convert = _converter(inner)
        return lambda value: None if value is None else convert(value)
    if origin is list:
        return _list(_converter(get_args(hint)[0]))
    if origin is dict:
        return _dict(_converter(get_args(hint)[1]))
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint)
    return _scalar(hint)


def _dataclass(cls: Any) -> Convert:
    missing, hints = dataclasses.MISSING, get_type_hints(cls)
    entries = [
        (entry.name, _converter(hints[entry.name]), entry.default is missing and entry.default_factory is missing)
        for entry in dataclasses.fields(cls)
    ]

    def convert(plain: Any) -> Any:
        if not isinstance(plain, dict):
            raise Mismatch("", "an object", plain)
        if not plain.keys() <= hints.keys():
            unknown = next(name for name in plain if name not in hints)
            raise Mismatch(str(unknown), f"one of {', '.join(hints)}", unknown)
        values = {}
        for name, inner, required in entries:
            if name in plain:
                try:
                    values[name] = inner(plain[name])
                except Mismatch as error:
                    error.inside(name)
                    raise
            elif required:
                raise Mismatch(name, "present", "nothing")
        return cls(**values)

    return convert


def _list(inner: Convert) -> Convert:
    def convert(plain: Any) -> Any:
        if not isinstance(plain, list):
            raise Mismatch("", "a list", plain)
        items: list[Any] = []
        try:
            for item in plain:
                items.append(inner(item))
        except Mismatch as error:
            error.inside(f"[{len(items)}]")
            raise
        return items

    return convert


def _dict(inner: Convert) -> Convert:
    def convert(plain: Any) -> Any:
        if not isinstance(plain, dict) or not all(isinstance(name, str) for name in plain):
            raise Mismatch("", "an object", plain)
        items = {}
        for name, item in plain.items():
            try:
                items[name] = inner(item)
            except Mismatch as error:
                error.inside(name)
                raise
        return items

    return convert


def _scalar(hint: Any) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is hint and (hint is not float or isfinite(value)):  # nearly all are
            return value
        # bool is an int to Python, and must not pass for a count.
        if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
            if not isfinite(value):
                raise Mismatch("", "a finite number", value)
            return float(value)
        if hint is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if hint in (str, bool) and isinstance(value, hint):
            return value
        raise Mismatch("", _NAMES.get(hint, str(hint)), value)

    return convert
