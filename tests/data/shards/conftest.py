"""Indices of tests stay in the test's folder."""

from pathlib import Path

import fsspec
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNALAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory() -> str:
    """An empty place behind an URL."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    return "memory://bucket"
