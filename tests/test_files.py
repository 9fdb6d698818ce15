"""Files appear whole, whoever else writes them."""

import threading
from pathlib import Path

from tunalab.files import write_atomically


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
