"""Samples of tar shards by number, and shards that are none, cut off or damaged."""

import io
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_files import pair, read_bytes, refusal, write_bytes, write_tar

from tunalab.data.documents import Reject
from tunalab.data.shards.files import find_files
from tunalab.data.shards.tar import RangeReader, tar_reader
from tunalab.errors import UserError


def open_tars(*urls: str) -> RangeReader:
    return tar_reader("webdataset/a", find_files(urls, "webdataset/a"))


def keys(reader: RangeReader) -> list[str]:
    return [reader.read(row)["__key__"] for row in range(int(reader.starts[-1]))]


def gnu_tar(*members: tuple[str, bytes]) -> bytes:
    """As GNU tar and Python write it, without the extended headers of webdataset's writer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("place", ["{tmp_path}", "memory://bucket"])
def test_samples_are_what_was_written(tmp_path: Path, memory: str, place: str) -> None:
    folder = place.format(tmp_path=tmp_path)
    samples = [pair(number) for number in range(7)]
    write_tar(f"{folder}/0.tar", samples[:4])
    write_tar(f"{folder}/1.tar", [])
    write_tar(f"{folder}/2.tar", samples[4:])
    reader = open_tars(f"{folder}/*.tar")
    assert reader.starts.tolist() == [0, 4, 7], "an empty shard is no block"
    for row in (6, 0, 3, 4):
        assert reader.read(row) == {**samples[row], "txt": samples[row]["txt"].encode()}
    assert reader.where(4) == f"{'memory:///bucket' if 'memory' in place else folder}/2.tar sample 1"


def test_what_belongs_to_a_sample(tmp_path: Path) -> None:
    """A name ends at the first dot of its file; endings are lower case; other things in a tar are no samples."""
    tar = gnu_tar(
        ("__info__/x.json", b"{}"),
        ("a/b.c/01.JPG", b"1"),
        ("a/b.c/01.en.txt", b"one"),
        ("README", b"no ending"),
        ("._01.jpg", b"left by another system"),
        ("02.txt", b"two"),
        ("03.txt", b"three"),
        ("02.jpg", b"not beside its text"),
    )
    reader = open_tars(write_bytes(f"{tmp_path}/a.tar", tar))
    assert [dict(reader.read(row)) for row in range(4)] == [
        {"__key__": "a/b.c/01", "jpg": b"1", "en.txt": b"one"},
        {"__key__": "02", "txt": b"two"},
        {"__key__": "03", "txt": b"three"},
        {"__key__": "02", "jpg": b"not beside its text"},
    ]


def test_long_names(tmp_path: Path) -> None:
    """They have a header before the header, which belongs to the sample."""
    long = "x" * 150
    reader = open_tars(write_bytes(f"{tmp_path}/a.tar", gnu_tar(("01.txt", b"1"), (f"{long}.txt", b"2"), ("03.txt", b"3"))))
    assert keys(reader) == ["01", long, "03"]


def test_two_members_of_one_ending(tmp_path: Path) -> None:
    reader = open_tars(write_bytes(f"{tmp_path}/a.tar", gnu_tar(("1.txt", b"a"), ("1.TXT", b"b"), ("2.txt", b"c"))))
    assert (
        refusal(lambda: reader.read(0), Reject).startswith("1: two members .txt (a sample is members that follow")
        and reader.read(1)["txt"] == b"c"
    )


def whole(tmp_path: Path) -> bytes:
    return read_bytes(write_tar(f"{tmp_path}/whole/a.tar", [pair(number) for number in range(5)]))


def other_words(self: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return NEXT(self)
    except tarfile.TarError as error:
        raise tarfile.ReadError("in other words") from error


def no_words(self: tarfile.TarFile) -> tarfile.TarInfo | None:
    """As Python 3.13 does for a damaged extended header: an end like any other."""
    try:
        return NEXT(self)
    except tarfile.TarError:
        return None


NEXT = tarfile.TarFile.next


@pytest.mark.parametrize("reader", [NEXT, other_words, no_words])
def test_a_shard_cut_off_anywhere_is_named(tmp_path: Path, reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever tarfile says of it, which differs between versions of Python."""
    data = whole(tmp_path)
    (index,) = open_tars(f"{tmp_path}/whole/a.tar")._indices
    offsets = index.load()
    monkeypatch.setattr(tarfile.TarFile, "next", reader)
    for cut in range(1, int(offsets[-1]) + 512, 256):
        url = write_bytes(f"{tmp_path}/cut/{cut}.tar", data[:cut])
        message = refusal(lambda url=url: open_tars(url), UserError)
        assert message.startswith(f"webdataset/a: {url}: {'cut off at byte' if cut >= 512 else 'not an uncompressed tar'}"), cut
    # The last zeros may be missing: every sample is there.
    assert len(keys(open_tars(write_bytes(f"{tmp_path}/padding.tar", data[: int(offsets[-1]) + 512])))) == 5


