"""README's section on adding a front-end shows a shipped one whole: its file, its line in the registry, its variant."""

import ast
import re
from pathlib import Path

from tunalab.frontends.registry import FRONTENDS

ROOT = Path(__file__).parents[2]


def test_readme_shows_a_shipped_front_end_whole() -> None:
    section = (ROOT / "README.md").read_text().split("\n## Your own\n")[1].split("\n## ")[0]
    found = re.findall(r"`([\w/.]+)`:\n\n```(\w+)\n(.*?)```", section, flags=re.DOTALL)
    assert [(name, language) for name, language, _ in found] == [
        ("src/tunalab/frontends/bottleneck.py", "python"),
        ("src/tunalab/frontends/registry.py", "python"),
        ("variants/bottleneck.yaml", "yaml"),
    ]
    (name, _, file), (_, _, line), (variant, _, settings) = found
    assert (ROOT / name).read_text() == file
    assert (ROOT / variant).read_text() == settings
    assert line.count("\n") == 1, "one line in the registry"
    assert ast.literal_eval("{" + line + "}").items() <= FRONTENDS.items()
