"""Nothing but the front-ends, their looks, variants and experiments knows a front-end or a variant by its name."""

import re
from pathlib import Path

import pytest

import tunalab
from tests.variants import SETTINGS
from tunalab.frontends.registry import FRONTENDS

PACKAGE = Path(tunalab.__file__).parent
NAMES = {*SETTINGS, *FRONTENDS}
# File or folder -> why it may, with the names that it may use.
ALLOWED = {
    "frontends": ("the front-ends themselves, and their looks", NAMES),
    "official": ("the layouts of the published checkpoints, which are of these models", NAMES),
    "planning/ladder.yaml": ("data: commands, with the variant that they train", {"tuna2"}),
    "analysis/claims.yaml": ("data: models of results/published.csv as it names them", {"tuna", "tuna_r", "tuna2"}),
    "settings/schema.py": ("the defaults of a run without a variant", {"patch_embed", "tuna2"}),
    "cli/runs.py": ("the default of --variant, as in the settings", {"tuna2"}),
    "cli/records.py": ("an example of a record in a help text", {"tuna2"}),
    "bench/gpu.py": ("a figure is measured on one variant, which is stated", {"tuna2"}),
    "bench/run.py": ("a figure is measured on one variant, which is stated", {"tuna", "tuna2", "tuna_r"}),
    "verification/encoders.py": (
        "compared with timm's encoders, where patch_embed is a name too",
        {"siglip", "patch_embed"},
    ),
    "trained/folder.py": ("imports a component of that name", {"siglip"}),
    "__init__.py": ("an example in the docstring", {"tuna2"}),
    "library.py": ("the default of variant, as in the settings", {"tuna2"}),
    "cli/study/sweeps/coarse.yaml": ("a study to start from compares with a shipped variant", {"tuna2"}),
    "cli/study/variants/coarse.yaml": ("a variant file, to start from", NAMES - {"tuna", "tuna_r", "tuna_r_frozen", "vae_latents"}),
    "analysis/fairness.py": ("an example in a docstring", {"tuna2"}),
    "evaluation/reconstruction.py": ("the word, not the front-end", {"bottleneck"}),
    "sweeps/grid.py": ("an example of a sweep file in a docstring", {"tuna_r"}),
}
FILES = [path for path in sorted(PACKAGE.rglob("*")) if path.suffix in (".py", ".yaml", ".j2", ".html")]


def found(path: Path) -> set[str]:
    # Seeds and settings may stand right behind a variant: tuna2-seed0.
    return {match for match in re.findall(rf"(?<!\w)({'|'.join(NAMES)})(?!\w)", path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("part", sorted({path.relative_to(PACKAGE).parts[0] for path in FILES}))
def test_no_front_end_is_known_by_name(part: str) -> None:
    for path in FILES:
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] == part:
            _, names = ALLOWED.get(relative.as_posix()) or ALLOWED.get(part) or ("", set())
            strange = found(path) - names
            assert not strange, f"{relative} names {', '.join(sorted(strange))}: read it from the record or the settings"


def test_no_exception_is_stale() -> None:
    for place, (_, names) in ALLOWED.items():
        paths = [PACKAGE / place] if (PACKAGE / place).is_file() else (PACKAGE / place).rglob("*.py")
        used = set().union(*(found(path) for path in paths))
        assert used if names is NAMES else used == names, f"{place} no longer names {', '.join(sorted(names - used))}"
