import pytest

from tunalab.data.packing import micro_batches
from tunalab.errors import UserError
from tunalab.settings.schema import DataConfig


def data(**settings: int) -> DataConfig:
    return DataConfig(rows=2, row_tokens=1024, **settings)


def test_a_step_has_the_same_size_at_any_number_of_ranks() -> None:
    for ranks in (1, 2, 4, 8):
        assert micro_batches(data(step_tokens=16384), ranks) * ranks * 2 * 1024 == 16384


def test_without_the_setting_micro_batches_are_counted() -> None:
    assert [micro_batches(data(accumulate=3), ranks) for ranks in (1, 8)] == [3, 3]


@pytest.mark.parametrize(
    ("settings", "ranks", "message"),
    [
        ({"step_tokens": 16384}, 3, r"not a multiple of 6144 \(3 ranks x data.rows=2 x data.row_tokens=1024\)"),
        ({"step_tokens": 1024}, 1, "not a multiple of 2048"),
        ({"step_tokens": 16384, "accumulate": 2}, 1, "keep one"),
    ],
)
def test_what_does_not_come_to_it_is_refused(settings: dict[str, int], ranks: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        micro_batches(data(**settings), ranks)
