"""GenEval's prompts: what must be seen, and what must not, in an image of each (``evaluation_metadata.jsonl``)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunalab.errors import UserError
from tunalab.evaluation.published_generation.lines import read_lines, text_of

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Clause:
    """``count`` things of a class; of one ``colour``; in a ``relation`` to those of another clause, ``target`` (its number)."""

    thing: str
    count: int
    colour: str | None = None
    relation: str | None = None
    target: int = 0


@dataclass(frozen=True)
class GenEvalPrompt:
    """``line``: the object as it stood in the file."""

    tag: str
    text: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...]
    line: dict[str, Any]

    @property
    def needs_colour(self) -> bool:
        return any(clause.colour is not None for clause in self.include)


def read_prompts(path: Path) -> list[GenEvalPrompt]:
    """Raises UserError, one line: the file cannot be read, a line lacks a key or asks for what GenEval does not know."""
    return [_prompt(where, line) for where, line in read_lines(path, "GenEval's metadata")]


def folder_of(number: int) -> str:
    return f"{number:05d}"


def sample_of(place: int) -> str:
    return f"{place:04d}.png"


def metadata_of(prompt: GenEvalPrompt) -> str:
    return json.dumps(prompt.line, ensure_ascii=False) + "\n"


def _prompt(where: str, line: dict[str, Any]) -> GenEvalPrompt:
    tag = text_of(where, line, "tag")
    if tag not in TAGS:
        raise UserError(f"{where}: unknown tag {tag!r} (choices: {', '.join(TAGS)})")
    text = text_of(where, line, "prompt")
    include, exclude = (_clauses(where, line, key) for key in ("include", "exclude"))
    if not include and not exclude:
        raise UserError(f"{where}: neither 'include' nor 'exclude' says what is to be seen")
    return GenEvalPrompt(tag, text, include, exclude, line)


def _clauses(where: str, line: Mapping[str, Any], key: str) -> tuple[Clause, ...]:
    clauses: list[Clause] = []
    given = line.get(key, [])
    for plain in given if isinstance(given, list) else [given]:
        if not isinstance(plain, dict):
            raise UserError(f"{where}: {key!r} must be a list of objects")
        count = plain.get("count")
        if not isinstance(count, int) or count < 1:
            raise UserError(f"{where}: 'count' of {key!r} must be a number from 1, not {count!r}")
        colour = plain.get("color")
        if colour is not None and colour not in COLOURS:
            raise UserError(f"{where}: unknown colour {colour!r} (choices: {', '.join(COLOURS)})")
        relation, target = _position(where, plain.get("position"), len(clauses))
        clauses.append(Clause(text_of(where, plain, "class"), count, colour, relation, target))
    return tuple(clauses)


def _position(where: str, given: Any, before: int) -> tuple[str | None, int]:
    if given is None:
        return None, 0
    if not isinstance(given, list) or len(given) != 2 or given[0] not in RELATIONS or given[1] not in range(before):
        raise UserError(
            f"{where}: 'position' must be [relation, number of an earlier clause] with a relation of {', '.join(RELATIONS)}"
        )
    return given[0], given[1]
