"""What people write, in YAML files and behind ``key=``, as values: a setting's type says how its text is read.

YAML 1.1 reads 010 as 8, 1:30 as 90 and `no` as false, whatever the setting is. So the text of every unquoted word is kept
(:class:`Word`) until the setting is known: a text setting takes it as it stands, a number is decimal, and what fits no type is
refused. Where no type is known, a word is what YAML 1.2 says (:func:`resolved`).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from yaml.constructor import ConstructorError

from tunalab.errors import UserError

_DIGITS = "[0-9]+(?:_[0-9]+)*"
_INTEGER = re.compile(rf"[-+]?{_DIGITS}")
_OTHER_BASE = re.compile("[-+]?0(?:x[0-9a-fA-F]+|o[0-7]+|b[01]+)")
_FLOAT = re.compile(rf"[-+]?(?:\.{_DIGITS}|{_DIGITS}(?:\.(?:{_DIGITS})?)?)(?:[eE][-+]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[-+]?\.?(?:inf|nan)", re.IGNORECASE)
_POWER = re.compile(rf"([-+]?)({_DIGITS})(?:\.({_DIGITS}))?[eE]\+?([0-9]{{1,2}})")
_NULL = ("~", "null", "Null", "NULL")
_BOOLS = {**dict.fromkeys(("true", "yes", "on", "y", "1"), True), **dict.fromkeys(("false", "no", "off", "n", "0"), False)}
_TRUE_FALSE = {word: word.lower() == "true" for one in ("true", "false") for word in (one, one.title(), one.upper())}
_LONGEST = 100  # characters of a number
_MOST = 100_000  # nodes of a document, those behind aliases counted every time


class Word(str):
    """An unquoted word, as it was written."""

    def __repr__(self) -> str:
        return str(self)


def parse(text: str) -> Any:
    """YAML, with unquoted words as :class:`Word`. Raises yaml.YAMLError, also for a key given twice."""
    return yaml.load(text, Loader=_Loader)


def resolved(value: Any) -> Any:
    """Every word as YAML 1.2 reads it (and numbers with underscores): for what has no declared type."""
    if isinstance(value, dict):
        return {str(key): resolved(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [resolved(inside) for inside in value]
    return _scalar(value) if isinstance(value, Word) else value


def typed(value: Any, hint: Any, key: str = "", references: bool = True) -> Any:
    """Every value in the type that ``hint`` (a dataclass, or an annotation in one) declares; of unknown keys as YAML reads it.

    With ``references`` a text that holds ``${`` stays as it is: what it refers to has a type.

    Raises:
        UserError: a value is none of its type; the line begins with the dotted key, before which ``key`` stands.
    """
    if isinstance(value, dict) and (is_dataclass(hint) or get_origin(hint) is dict):
        return {str(name): typed(inside, member(hint, name), _join(key, name), references) for name, inside in value.items()}
    if get_origin(hint) is list and isinstance(value, list):
        return [typed(inside, get_args(hint)[0], f"{key}[{place}]", references) for place, inside in enumerate(value)]
    if hint not in _READERS or isinstance(value, list | dict) or (references and isinstance(value, str) and "${" in value):
        return str(value) if isinstance(value, str) and "${" in value else resolved(value)
    if value is None:
        raise UserError(f"{key} has no value")
    return value if type(value) is hint else _READERS[hint](key, str(value) if not isinstance(value, str) else value)


def texts(value: Any, hint: Any, key: str) -> Any:
    """``value`` of the setting with this dotted key: as written where that is a text, else :func:`resolved`."""
    if isinstance(value, dict):
        return {str(name): texts(inside, hint, f"{key}.{name}") for name, inside in value.items()}
    due = _due(hint, key)
    return typed(value, due, key) if due in (str, list[str]) else resolved(value)


def _due(hint: Any, key: str) -> Any:
    for name in key.split("."):
        hint = member(hint, name)
    return hint


def member(hint: Any, name: str) -> Any:
    if is_dataclass(hint):
        return hints(hint).get(name, Any)
    return get_args(hint)[1] if get_origin(hint) is dict else Any


def named_members(value: Any, hint: Any, path: tuple[str, ...], start: int) -> Iterator[tuple[str, ...]]:
    """Places, ``start`` names deep or deeper, where ``value`` holds a whole mapping of members that users name."""
    if not isinstance(value, dict):
        return
    if get_origin(hint) is dict and len(path) >= start:
        yield path
    for name, inside in value.items():
        yield from named_members(inside, member(hint, name), (*path, name), start)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else str(name)


hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


def _scalar(word: str) -> Any:
    if word in ("", *_NULL):
        return None
    if word in _TRUE_FALSE:
        return _TRUE_FALSE[word]
    number = _number(word)
    return str(word) if number is None else number


def _number(word: str) -> int | float | None:
    """Decimal, whatever zeros stand before it."""
    if len(word) > _LONGEST:
        return None
    if _INTEGER.fullmatch(word):
        return int(word)
    if _OTHER_BASE.fullmatch(word):
        return int(word, 0)
    if _FLOAT.fullmatch(word):
        return float(word)
    return float(word.replace(".", "")) if "." in word and _NO_NUMBER.fullmatch(word) else None


def _text(key: str, word: str) -> str:
    if word in _NULL:
        raise UserError(f"{key}={word} is no text (in quotes if the word is meant; nothing behind {key}= for an empty text)")
    return str(word)


def _bool(key: str, word: str) -> bool:
    if word.lower() not in _BOOLS:
        raise UserError(f"{key}={word} is neither true nor false")
    return _BOOLS[word.lower()]


def _int(key: str, word: str) -> int:
    """Also 2.5e6, which is whole and often how budgets are written; 3.0 is no count."""
    number = _number(word)
    if isinstance(number, int):
        return number
    if power := _POWER.fullmatch(word):
        sign, whole, part, exponent = power.groups()
        digits, part, missing = whole.replace("_", ""), (part or "").replace("_", ""), int(exponent)
        if len(part.rstrip("0")) <= missing:
            return int(f"{sign}{digits}{part.ljust(missing, '0')[:missing]}")
    raise UserError(f"{key}={word} is not a whole number")


def _float(key: str, word: str) -> float:
    number = float(word.replace(".", "")) if _NO_NUMBER.fullmatch(word) else _number(word)
    if number is None:
        raise UserError(f"{key}={word} is not a number")
    return float(number)


_READERS: dict[Any, Any] = {str: _text, bool: _bool, int: _int, float: _float}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Unquoted scalars as words, keys given twice refused, and no document that its aliases make endless."""

    yaml_implicit_resolvers: dict[Any, Any] = {
        "<": [("tag:yaml.org,2002:merge", re.compile("<<$"))],
        None: [("!word", re.compile(""))],
    }

    def construct_document(self, node: yaml.Node) -> Any:
        for count, _ in enumerate(_expanded(node, ())):
            if count > _MOST:
                raise ConstructorError(None, None, f"aliases make more than {_MOST:,} values of it", node.start_mark)
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if key != "<<" and key in keys[:place]:
                raise ConstructorError(None, None, f"found duplicate key {key}", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _expanded(node: yaml.Node, above: tuple[yaml.Node, ...]) -> Iterator[yaml.Node]:
    if any(node is one for one in above):
        raise ConstructorError(None, None, "a value holds itself", node.start_mark)
    yield node
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                yield from _expanded(part, (*above, node))


for _tag in ("!word", *(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))):
    _Loader.add_constructor(_tag, lambda loader, node: Word(loader.construct_scalar(node)))
