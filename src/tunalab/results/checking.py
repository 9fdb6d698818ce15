"""Plain JSON values into dataclasses, every field checked by its type hint and named when it is wrong."""

import dataclasses
import math
import types
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class Mismatch(ValueError):
    """A field whose value is not what it has to be."""

    def __init__(self, where: str, expected: str, value: Any) -> None:
        super().__init__(f"field {where or '(top level)'} must be {expected}, got {value!r}"[:300])


def build(cls: type[T], plain: Any, where: str = "") -> T:
    """An instance of the dataclass ``cls`` from a dictionary, recursively. Fields with a default may be absent.

    Raises:
        Mismatch: a field is unknown, missing, of another type or not finite.
    """
    if not isinstance(plain, dict):
        raise Mismatch(where, "an object", plain)
    hints = _hints(cls)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name in plain:
        if name not in hints:
            raise Mismatch(_join(where, name), f"one of {', '.join(hints)}", name)
    for name, required in _entries(cls):  # type: ignore[arg-type]
        if name not in plain:
            if required:
                raise Mismatch(_join(where, name), "present", "nothing")
            continue
        value, hint = plain[name], hints[name]
        values[name] = value if _plainly(hint, value) else _value(hint, value, _join(where, name))
    return cls(**values)


def _plainly(hint: Any, value: Any) -> bool:
    """Whether the value is a number or a text of just this type: most are, and a thousand records hold a million of them."""
    return type(value) is hint and (hint in (int, str, bool) or (hint is float and math.isfinite(value)))


@cache
def _entries(cls: Any) -> list[tuple[str, bool]]:
    """Fields by name, and whether they have to be there."""
    missing = dataclasses.MISSING
    return [(entry.name, entry.default is missing and entry.default_factory is missing) for entry in dataclasses.fields(cls)]


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)  # resolving hints is slow, and a record holds hundreds of scores


def _join(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (inner,) = [choice for choice in get_args(hint) if choice is not type(None)]
        return value if _plainly(inner, value) else _value(inner, value, where)
    if origin is list:
        if not isinstance(value, list):
            raise Mismatch(where, "a list", value)
        (inner,) = get_args(hint)
        return [item if _plainly(inner, item) else _value(inner, item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise Mismatch(where, "an object", value)
        inner = get_args(hint)[1]
        return {key: item if _plainly(inner, item) else _value(inner, item, _join(where, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    # bool is an int to Python, and must not pass for a count.
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise Mismatch(where, "a finite number", value)
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
    raise Mismatch(where, names.get(hint, str(hint)), value)
