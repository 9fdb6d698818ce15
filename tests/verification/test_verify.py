"""`tunalab verify`: which checks there are, and the page that one becomes."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from tunalab import verification
from tunalab.cli import main
from tunalab.verification import CHECKS, Table


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_is_a_module_with_tables(name: str) -> None:
    assert callable(import_module(CHECKS[name]).tables)


def test_a_page_names_its_command_and_holds_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("of_two")
    module.tables = lambda: [Table(f"part {n}", "About.", ["a", "b"], [["x", str(n)]]) for n in (1, 2)]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "of_two", module)
    monkeypatch.setattr(verification, "CHECKS", {"two": "of_two"})
    (page,) = verification.verify([], tmp_path)
    part = "## part {n}\n\nAbout.\n\n| a | b |\n| --- | --- |\n| x | {n} |\n"
    assert page.read_text(encoding="utf-8") == (
        "<!-- made by: tunalab verify two -->\n\n" + part.format(n=1) + "\n" + part.format(n=2)
    )


def test_an_unknown_check_is_named_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "absent"]) == 2
    assert capsys.readouterr().err.startswith("error: check absent is unknown (choices: ")
