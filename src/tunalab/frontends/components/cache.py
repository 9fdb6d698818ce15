"""The folder of built components: one sub-folder per name and configuration, written whole or not at all.

    <root>/<name>-<hash of its configuration>/   config.json, the component's own files, quality.json, manifest.json

The manifest holds the sha256 of every other file: zeroed weights load without any error otherwise.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunalab.config import digest
from tunalab.errors import UserError
from tunalab.files import sha256, write_folder
from tunalab.frontends.loading import read_json

MANIFEST = "manifest.json"


def components_root() -> Path:
    """TUNALAB_COMPONENTS, or ``components`` in the working directory."""
    return Path(os.environ.get("TUNALAB_COMPONENTS") or "components")


def plain(config: Any) -> dict[str, Any]:
    """A configuration dataclass as JSON would give it back."""
    loaded = json.loads(json.dumps(asdict(config)))
    assert isinstance(loaded, dict)
    return loaded


def folder_of(root: Path, name: str, config: Any) -> Path:
    return root / f"{name}-{digest(plain(config))}"


def is_built(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def write_component(folder: Path, config: Any, write: Callable[[Path], None]) -> None:
    """Create ``folder`` from what ``write`` puts into an empty one, plus configuration and manifest, whole or not at all.

    A folder without a manifest that is there already is what an older, interrupted copy left, and is replaced.
    """

    def fill(fresh: Path) -> None:
        (fresh / "config.json").write_text(json.dumps(plain(config), indent=1) + "\n", encoding="utf-8")
        write(fresh)
        sums = {path.name: sha256(path) for path in sorted(fresh.iterdir())}
        (fresh / MANIFEST).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")

    write_folder(folder, fill)


def verify(folder: Path, name: str) -> None:
    """Raises UserError, naming the component and the remedy, when it is not built or a file of it is damaged."""
    if not is_built(folder):
        raise UserError(f"component '{name}' is not built ({folder} is missing): run `make components`")
    for file, expected in read_json(folder / MANIFEST, f"component '{name}'").items():
        path = folder / file
        if not path.is_file() or sha256(path) != expected:
            state = "damaged" if path.is_file() else "missing"
            raise UserError(f"component '{name}': {path} is {state}: delete {folder} and run `make components`")