@pytest.mark.parametrize("names", [("01.txt", "02.txt"), ("x" * 150 + ".txt", "02.txt")])
def test_tars_put_end_to_end_are_read_to_their_end(tmp_path: Path, names: tuple[str, str]) -> None:
    """Also where both have a member of one name, and where one of them is empty."""
    tars = [gnu_tar(*((name, b"%d" % number) for name in names)) for number in range(2)]
    tars += [gnu_tar(), gnu_tar(("09.txt", b"9"))]
    reader = open_tars(write_bytes(f"{tmp_path}/a.tar", b"".join(tars)))
    contents = [reader.read(row)["txt"] for row in range(int(reader.starts[-1]))]
    assert contents == [b"0", b"0", b"1", b"1", b"9"]
    same = gnu_tar(("01.txt", b"0")) + gnu_tar(("01.txt", b"1"))
    assert keys(open_tars(write_bytes(f"{tmp_path}/b.tar", same))) == ["01", "01"]


@pytest.mark.parametrize("reader", [NEXT, other_words, no_words])
def test_a_second_tar_that_is_damaged_or_cut_off_is_named(tmp_path: Path, reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarfile.TarFile, "next", reader)
    first, second = gnu_tar(("1.txt", b"1")), gnu_tar(("2.txt", b"2"), ("3.txt", b"3"))
    for data, words in (
        (first + b"no tar" + bytes(10**4), f"damaged at byte {len(first)}, after 1 samples: what follows the end"),
        (first + second[:1024], "cut off at byte"),
        (first + second[:1500], "cut off at byte"),
        (first + second[:1024] + b"x" * 512 + second[1536:], f"damaged at byte {len(first) + 1024}, after 2 samples"),
    ):
        url = write_bytes(f"{tmp_path}/a.tar", data)
        assert refusal(lambda url=url: open_tars(url), UserError).startswith(f"webdataset/a: {url}: {words}")


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    data = bytearray(whole(tmp_path))
    (index,) = open_tars(f"{tmp_path}/whole/a.tar")._indices
    at = int(index.load()[2])
    data[at : at + 512] = bytes(range(256)) * 2
    message = refusal(lambda: open_tars(write_bytes(f"{tmp_path}/a.tar", bytes(data))), UserError)
    assert f"damaged at byte {at}, after 2 samples" in message


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"\x1f\x8b" + bytes(600)])
def test_what_is_no_tar(tmp_path: Path, data: bytes) -> None:
    assert "not an uncompressed tar" in refusal(lambda: open_tars(write_bytes(f"{tmp_path}/a.tar", data)), UserError)


def test_many_broken_shards_are_counted_in_one_line(tmp_path: Path) -> None:
    for number in range(10):
        write_bytes(f"{tmp_path}/{number}.tar", b"nothing" if number % 2 else whole(tmp_path))
    message = refusal(lambda: open_tars(f"{tmp_path}/*.tar"), UserError)
    assert "(and 2 more of 10 files)" in message and message.count("not an uncompressed tar") == 3


def energon_index(offsets: list[int]) -> bytes:
    """The layout of a ``.tar.idx``: starts of samples and the end of the last, 8 bytes each."""
    return b"".join(struct.pack("Q", offset) for offset in offsets)


