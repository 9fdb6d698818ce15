"""Where a run was made: versions, processor, commit. A number without it cannot be reproduced."""

import os
import platform
import subprocess
import sys
from functools import cache
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

    Tracked, because a package installed into a virtual environment lies inside some checkout without belonging to it. In another
    user's checkout git does nothing, as that user's configuration may run programs: its commit alone is read, which runs none.
    """
    refused = False

    def git(*arguments: str) -> str | None:
        nonlocal refused
        call = ["git", "-C", str(file.parent), *arguments]
        try:
            done = subprocess.run(
                call, capture_output=True, text=True, errors="replace", timeout=20, env={**os.environ, "LC_ALL": "C"}
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        refused = refused or "dubious ownership" in done.stderr
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", file.name) is not None:
        # A sweep writes its records there, after which the next run's code is still the commit's.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
        return git("rev-parse", "HEAD"), None if changed is None else bool(changed)
    root = next((place for place in file.parents if (place / ".git").exists()), None)
    if not refused or root is None or not file.is_relative_to(root / "src"):
        return None, None
    commit = git("-c", "safe.directory=*", "rev-parse", "HEAD")
    _warn_once(f"warning: git: {file.parent} is another user's; recorded: commit {commit}, not whether it was modified")
    return commit, None


@cache
def _warn_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
