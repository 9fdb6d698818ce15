"""Files are indexed once, also by several processes that begin together, and told of in their order."""

import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tunalab.data.shards import corpus as indexing
from tunalab.data.shards.corpus import Damaged, index_files
from tunalab.data.shards.files import ShardFile
from tunalab.errors import UserError

FILES = [ShardFile(f"memory:///{number:03}.tar", 100, "mtime=1") for number in range(120)]


def number_of(file: ShardFile) -> int:
    return int(file.url[-7:-4])


def test_two_ranks_share_the_work_through_their_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "_THREADS", 2)
    made: Counter[int] = Counter()
    found: dict[int, list[int]] = {}

    def build(file: ShardFile) -> np.ndarray:
        made[number_of(file)] += 1
        time.sleep(0.005)
        return np.array([number_of(file)])

    def rank(number: int) -> None:
        found[number] = [int(index.load()[0]) for index in index_files("pairs", FILES, "tar", build)]

    ranks = [threading.Thread(target=rank, args=(number,)) for number in (0, 1)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert found == {0: list(range(120)), 1: list(range(120))}
    assert len(made) == 120 and made.total() < 180, "in the same order both would make nearly all"


def test_broken_files_are_told_in_their_order(cache: Path) -> None:
    def build(file: ShardFile) -> np.ndarray:
        if number_of(file) % 2:
            raise Damaged("cut off")
        return np.array([0])

    told = "; ".join(f"memory:///{number:03}.tar: cut off" for number in (1, 3, 5))
    with pytest.raises(UserError) as caught:
        index_files("pairs", FILES, "tar", build)
    assert str(caught.value) == f"pairs: {told} (and 57 more of 120 files)"
