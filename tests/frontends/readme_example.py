"""The front-end of README's section on adding one, taken out of the text as a reader would take it."""

import ast
import re
from pathlib import Path

import pytest
import yaml

import tunalab.frontends
from tunalab.config import FrontEndConfig
from tunalab.frontends.registry import FRONTENDS

README = Path(__file__).parents[2] / "README.md"


def pieces() -> tuple[str, str, str]:
    """The text of the file, of the registry's line and of the variant."""
    section = README.read_text().split("\n## Add a front-end\n")[1].split("\n## ")[0]
    found = re.findall(r"```(\w+)\n(.*?)```", section, flags=re.DOTALL)
    assert [language for language, _ in found] == ["python", "python", "yaml"]
    file, line, variant = (text for _, text in found)
    assert line.count("\n") == 1, "one line in the registry"
    return file, line, variant


def register(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FrontEndConfig:
    """Write the file where the package looks for front-ends, add the line, and return the variant's settings."""
    file, line, variant = pieces()
    (entry,) = ast.literal_eval("{" + line + "}").items()
    (folder / f"{entry[0]}.py").write_text(file)
    monkeypatch.setattr(tunalab.frontends, "__path__", [*tunalab.frontends.__path__, str(folder)])
    monkeypatch.setitem(FRONTENDS, *entry)
    settings = FrontEndConfig(**yaml.safe_load(variant)["frontend"])
    assert settings.name == entry[0]
    return settings
