"""Data that changed while a run was stopped: each kind of change is named, and what does not matter is none."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PillowImage

from tunalab.data import changes
from tunalab.data.changes import DATA_FILE, checked_data, keep, look_at
from tunalab.data.documents import CopyCorpus, Corpus
from tunalab.data.manifest import ManifestCorpus
from tunalab.data.shards.schemas import open_text
from tunalab.errors import UserError
from tunalab.settings.schema import TextConfig

SIZE = 3 * 2**16  # of the large file


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNALAB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(4):
        PillowImage.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    lines = [{"image": f"{number}.png", "caption": f"number {number}"} for number in range(5)]  # of 4.png there is none
    (folder / "pictures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_text(f'{{"text": "of {name}"}}\n' * 20)
        pq.write_table(pa.table({"text": [f"of {name}"] * 20}), folder / f"{name}.parquet")
    line = b'{"text": "0123456789"}\n'
    (folder / "large.ndjson").write_bytes(line * (SIZE // len(line)))
    return folder


def opened(folder: Path) -> dict[str, Corpus]:
    manifest = ManifestCorpus(folder / "pictures.jsonl", image_size=8, name="manifest/pictures")
    return {
        "manifest/pictures": manifest,
        "copy/manifest/pictures": CopyCorpus(manifest),
        "text/lines": open_text("text/lines", TextConfig(urls=[f"{folder}/[a-c].jsonl"]), 0),
        "text/tables": open_text("text/tables", TextConfig(urls=[f"{folder}/[a-c].parquet"]), 0),
        "text/large": open_text("text/large", TextConfig(urls=[f"{folder}/large.ndjson"]), 0),
    }


def again(folder: Path, full: bool = False, accept: bool = False, tokens: int | None = 7) -> changes.DataDigests:
    """As a run does that starts in ``folder/run``."""
    observed = checked_data(folder / "run", opened(folder), full, accept, tokens)
    keep(folder / "run", observed)
    return observed


def rewrite(path: Path, at: int, byte: bytes) -> None:
    """Another content of the same size, and as old as the one before."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    assert content[at : at + 1] != byte
    content[at : at + 1] = byte
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def append(path: Path, text: str) -> None:
    with path.open("a") as stream:
        stream.write(text)


OTHER = "has another content of the same size"
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a line of a manifest": (lambda data: append(data / "pictures.jsonl", "{}\n"), "manifest/pictures: pictures.jsonl has "),
    "a letter of a manifest": (lambda data: rewrite(data / "pictures.jsonl", 30, b"~"), f"pictures.jsonl {OTHER}"),
    "an image": (lambda data: rewrite(data / "2.png", 50, b"~"), f"manifest/pictures: 2.png {OTHER}"),
    "a larger image": (lambda data: PillowImage.new("RGB", (99, 9)).save(data / "2.png"), "2.png has "),
    "an image that is gone": (lambda data: (data / "1.png").unlink(), "manifest/pictures: 1.png is gone"),
    "an image that was missing": (lambda data: shutil.copy(data / "1.png", data / "4.png"), "4.png was added"),
    "a shard of lines": (lambda data: rewrite(data / "b.jsonl", 33, b"~"), f"text/lines: b.jsonl {OTHER}"),
    "a shorter shard": (lambda data: os.truncate(data / "b.jsonl", 90), "text/lines: b.jsonl has 90 bytes, had 340"),
    "a shard more": (lambda data: shutil.copy(data / "b.jsonl", data / "c.jsonl"), "text/lines: c.jsonl was added"),
    "a shard less": (lambda data: (data / "a.jsonl").unlink(), "text/lines: a.jsonl is gone"),
    "a table": (lambda data: rewrite(data / "a.parquet", 6, b"~"), f"text/tables: a.parquet {OTHER}"),
    "a renamed table": (
        lambda data: (data / "a.parquet").rename(data / "c.parquet"),
        "text/tables: a.parquet is gone; text/tables: c.parquet was added",
    ),
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_what_changed_is_named_and_goes_on_only_when_accepted(what: str, data: Path) -> None:
    change, expected = CHANGES[what]
    again(data, tokens=None)
    change(data)
    before = (data / "run" / DATA_FILE).read_bytes()
    with pytest.raises(UserError) as caught:
        again(data)
    message = str(caught.value)
    assert message.startswith("data changed since this run stopped: ") and expected in message.replace(f"{data}/", "")
    assert message.endswith("start.accept_changed_data=true") and "\n" not in message
    assert message.count(str(data)) == (2 if "renamed" in what else 1), "nothing else changed"
    assert (data / "run" / DATA_FILE).read_bytes() == before
    (accepted,) = again(data, accept=True, tokens=12).accepted
    assert accepted["tokens"] == 12 and accepted["count"] == len(accepted["changes"]) == message.count(str(data))
    assert again(data).accepted == [accepted], "accepted once, kept for good"


