"""Texts and conversations in Parquet and JSON lines, whole or in pieces."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from shard_files import IMAGE, cell, refusal, shown, write_bytes, write_parquet

from tunalab.data.documents import Reject
from tunalab.data.shards import schemas as module
from tunalab.data.shards.corpus import ShardedCorpus
from tunalab.data.shards.schemas import open_text, pieces
from tunalab.data.sources import probe
from tunalab.errors import UserError
from tunalab.settings.schema import TextConfig


def corpus(*urls: str, **settings: Any) -> ShardedCorpus:
    return open_text("text/a", TextConfig(urls=list(urls), **{"window": 0, **settings}), seed=0)


def write_lines(url: str, *lines: Any) -> str:
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return write_bytes(url, b"\n".join(texts) + b"\n")


@pytest.mark.parametrize("place", ["{tmp_path}", "memory://bucket"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_documents_are_what_was_written(tmp_path: Path, memory: str, place: str, ending: str) -> None:
    folder = place.format(tmp_path=tmp_path)
    for shard in range(3):
        rows = [{"id": number, "body": f" text {10 * shard + number}\n"} for number in range(10)]
        if ending == "parquet":
            write_parquet(f"{folder}/{shard}.parquet", pa.schema([("id", pa.int64()), ("body", pa.string())]), rows)
        else:
            write_lines(f"{folder}/{shard}.jsonl", *rows)
    texts = corpus(f"{folder}/*.{ending}", column="body")
    assert texts.length == 30
    assert [shown(texts.document(index)) for index in range(30)] == [["text", (f"text {n}", True)] for n in range(30)]


@pytest.mark.parametrize("names", [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
def test_conversations(tmp_path: Path, names: tuple[str, ...]) -> None:
    role, content, user, assistant = names
    talk = [{role: user, content: "a?"}, {role: assistant, content: "b"}]
    expected = ["text", ("a?", False), ("b", True)]
    assert shown(corpus(write_lines(f"{tmp_path}/a.jsonl", {"talk": talk}), column="talk").document(0)) == expected
    kind = pa.list_(pa.struct([(role, pa.string()), (content, pa.string())]))
    url = write_parquet(f"{tmp_path}/a.parquet", pa.schema([("talk", kind)]), [{"talk": talk}])
    assert shown(corpus(url, column="talk").document(0)) == expected


def test_long_texts_are_read_in_pieces_one_an_epoch(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(100)]
    texts = corpus(write_lines(f"{tmp_path}/a.jsonl", {"text": " ".join(words)}, {"text": "short"}), max_characters=100)
    read = [shown(texts.document(2 * epoch))[1][0] for epoch in range(20)]
    assert all(len(piece) <= 100 for piece in read)
    count = len(set(read))
    assert read[count : 2 * count] == read[:count] and sorted(" ".join(read[:count]).split()) == sorted(words)
    assert shown(texts.document(1)) == ["text", ("short", True)]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_texts_keep_their_indentation_and_lose_their_mark(tmp_path: Path, ending: str) -> None:
    rows = [{"text": "\ufeff    def f():\n        return 1\n\n"}, {"text": "\n\tx\n"}, {"text": " a word"}]
    if ending == "parquet":
        url = write_parquet(f"{tmp_path}/a.parquet", pa.schema([("text", pa.string())]), rows)
    else:
        url = write_lines(f"{tmp_path}/a.jsonl", *rows)
    texts = corpus(url)
    assert [shown(texts.document(n))[1][0] for n in range(3)] == ["    def f():\n        return 1", "\tx", "a word"]


def test_blank_lines_are_nothing(tmp_path: Path) -> None:
    texts = corpus(write_bytes(f"{tmp_path}/a.jsonl", b'\xef\xbb\xbf\n\n{"text": "a"}\r\n \r\n\r\n{"text": "b"}\n\n{"text": "c"}'))
    assert texts.length == 3 and [shown(texts.document(n))[1][0] for n in range(3)] == ["a", "b", "c"]


@pytest.mark.parametrize("key", ["images", "image", "Video", "audio_path"])
def test_conversations_whose_images_would_be_left_out_are_rejects(tmp_path: Path, key: str) -> None:
    talk = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    texts = corpus(write_lines(f"{tmp_path}/a.jsonl", {"text": talk, key: ["a.png"]}, {"text": talk, key: []}))
    assert f"key {key!r} names what is not read" in refusal(lambda: texts.document(0), Reject)
    assert shown(texts.document(1)) == ["text", ("a?", False), ("b", True)]
    # A text is whole without the picture of the page it was taken from.
    assert shown(corpus(write_lines(f"{tmp_path}/b.jsonl", {"text": "a", key: "a.png"})).document(0)) == ["text", ("a", True)]


@pytest.mark.parametrize(
    ("key", "kind", "some", "none"),
    [
        ("images", pa.list_(IMAGE), [cell(1)], []),
        ("Image", IMAGE, cell(1), None),
        ("video_path", pa.string(), "a.mp4", None),
        ("audio", pa.binary(), b"a", None),
    ],
)
def test_conversations_of_a_table_whose_images_would_be_left_out(
    tmp_path: Path, key: str, kind: pa.DataType, some: Any, none: Any
) -> None:
    """Unless no row has any, or the column is a text, which is whole without them."""
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    talk = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    schema = pa.schema([("text", turns), (key, kind), ("image_size", pa.int64())])
    without = {"text": talk, key: none, "image_size": 7}
    assert corpus(write_parquet(f"{tmp_path}/a.parquet", schema, [without] * 5)).length == 5
    url = write_parquet(f"{tmp_path}/b.parquet", schema, [without] * 4 + [{**without, key: some}])
    message = refusal(lambda: corpus(url), UserError)
    assert message.startswith(f"text/a: {url}: column {key!r} names what is not read, and would be left out")
    plain = pa.schema([("text", pa.string()), (key, kind)])
    assert corpus(write_parquet(f"{tmp_path}/c.parquet", plain, [{"text": "a", key: some}])).length == 1


@pytest.mark.parametrize("name", ["a.JSONL", "a.Json", "a.NDJSON", "a.PARQUET", "a.Parquet"])
def test_endings_in_any_case(tmp_path: Path, name: str) -> None:
    url = f"{tmp_path}/{name}"
    if "q" in name.lower():
        write_parquet(url, pa.schema([("text", pa.string())]), [{"text": "a"}])
    else:
        write_lines(url, {"text": "a"})
    assert shown(corpus(url).document(0)) == ["text", ("a", True)]


def test_pieces_keep_the_indentation_of_their_first_line() -> None:
    text = "if a:\n    b = 1\n    c = 2"
    assert pieces(text, 16) == ["if a:\n    b = 1", "    c = 2"]
    assert pieces("    word" + " word" * 3, 9) == ["    word", "word word", "word"]
    assert pieces("one\n" + " " * 30 + "two", 10) == ["one", "two"]
    assert pieces("        unbroken", 12) == ["        unbr", "oken"]


def test_pieces() -> None:
    assert pieces("one two three", 7) == ["one two", "three"]
    assert pieces("one two", 7) == ["one two"] and pieces("one two ", 7) == ["one two"]
    assert pieces("unbroken", 3) == ["unb", "rok", "en"]
    assert pieces("a\n\n\nb", 2) == ["a", "b"]


def test_a_file_of_many_lines_has_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LINES_A_BLOCK", 4)
    texts = corpus(write_lines(f"{tmp_path}/a.jsonl", *({"text": str(number)} for number in range(10))), window=1)
    read = [int(shown(texts.document(at))[1][0]) for at in range(10)]
    assert sorted(read) == list(range(10)) and texts._reader.starts.tolist() == [0, 4, 8, 10]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[", "(a JSON array?"),
        (b'{"text": "a"},', "(a JSON array?"),
        (b'[{"text": "a"}]', "not list (a JSON array?"),
        ([1], "must be an object"),
        ({"body": "a"}, "no key 'text'; keys: body"),
        ({"text": None}, "text must be a string, not NoneType"),
        ({"text": " \n"}, "empty text"),
        ({"text": [{"role": "user", "content": "a?"}]}, "alternate"),
        ({"text": []}, "at least one turn"),
    ],
)
def test_broken_lines_are_rejects(tmp_path: Path, line: Any, reason: str) -> None:
    texts = corpus(write_lines(f"{tmp_path}/a.jsonl", {"text": "a"}, line, {"text": "b"}))
    message = refusal(lambda: texts.document(1), Reject)
    assert message.startswith(f"{tmp_path}/a.jsonl line 2: ") and reason in message
    assert shown(texts.document(2)) == ["text", ("b", True)]


def test_too_long_a_line_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 2**20)
    texts = corpus(write_lines(f"{tmp_path}/a.jsonl", {"text": "a" * 2**21}, {"text": "b"}))
    assert "line of more than 1 MiB" in refusal(lambda: texts.document(0), Reject)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.jsonl", "a.txt", "a.jsonl.gz"):
        write_bytes(f"{tmp_path}/{name}", b"{}\n")
    for names, endings in ((["a.txt"], ".txt"), (["a.jsonl.gz"], ".gz"), (["a.jsonl", "a.parquet"], ".jsonl, .parquet")):
        message = refusal(lambda names=names: corpus(*(f"{tmp_path}/{name}" for name in names)), UserError)
        assert message.startswith(f"text/a: files of {endings}: choices: all .parquet, or all .jsonl")


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"image": "a.png"}, "turn 2: key 'image' names what is not read"),
        ({"images": ["a.png"]}, "turn 2: key 'images' names what is not read"),
        ({"tool_calls": [{"name": "look"}]}, "turn 2: key 'tool_calls' holds what is not read"),
        ({"function_call": {"name": "look"}}, "turn 2: key 'function_call' holds what is not read"),
    ],
)
def test_turns_that_hold_more_than_their_text(tmp_path: Path, ending: str, more: dict, reason: str) -> None:
    (key,) = more
    sound = [{"role": "user", "content": "a?", key: None}, {"role": "assistant", "content": "b", key: None}]
    rows = [{"text": sound}, {"text": [sound[0], {**sound[1], **more}]}]
    url = f"{tmp_path}/a.{ending}"
    if ending == "parquet":
        table = pa.table({"text": [row["text"] for row in rows]})
        write_parquet(url, table.schema, rows)
    else:
        write_lines(url, *rows)
    texts = corpus(url)
    assert shown(texts.document(0)) == ["text", ("a?", False), ("b", True)]
    assert reason in refusal(lambda: texts.document(1), Reject)


@pytest.mark.parametrize("key", ["a\nb", "\x1b[31m", "x" * 100_000, "\u2028", "\udc80"])
def test_reasons_that_quote_odd_data_are_one_line(tmp_path: Path, key: str) -> None:
    texts = corpus(write_lines(f"{tmp_path}/a.jsonl", {key: 1}))
    reason = refusal(lambda: texts.document(0), Reject)
    assert reason.isprintable() and len(reason) <= 500 and f"{tmp_path}/a.jsonl line 1: no key 'text'; keys: " in reason
    assert refusal(lambda: probe(texts), UserError).isprintable()
