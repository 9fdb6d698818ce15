"""An index is made once, again when its file changed, and in memory where nothing can be written."""

import os
from pathlib import Path

import numpy as np
import pytest

from tunalab.data.shards.corpus import cache_folder, stored_index
from tunalab.data.shards.files import ShardFile

FILE = ShardFile("memory:///a.tar", 100, "mtime=1")


class Build:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return np.array([0, 512, 2**40])


def test_made_once(cache: Path) -> None:
    build = Build()
    for _ in range(2):
        index = stored_index(FILE, "tar", build)
        assert index.length == 3 and index.load().tolist() == [0, 512, 2**40]
    assert build.calls == 1 and index.numbers is None
    (kept,) = (cache / "shards").iterdir()
    assert kept.stat().st_size == 24


@pytest.mark.parametrize(
    "other",
    [ShardFile("memory:///b.tar", 100, "mtime=1"), ShardFile(FILE.url, 101, "mtime=1"), ShardFile(FILE.url, 100, "mtime=2")],
)
def test_another_file_another_index(other: ShardFile) -> None:
    build = Build()
    stored_index(FILE, "tar", build)
    stored_index(other, "tar", build)
    stored_index(FILE, "lines", build)
    assert build.calls == 3


def test_a_file_without_a_stamp_is_never_kept(cache: Path) -> None:
    build = Build()
    for _ in range(2):
        assert stored_index(ShardFile(FILE.url, 100, ""), "tar", build).load().tolist() == [0, 512, 2**40]
    assert build.calls == 2 and not cache.exists()


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    monkeypatch.setenv("TUNALAB_CACHE", str(tmp_path / "occupied"))
    index = stored_index(FILE, "tar", Build())
    assert index.path is None and index.length == 3 and index.load().tolist() == [0, 512, 2**40]


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() is not None
    monkeypatch.delenv("TUNALAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/tunalab")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/tunalab")


def test_a_name_that_is_no_utf8(cache: Path) -> None:
    file = ShardFile(os.fsdecode(b"/data/\xff.tar"), 5, "mtime=1")
    for _ in range(2):
        assert stored_index(file, "tar", lambda: np.arange(3)).load().tolist() == [0, 1, 2]
    assert len(list((cache / "shards").iterdir())) == 1