def rewritten(data: Path) -> None:
    for path in data.glob("*.*"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        os.utime(path, (1, 1))


@pytest.mark.parametrize("full", [False, True])
def test_files_that_were_copied_back_or_touched_are_the_same(data: Path, full: bool) -> None:
    again(data, full, tokens=None)
    rewritten(data)
    (data / "unused.png").write_bytes(b"new")
    assert again(data, full).accepted == [] == again(data, not full).accepted == again(data, full).accepted


def test_of_large_sources_ranges_are_looked_at_and_all_on_request(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "WHOLE", SIZE // 2)
    monkeypatch.setattr(changes, "RANGE_BYTES", 2**10)
    large, between = data / "large.ndjson", SIZE // 15 - 2**9
    again(data, tokens=None)
    for at in (0, (data / "large.ndjson").stat().st_size - 1):  # what is looked at
        kept = large.read_bytes()
        rewrite(large, at, b"~")
        with pytest.raises(UserError, match="large.ndjson has another content of the same size"):
            again(data)
        large.write_bytes(kept)
    rewrite(large, between, b"~")
    again(data)  # not noticed, as the module says
    again(data, full=True)
    rewrite(large, between, b"!")
    for full in (False, True):  # looked at as it was then
        with pytest.raises(UserError, match="large.ndjson has another content of the same size"):
            again(data, full)


def test_of_many_images_some_are_looked_at_and_all_on_request(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "IMAGES", 2)
    assert [Path(place).name for place in look_at(opened(data)).sources["manifest/pictures"]["images"]] == ["0.png", "2.png"]
    again(data, tokens=None)
    rewrite(data / "3.png", 50, b"~")
    again(data)
    again(data, full=True)
    rewrite(data / "3.png", 50, b"!")
    for full in (False, True):
        with pytest.raises(UserError, match="3.png has another content"):
            again(data, full)


def test_many_changes_are_counted(data: Path) -> None:
    again(data, tokens=None)
    for name in ("a.jsonl", "b.jsonl", "a.parquet", "b.parquet", "large.ndjson"):
        rewrite(data / name, 6, b"~")
    with pytest.raises(UserError, match=rf"({OTHER}; .*){{2}}{OTHER} \(and 2 more\): put them back"):
        again(data)


def test_places_that_are_no_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNALAB_CACHE", str(tmp_path / "cache"))
    system: Any = fsspec.filesystem("memory")

    def look() -> changes.DataDigests:
        corpus = open_text("text/far", TextConfig(urls=["memory://far/a.jsonl"]), 0)
        observed = checked_data(tmp_path, {"text/far": corpus}, False, False, 7)
        keep(tmp_path, observed)
        return observed

    for content in ("one", "one", "two"):
        system.pipe_file("/far/a.jsonl", json.dumps({"text": content}).encode())
        if content == "two":
            with pytest.raises(UserError, match="text/far: memory:///far/a.jsonl has another content of the same size"):
                look()
        else:
            look()


def test_a_run_from_before_files_were_kept_goes_on(data: Path) -> None:
    assert again(data).accepted == [] and (data / "run" / DATA_FILE).exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"novelty": 1}', "\xff"])
def test_a_damaged_file_of_what_was_seen_is_named(data: Path, text: str) -> None:
    again(data, tokens=None)
    (data / "run" / DATA_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=f"{DATA_FILE} cannot be read .*: remove it to go on"):
        again(data)
