"""docs/robustness.md: every promise names a test that is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| ---", "| what is tried"))]


@cache
def functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_there_are_as_many_kinds_as_promised() -> None:
    assert len(ROWS) >= 60


@pytest.mark.parametrize("row", ROWS)
def test_a_promise_names_its_test(row: str) -> None:
    cells = row.replace("\\|", "").strip("|").split("|")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cells[-1])
    assert len(cells) == 3 and named
    for path, name in named:
        assert name in functions(path), f"{path} has no {name}"
