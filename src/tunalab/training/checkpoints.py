"""Checkpoints on disk: written aside, flushed, listed with their hashes, then renamed; damage is found before it is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunalab.files import sha256, write_folder

MANIFEST = "manifest.json"
STATE = "state.ckpt"


class CheckpointStore:
    """The checkpoints of one run, ``<folder>/step-<n>``. The newest ``keep`` are kept."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """``write`` fills an empty folder; it becomes a checkpoint in one rename, after everything has reached the disk.

        A crash or a full disk at any moment leaves the earlier checkpoints as they were. Older ones go only afterwards.
        """
        final = self.folder / f"step-{step:09d}"
        for stale in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        write_whole(final, write, {"step": step})
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(old)
        return final

    def steps(self) -> list[Path]:
        """Checkpoint folders, oldest first, valid or not."""
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def newest_valid(self, warn: Callable[[str], None] = print) -> Path | None:
        """The newest undamaged checkpoint; damaged ones are named through ``warn`` with what is wrong, and passed over."""
        for path in reversed(self.steps()):
            problem = damage(path)
            if problem is None:
                return path
            warn(f"checkpoint {path} is damaged ({problem}); trying the one before it")
        return None


def write_whole(final: Path, write: Callable[[Path], None], about: dict[str, Any]) -> None:
    """A folder of what ``write`` puts into it, whole or not at all. Its manifest: ``about``, and size and hash of every file."""

    def fill(folder: Path) -> None:
        write(folder)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        listed = {str(p.relative_to(folder)): {"sha256": sha256(p), "bytes": p.stat().st_size} for p in files}
        (folder / MANIFEST).write_text(json.dumps({**about, "files": listed}, indent=1))

    write_folder(final, fill)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, None if every file is there with its hash."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest unreadable: {type(error).__name__}"
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if sha256(file) != expected["sha256"]:
            return f"{name} does not match its hash"
    return None
