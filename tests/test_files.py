"""Files appear whole, whoever else writes them."""

import json
import os
import threading
from pathlib import Path

from tunalab.files import append_line, appended_lines, lock, locked, write_atomically


def test_threads_of_one_process_that_write_the_same_file(tmp_path: Path) -> None:
    path, wrong = tmp_path / "index.npy", []

    def write(letter: bytes) -> None:
        for _ in range(40):
            try:
                write_atomically(path, letter * 1000)
                content = path.read_bytes()
            except OSError as error:
                content = repr(error).encode()
            if content not in (b"a" * 1000, b"b" * 1000):
                wrong.append(content[:100])

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert [file.name for file in tmp_path.iterdir()] == ["index.npy"]


def test_a_torn_line_costs_itself_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    assert appended_lines(path) == appended_lines(path, torn="cut") == []
    append_line(path, {"é": 1})
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"a": ')
    whole = ['{"\\u00e9": 1}']
    assert appended_lines(path) == whole and appended_lines(path, torn="keep") == [*whole, '{"a": ']
    append_line(path, [2], flush=True)
    assert appended_lines(path) == appended_lines(path, torn="keep") == [*whole, '{"a": ', "[2]"]
    path.write_text(f"{whole[0]}\n[2", encoding="utf-8")
    assert list(map(json.loads, appended_lines(path, torn="cut"))) == [{"é": 1}]
    assert path.read_text(encoding="utf-8") == f"{whole[0]}\n"


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"):
        other = os.open(tmp_path / "lock", os.O_RDONLY)
        assert not lock(other, wait=False) and not lock(other, wait=False, shared=True)
    assert lock(other, wait=False)
    os.close(other)