def test_an_index_of_energon_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = whole(tmp_path)
    (index,) = open_tars(f"{tmp_path}/whole/a.tar")._indices
    offsets = index.load().tolist()
    url = write_bytes(f"{tmp_path}/a.tar", data)
    write_bytes(f"{url}.idx", energon_index(offsets))
    monkeypatch.setattr(tarfile.TarFile, "next", lambda self: pytest.fail("read through"))
    reader = open_tars(url)
    monkeypatch.undo()
    assert keys(reader) == [f"{number:06d}" for number in range(5)]


@pytest.mark.parametrize("change", ["short", "odd", "empty", "beyond", "unsorted"])
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, change: str) -> None:
    data = whole(tmp_path)
    (index,) = open_tars(f"{tmp_path}/whole/a.tar")._indices
    offsets = index.load().tolist()
    url = write_bytes(f"{tmp_path}/a.tar", data + bytes(40960 if change == "short" else 0))
    sidecar = {
        "short": energon_index(offsets),
        "odd": energon_index(offsets)[:-3],
        "empty": b"",
        "beyond": energon_index([*offsets, len(data)]),
        "unsorted": energon_index([offsets[1], offsets[0], *offsets[2:]]),
    }
    write_bytes(f"{url}.idx", sidecar[change])
    assert f"its index {url}.idx does not fit" in refusal(lambda: open_tars(url), UserError)


def test_a_shard_that_changes_under_a_run_is_a_reject(tmp_path: Path) -> None:
    url = write_bytes(f"{tmp_path}/a.tar", whole(tmp_path))
    reader = open_tars(url)
    write_bytes(url, bytes(len(whole(tmp_path)) // 2))
    assert "shorter" in refusal(lambda: reader.read(4), Reject)
    write_bytes(url, b"x" * 10**5)
    assert "damaged since the run began" in refusal(lambda: reader.read(4), Reject)


def test_a_damaged_kept_index_is_named(tmp_path: Path, cache: Path) -> None:
    url = write_tar(f"{tmp_path}/a.tar", [pair(0), pair(1)])
    open_tars(url)
    (kept,) = (cache / "shards").iterdir()
    kept.write_bytes(np.zeros(3, "<i8").tobytes())
    assert refusal(lambda: open_tars(url).read(0), UserError).startswith(f"{kept}: this index is damaged, delete it")


def test_a_huge_sample_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunalab.data.shards import tar

    monkeypatch.setattr(tar, "MAX_SAMPLE_BYTES", 2**20)
    reader = open_tars(write_bytes(f"{tmp_path}/a.tar", gnu_tar(("1.txt", bytes(2**21)), ("2.txt", b"b"))))
    assert refusal(lambda: reader.read(0), Reject) == "sample of more than 1 MiB" and reader.read(1)["txt"] == b"b"


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
@pytest.mark.parametrize("linked", [["1.jpg"], ["1.txt"], ["1.jpg", "1.txt"]])
def test_links_are_no_files_less(tmp_path: Path, kind: bytes, linked: list[str]) -> None:
    """tar writes a file that it meets under a second name as a link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("0.jpg", "0.txt", "1.jpg", "1.txt", "2.jpg", "2.txt"):
            info = tarfile.TarInfo(name)
            if name in linked:
                info.type, info.linkname = kind, "0.jpg"
                tar.addfile(info)
            else:
                info.size = 1
                tar.addfile(info, io.BytesIO(name[:1].encode()))
    url = write_bytes(f"{tmp_path}/a.tar", buffer.getvalue())
    reader = open_tars(url)
    assert reader.starts[-1] == 3 and reader.read(0)["jpg"] == b"0" and reader.read(2)["jpg"] == b"2"
    assert refusal(lambda: reader.read(1), Reject).startswith(
        f"{linked[0]} is a link to 0.jpg: write the shard with the file itself"
    )
    # The index of energon knows samples of files only.
    index = reader._index(0).tolist()
    write_bytes(f"{url}.idx", energon_index([one for one in index if one != index[1] or len(linked) < 2]))
    assert open_tars(url).read(0)["jpg"] == b"0"
