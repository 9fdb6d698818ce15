"""Every epoch visits every row once, near each other in time what lies near each other."""

from itertools import pairwise

import numpy as np
import pytest

from tunalab.data.shards.corpus import BlockOrder

SIZES = [5, 0, 7, 1, 12, 0, 3, 9, 4, 0]


def order(sizes: list[int] = SIZES, window: int = 3, streams: int = 1, seed: int = 0, key: int = 1) -> BlockOrder:
    return BlockOrder(np.concatenate([[0], np.cumsum(sizes)]), window, streams, seed, key)


def epoch(of: BlockOrder, number: int = 0) -> list[int]:
    return [of.row(number, at) for at in range(of.rows)]


@pytest.mark.parametrize("window", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("streams", [1, 2, 3, 7, 41, 1000])
def test_every_epoch_is_a_permutation(window: int, streams: int) -> None:
    for number in (0, 1, 5):
        assert sorted(epoch(order(window=window, streams=streams), number)) == list(range(sum(SIZES)))


def test_a_function_of_seed_source_and_epoch() -> None:
    first = order()
    rows = epoch(first)
    assert rows != epoch(first, 1) and rows == epoch(first), "what is remembered of another epoch changes nothing"
    assert rows == epoch(order()) != epoch(order(seed=1))
    assert rows != epoch(order(key=2))
    shuffled = order()
    for at in np.random.default_rng(0).permutation(len(rows)):
        assert shuffled.row(0, int(at)) == rows[at]


def test_windows_hold_whole_blocks() -> None:
    sizes = [10] * 12
    rows = epoch(order(sizes, window=4))
    for start in range(0, 120, 40):
        blocks = {row // 10 for row in rows[start : start + 40]}
        assert len(blocks) == 4
    assert [row // 10 for row in rows] != sorted(row // 10 for row in rows)
    assert any(abs(a - b) != 1 for a, b in pairwise(rows[:40])), "rows of a window are shuffled"


def test_each_stream_has_blocks_of_its_own() -> None:
    """Lanes read every fourth position; with four streams no block but those at the ends of a run is read by two of them."""
    of = order([10] * 40, window=2, streams=4)
    blocks = [{of.row(0, at) // 10 for at in range(lane, 400, 4)} for lane in range(4)]
    assert [len(own) for own in blocks] == [10] * 4 and len(set().union(*blocks)) == 40
    spread = order([10] * 40, window=2, streams=1)
    assert all(len({spread.row(0, at) // 10 for at in range(lane, 400, 4)}) > 30 for lane in range(4))


def test_a_hundred_million_rows_cost_little() -> None:
    of = order([100_000] * 1000, window=8)
    assert len({of.row(0, at) for at in range(1000)}) == 1000
    assert sum(expected.nbytes for expected in of._windows.values()) < 10e6
