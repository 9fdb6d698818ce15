"""The recipes that bear the paper's name against what is published.

docs/facts.csv lists what paper and official code say; the mark behind a value in a recipe says which of them
it is from ([U]: ours); docs/deviations.md lists what differs. Each is held to the two others.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import yaml

from tests.test_recipes import CONTROLLED, OWN, ROOT, load
from tunalab.model.flow_head import FlowHead
from tunalab.settings.layers import leaves, read_experiment
from tunalab.settings.loading import to_plain
from tunalab.settings.schema import RunConfig

SCALES = {recipe: recipe.removeprefix("paper_").removesuffix("_controlled") for recipe in (*CONTROLLED, *OWN)}
PUBLISHED = ("tuna", "tuna_r", "tuna2")
REFERENCE = "tuna2"  # whose settings all front-ends share in a controlled recipe
MARK = re.compile(r"(?:^|\s)#\s*\[([PCU])\]")


@dataclass(frozen=True)
class Fact:
    """``variant``, ``scale``: empty is all. ``value``: as :func:`parsed` reads it."""

    key: str
    value: Any
    variant: str
    scale: str
    mark: str
    source: str

    def about(self, variant: str, scale: str) -> bool:
        return self.variant in ("", variant) and self.scale in ("", scale)


@dataclass(frozen=True)
class Line:
    """A value that a recipe's file sets: for one variant, or for all ("")."""

    number: int
    variant: str
    key: str
    value: Any
    mark: str


def parsed(text: str) -> Any:
    try:
        return json.loads(text.replace("_", ""))
    except ValueError:
        return text


@cache
def facts() -> list[Fact]:
    rows = (ROOT / "docs/facts.csv").read_text().splitlines()
    table = csv.DictReader(row for row in rows if not row.startswith("#"))
    return [Fact(**{**row, "value": parsed(row["value"])}) for row in table]


def lines_of(text: str) -> Iterator[Line]:
    """A mark stands behind a value or behind a mapping that holds it; what an alias repeats has the alias's mark."""
    comments = [MARK.search(line) for line in text.splitlines()]

    def walk(node: yaml.Node, path: tuple[str, ...], mark: str, repeated: int) -> Iterator[Line]:
        for name, inner in node.value:
            at = repeated or name.start_mark.line + 1
            comment = comments[at - 1]
            own = comment[1] if comment and not repeated else mark
            where = (*path, name.value)
            again = repeated or (at if inner.start_mark.index < name.start_mark.index else 0)
            if isinstance(inner, yaml.MappingNode):
                yield from walk(inner, where, own, again)
                continue
            variant, keys = (where[1], where[2:]) if where[0] == "variants" else ("", where)
            many = isinstance(inner, yaml.SequenceNode)
            value = [parsed(one.value) for one in inner.value] if many else parsed(inner.value)
            yield Line(at, variant, ".".join(keys), value, own)

    return (line for line in walk(yaml.compose(text), (), "", 0) if line.key != "base")


