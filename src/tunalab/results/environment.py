"""Where a run was made: versions, processor, commit. A number without it cannot be reproduced."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "transformers", "lightning", "diffusers", "timm", "open_clip_torch")


def environment() -> dict[str, Any]:
    """Plain values for a record: python, packages, processor, cores, threads, accelerator, commit and whether it was modified."""
    import torch  # here, not above: reading records and drawing figures needs no torch

    commit, dirty = _commit(Path(__file__))
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": commit,
        "dirty": dirty,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit(file: Path) -> tuple[str | None, bool | None]:
    """Commit and dirty flag of the checkout that ``file`` is tracked in.

    Tracked, because a package installed into a virtual environment lies inside some checkout without belonging to it.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(file.parent), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", file.name) is None:
        return None, None
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD"), None if changed is None else bool(changed)
