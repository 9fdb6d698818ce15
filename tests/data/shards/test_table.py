"""Rows of Parquet by number, decoded a row group at a time; files that lack what is needed."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import colour, decode, encoded, read_bytes, refusal, shown, write_bytes, write_parquet

from tunalab.data.documents import Reject
from tunalab.data.shards import table
from tunalab.data.shards.files import find_files
from tunalab.data.shards.schemas import open_finevision, open_text
from tunalab.data.shards.table import IMAGE, IMAGES, TEXT, TEXTS, TURNS, Column, TableReader
from tunalab.errors import UserError
from tunalab.settings.schema import FineVisionConfig, TextConfig

SCHEMA = pa.schema([("text", pa.string()), ("other", pa.int64())])


def open_table(*urls: str, columns: dict[str, Column] | None = None, kept: int = 1) -> TableReader:
    return TableReader("text/a", find_files(urls, "text/a"), columns or {"text": TEXT}, kept)


def write(url: str, count: int, first: int = 0, group: int = 3) -> str:
    return write_parquet(url, SCHEMA, [{"text": f"row {first + number}", "other": number} for number in range(count)], group)


@pytest.mark.parametrize("place", ["{tmp_path}", "memory://bucket"])
def test_rows_are_what_was_written(tmp_path: Path, memory: str, place: str) -> None:
    folder = place.format(tmp_path=tmp_path)
    write(f"{folder}/0.parquet", 7)
    write(f"{folder}/1.parquet", 0)
    write(f"{folder}/2.parquet", 4, first=7)
    reader = open_table(f"{folder}/*.parquet")
    assert set(reader.starts.tolist()) == {0, 3, 6, 7, 10, 11}
    for row in (10, 0, 7, 6, 3):
        assert reader.read(row) == {"text": f"row {row}"}, "and nothing of other columns"
    assert reader.where(8).endswith("/2.parquet row 2")


def test_row_groups_stay_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_table(write(f"{tmp_path}/a.parquet", 30), kept=3)
    decoded: list[int] = []
    real = TableReader._decode
    monkeypatch.setattr(TableReader, "_decode", lambda self, group: (decoded.append(group), real(self, group))[1])
    for row in [0, 1, 8, 2, 3, 4, 0, 9, 0, 8]:
        assert reader.read(row) == {"text": f"row {row}"}
    assert decoded == [0, 2, 1, 3, 2] and len(reader._tables) == 3, "the one not used for longest goes"


def test_schemas() -> None:
    image = pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])
    turns = pa.large_list(pa.struct([("user", pa.large_string()), ("assistant", pa.string_view()), ("n", pa.int8())]))
    fits: list[tuple[Column, Any]] = [
        (IMAGE, image),
        (IMAGES, pa.list_(image)),
        (IMAGES, pa.list_view(image)),
        (TURNS, turns),
        (TEXTS, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        (TEXT, pa.string()),
        (TEXT, pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        (TEXT, pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
    ]
    assert all(column.fits(kind) for column, kind in fits)
    unfit: list[tuple[Column, Any]] = [
        (IMAGE, pa.binary()),
        (IMAGE, pa.struct([("path", pa.string())])),
        (IMAGES, image),
        (TURNS, pa.list_(pa.struct([("user", pa.string())]))),
        (TEXTS, pa.string()),
        (TEXT, pa.list_(pa.string())),
        (TEXT, pa.int64()),
    ]
    assert not any(column.fits(kind) for column, kind in unfit)


def test_columns_that_are_missing_or_other_are_named_before_anything_is_read(tmp_path: Path) -> None:
    write(f"{tmp_path}/0.parquet", 3)
    url = write_parquet(f"{tmp_path}/1.parquet", pa.schema([("caption", pa.string())]), [{"caption": "a"}])
    message = refusal(lambda: open_table(f"{tmp_path}/*.parquet"), UserError)
    assert message == f"text/a: {url}: no column text (columns: caption)"
    message = refusal(lambda: open_table(f"{tmp_path}/0.parquet", columns={"other": TEXT}), UserError)
    assert "column other is int64, needed: string or list of turns" in message


def test_a_kept_index_vouches_for_its_columns_only(tmp_path: Path) -> None:
    url = write(f"{tmp_path}/a.parquet", 3)
    open_table(url)
    assert "no column images" in refusal(lambda: open_table(url, columns={"images": IMAGES}), UserError)


def test_what_is_no_parquet_or_cut_off(tmp_path: Path) -> None:
    data = read_bytes(write(f"{tmp_path}/a.parquet", 30))
    for number, broken in enumerate([b"", b"PAR1", b"nothing" * 100, data[:-1], data[: len(data) // 2], data[:8]]):
        url = write_bytes(f"{tmp_path}/broken{number}.parquet", broken)
        assert f"{url}: no whole Parquet file" in refusal(lambda url=url: open_table(url), UserError)


def test_damaged_row_groups_are_rejects(tmp_path: Path) -> None:
    url = write(f"{tmp_path}/a.parquet", 9)
    data = bytearray(read_bytes(url))
    at = data.index(b"row 3")
    data[at - 40 : at + 10] = b"\xff" * 50
    reader = open_table(write_bytes(url, bytes(data)))
    assert refusal(lambda: reader.read(4), Reject).startswith("row group 1 cannot be read: ")
    assert reader.read(8) == {"text": "row 8"}


def test_a_lost_network_is_no_broken_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_table(write(f"{tmp_path}/a.parquet", 9))

    def fail(self: object, *arguments: object, **more: object) -> None:
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", fail)
    with pytest.raises(ConnectionResetError):
        reader.read(0)


def test_row_groups_too_large_to_read_a_row_of_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = write(f"{tmp_path}/a.parquet", 100, group=100)
    monkeypatch.setattr(table, "MAX_GROUP_BYTES", 500)
    assert "write the file again with smaller row groups" in refusal(lambda: open_table(url), UserError)


def in_latin1(*texts: str) -> pa.Array:
    """A column of strings whose bytes are no UTF-8: some writers do not look."""
    stored = pa.array([text.encode("latin-1") for text in texts], pa.binary())
    return pa.StringArray.from_buffers(len(texts), stored.buffers()[1], stored.buffers()[2])


def write_columns(url: str, names: list[str], *columns: pa.Array) -> str:
    buffer = io.BytesIO()
    pq.write_table(pa.table(list(columns), names=names), buffer)
    return write_bytes(url, buffer.getvalue())


def test_text_that_is_no_utf8_is_a_reject(tmp_path: Path) -> None:
    texts = open_text(
        "text/a", TextConfig(urls=[write_columns(f"{tmp_path}/a.parquet", ["text"], in_latin1("b", "é"))], window=0), 0
    )
    assert shown(texts.document(0)) == ["text", ("b", True)]
    assert refusal(lambda: texts.document(1), Reject).endswith("a.parquet row 2: text is not UTF-8")


def test_parts_that_are_not_needed_may_be_anything(tmp_path: Path) -> None:
    """A path of other bytes; dates that Python does not know; two fields of one name."""
    image = pa.StructArray.from_arrays([pa.array([encoded(1), None]), in_latin1("é", "ü")], ["bytes", "path"])
    far = pa.array([10**17, 10**9]).cast(pa.timestamp("us", tz="Mars/Base"))
    turn = pa.StructArray.from_arrays(
        [pa.array(["a?"] * 2), pa.array(["b"] * 2).dictionary_encode(), far, pa.array([1, 2]), pa.array([3, 4])],
        ["user", "assistant", "at", "score", "score"],
    )
    each = pa.array([0, 1, 2], pa.int32())
    columns = [pa.ListArray.from_arrays(each, array) for array in (image, turn)]
    url = write_columns(f"{tmp_path}/a.parquet", ["images", "texts"], *columns)
    pictures = open_finevision("finevision/a", FineVisionConfig(urls=[url], window=0), decode, 0)
    assert shown(pictures.document(0)) == ["vqa", (colour(1), False), ("a?", False), ("b", True)]
    assert "image 1 has no bytes" in refusal(lambda: pictures.document(1), Reject)


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    a = pa.array(["a"])
    url = write_columns(f"{tmp_path}/a.parquet", ["text", "note", "note"], a, a, a)
    assert open_table(url).read(0) == {"text": "a"}
    assert open_text("text/a", TextConfig(urls=[url], window=0), 0).rows == 1
    url = write_columns(f"{tmp_path}/b.parquet", ["text", "text"], a, a)
    assert "column text is there twice" in refusal(lambda: open_table(url), UserError)
    turns = pa.StructArray.from_arrays([pa.array(["user"]), pa.array(["a?"]), pa.array(["b?"])], ["role", "content", "content"])
    url = write_columns(f"{tmp_path}/c.parquet", ["text"], pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), turns))
    assert "needed: string or list of turns" in refusal(lambda: open_table(url), UserError)