@cache
def lines(recipe: str) -> list[Line]:
    """With the tokens of a stage as steps, which is what is published."""
    steps = load(recipe, REFERENCE).data.step_tokens
    found = lines_of((ROOT / f"experiments/{recipe}.yaml").read_text())
    return [
        Line(one.number, one.variant, in_steps(one.key), one.value // steps, one.mark) if one.key != in_steps(one.key) else one
        for one in found
    ]


def in_steps(key: str) -> str:
    return re.sub(r"^(stages\.\w+)\.tokens$", r"\1.steps", key)


@cache
def values(recipe: str, variant: str) -> dict[str, Any]:
    """What a recipe sets for a variant, by the keys of the table of facts."""
    config = load(recipe, variant)
    read = read_experiment(ROOT / f"experiments/{recipe}.yaml").mixes
    mixes = {name: {source: float(share) for source, share in mix.items()} for name, mix in read.items()}
    found = dict(leaves(to_plain(config))) | dict(leaves(mixes, "mixes."))
    for name, stage in config.stages.items():
        found[f"stages.{name}.steps"] = stage.tokens // config.data.step_tokens
        found[f"stages.{name}.mix"] = next(given for given, mix in mixes.items() if mix == stage.mix)
    return found | {"head.parameters": head_parameters(config)}


def head_parameters(config: RunConfig) -> float:
    """Of the flow head's blocks, to three digits."""
    with torch.device("meta"):
        head = FlowHead(config.decoder.width, 1, config.head)
    return float(f"{sum(one.numel() for one in head.blocks.parameters()):.2e}")


def deviations() -> list[list[str]]:
    """The cells of each row."""
    rows = [line for line in (ROOT / "docs/deviations.md").read_text().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def deviating() -> list[tuple[str, list[str]]]:
    """The names in each row's first cell, with all of its cells."""
    return [(name, row) for row in deviations() for name in re.findall(r"`([^`]+)`", row[0])]


@pytest.mark.parametrize("recipe", SCALES)
def test_every_value_of_a_recipe_has_a_true_mark(recipe: str) -> None:
    wrong = []
    for line in lines(recipe):
        of = PUBLISHED if not line.variant else (line.variant,)
        known = [one for one in facts() if one.key == line.key and any(one.about(variant, SCALES[recipe]) for variant in of)]
        marks = {one.mark for one in known if one.value == line.value}
        if line.mark == "U":  # not where all that is published says so
            true = not known or {json.dumps(one.value) for one in known} != {json.dumps(line.value)}
        else:
            true = line.mark in marks
        if not true:
            wrong.append(f"{recipe}.yaml:{line.number}: {line.key}={line.value} is marked [{line.mark}], published: {known}")
    assert not wrong, "\n".join(wrong)


def differing() -> Iterator[tuple[str, str, str, Any, list[Fact]]]:
    """Where a recipe is not as published: recipe, variant, key, its value, the facts."""
    for recipe, scale in SCALES.items():
        for variant in PUBLISHED:
            own = values(recipe, variant)
            for key in {one.key for one in facts()}:
                of = REFERENCE if recipe in CONTROLLED and not key.startswith("frontend.") else variant
                expected = [one for one in facts() if one.key == key and one.about(of, scale)]
                if any(own[key] != one.value for one in expected):
                    yield recipe, variant, key, own[key], expected


def test_what_differs_from_the_facts_is_listed() -> None:
    listed = {(in_steps(name), row[1]) for name, row in deviating()}
    missing = [
        f"{recipe} {variant}: {key}={value}, published: {known}"
        for recipe, variant, key, value, known in differing()
        if (key, "all") not in listed and not (recipe in CONTROLLED and (key, "controlled") in listed)
    ]
    assert not missing, "\n".join(missing)


def test_what_is_listed_is_there_and_differs() -> None:
    """A row names settings, or files of the repository, and what has a fact differs from one."""
    names = [name for name, _ in deviating()]
    of_settings = [name for name in names if not name.endswith(".py")]  # a file may differ in more than one thing
    assert of_settings and len(of_settings) == len(set(of_settings)), "each once"
    settings = {key for recipe in SCALES for variant in PUBLISHED for key in values(recipe, variant)}
    for name, row in deviating():
        key = in_steps(name)
        assert key in settings or (ROOT / name).exists(), name
        assert len(row) == 5 + (key in settings) and all(row) and (key not in settings or row[1] in ("all", "controlled")), name
        expected = [one for one in facts() if one.key == key]
        assert not expected or any(
            values(recipe, variant)[key] != one.value
            for recipe, scale in SCALES.items()
            for variant in PUBLISHED
            for one in expected
            if one.scale in ("", scale)
        ), f"{name} is as published"


def test_facts_are_about_settings() -> None:
    """And none stands twice."""
    places = [(one.key, one.variant, one.scale, one.mark) for one in facts()]
    assert len(places) == len(set(places))
    for one in facts():
        assert one.variant in ("", *PUBLISHED) and one.scale in ("", *SCALES.values()) and one.mark in ("P", "C") and one.source
        assert one.key in values("paper_7b", one.variant or REFERENCE), one.key


def test_marks_are_read_as_they_stand() -> None:
    text = """
a: 1 # [P]
b: # [C]
  c: 2
  d: {e: x_y} # [U] not the code's
  f: &f
    g: [1, 2]
variants:
  tuna:
    b: {f: *f} # [P]
    h: 3
"""
    found = {(one.variant, one.key): (one.value, one.mark) for one in lines_of(text)}
    assert found == {
        ("", "a"): (1, "P"),
        ("", "b.c"): (2, "C"),
        ("", "b.d.e"): ("x_y", "U"),
        ("", "b.f.g"): ([1, 2], "C"),
        ("tuna", "b.f.g"): ([1, 2], "P"),
        ("tuna", "h"): (3, ""),
    }
