"""Places: globs, ranges of numbers, URLs; and every place that is not one."""

import os
from pathlib import Path

import pytest
from shard_files import refusal, write_bytes

from tunalab.data.documents import Reject
from tunalab.data.shards.files import find_files, open_file, read_range, stat_file
from tunalab.errors import UserError


def urls(*given: str) -> list[str]:
    return [file.url for file in find_files(given, "text/a")]


def test_globs_ranges_and_paths_in_order(tmp_path: Path) -> None:
    for name in ("b-1.tar", "b-0.tar", "b-0.tar.idx", "a.tar"):
        write_bytes(str(tmp_path / name), name.encode())
    (tmp_path / "b-9.tar").mkdir()
    assert urls(f"{tmp_path}/b-*.tar", f"{tmp_path}/a.tar") == [f"{tmp_path}/{name}.tar" for name in ("b-0", "b-1", "a")]
    assert urls(f"{tmp_path}/b-{{1..0}}.tar") == [f"{tmp_path}/b-1.tar", f"{tmp_path}/b-0.tar"]
    assert urls(f"file://{tmp_path}/[a]*.tar") == [f"{tmp_path}/a.tar"]
    (file,) = find_files([f"{tmp_path}/a.tar"], "x")
    assert file.size == 5 and "mtime" in file.stamp


def test_urls(memory: str) -> None:
    for name in ("b", "a"):
        write_bytes(f"{memory}/{name}.tar", b"0123456789")
    assert urls(f"{memory}/*.tar") == ["memory:///bucket/a.tar", "memory:///bucket/b.tar"]
    (file,) = find_files([f"{memory}/a.tar"], "x")
    assert read_range(file.url, 3, 6) == b"345" and stat_file(file.url) == file and stat_file(file.url + ".idx") is None
    with open_file(file.url) as stream:
        assert stream.read(2) == b"01"


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bytes(str(tmp_path / "a.tar"), b"0123")
    (url,) = urls("*.tar")
    assert url == str(tmp_path / "a.tar") and read_range(url, 1, 3) == b"12"


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("{folder}/*.parquet", "no files match"),
        ("{folder}/none.tar", "no such file"),
        ("memory://nowhere/*.tar", "no files match memory://nowhere"),
        ("memory://nowhere/a.tar", "no such file: memory://nowhere/a.tar"),
        ("{folder}", "is a folder: name its files, such as"),
        ("{folder}/pipe", "is no file of known size"),
        ("{folder}/{{0..1.tar", "nbalanced braces"),
        ("nonsense://x/*.tar", "nonsense"),
        ("simplecache::memory://x/*.tar", "chained"),
    ],
)
def test_places_that_are_none(tmp_path: Path, given: str, part: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    message = refusal(lambda: urls(given.format(folder=tmp_path)), UserError)
    assert message.startswith("text/a: ") and part in message


def test_a_file_named_twice(tmp_path: Path) -> None:
    write_bytes(str(tmp_path / "a.tar"), b"0")
    assert "named twice" in refusal(lambda: urls(f"{tmp_path}/*.tar", f"{tmp_path}/a.tar"), UserError)


def test_a_protocol_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import known_implementations

    monkeypatch.setitem(known_implementations, "far", {"class": "no_such_package.Far", "err": "Install far to get there"})
    assert refusal(lambda: urls("far://x/a.tar"), UserError) == "text/a: far://x/a.tar: Install far to get there"


def test_files_that_vanish_or_shrink_are_rejects(tmp_path: Path) -> None:
    url = write_bytes(str(tmp_path / "a.tar"), b"0123")
    assert "is shorter than it was" in refusal(lambda: read_range(url, 2, 6), Reject)
    os.unlink(url)
    assert "cannot be read" in refusal(lambda: read_range(url, 0, 2), Reject)
    with pytest.raises(Reject), open_file(url):
        pass


def test_a_place_that_fails_while_it_is_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    from tunalab.data.shards.tar import tar_reader

    files = find_files([write_bytes(str(tmp_path / "a.tar"), b"0123")], "text/a")

    def fail(*arguments: object, **more: object) -> None:
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(LocalFileSystem, "open", fail)
    assert refusal(lambda: tar_reader("text/a", files), UserError) == f"text/a: {tmp_path}/a.tar cannot be read: reset by peer"


def test_links_are_what_they_lead_to(tmp_path: Path) -> None:
    """The Hub's cache holds links only."""
    write_bytes(str(tmp_path / "blobs" / "0123"), b"01234")
    write_bytes(str(tmp_path / "b.tar"), b"0")
    (tmp_path / "a.tar").symlink_to("blobs/0123")
    (tmp_path / "c.tar").symlink_to("blobs")
    found = find_files([f"{tmp_path}/*.tar"], "x")
    assert [(Path(file.url).name, file.size) for file in found] == [("a.tar", 5), ("b.tar", 1)]
    assert found[0] == find_files([f"{tmp_path}/a.tar"], "x")[0]


@pytest.mark.parametrize("target", ["nowhere", "a.tar"])
def test_a_link_that_leads_nowhere_is_no_file_less(tmp_path: Path, target: str) -> None:
    write_bytes(str(tmp_path / "b.tar"), b"0")
    (tmp_path / "a.tar").symlink_to(target)
    assert f"{tmp_path}/a.tar is a link that leads nowhere" in refusal(lambda: urls(f"{tmp_path}/*.tar"), UserError)


def test_brackets_of_a_name(tmp_path: Path) -> None:
    url = write_bytes(str(tmp_path / "a [v1].tar"), b"0")
    assert urls(url) == [url]
    write_bytes(str(tmp_path / "a v.tar"), b"0")
    assert urls(url) == [str(tmp_path / "a v.tar")], "what a glob matches comes first"


def test_a_name_on_several_lines_is_told_on_one(tmp_path: Path) -> None:
    assert refusal(lambda: urls(f"{tmp_path}/a\nb.tar"), UserError) == f"text/a: no such file: {tmp_path}/a\\nb.tar"
