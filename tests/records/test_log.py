import pytest

from tunalab.errors import UserError
from tunalab.records.log import ROWS, TRAINING_LOG, Row, append_row, is_due, read_rows, rewind


def row(tokens):
    return Row(tokens, 1700000000.125, {"train/text": 0.1 + tokens / 3, "train/flow": 2.0})


def test_rows_come_back_as_they_were(tmp_path):
    assert read_rows(tmp_path) == [] and rewind(tmp_path, 0) == []
    rows = [row(tokens) for tokens in (10, 20, 30)]
    for one in rows:
        append_row(tmp_path, one)
    assert read_rows(tmp_path) == rows


def test_rows_past_the_checkpoint_are_dropped_with_a_line_cut_by_a_kill(tmp_path):
    for tokens in (10, 20, 30):
        append_row(tmp_path, row(tokens))
    with (tmp_path / TRAINING_LOG).open("a") as stream:
        stream.write('{"tokens": 40, "ti')
    assert [one.tokens for one in read_rows(tmp_path)] == [10, 20, 30]
    assert rewind(tmp_path, 20) == [row(10), row(20)]
    append_row(tmp_path, row(30))
    assert read_rows(tmp_path) == [row(10), row(20), row(30)]
    assert rewind(tmp_path, 0) == [] and (tmp_path / TRAINING_LOG).read_text() == ""


def test_a_broken_line_inside_is_named(tmp_path):
    append_row(tmp_path, row(10))
    with (tmp_path / TRAINING_LOG).open("a") as stream:
        stream.write("[]\n")
    append_row(tmp_path, row(20))
    with pytest.raises(UserError, match="line 2"):
        read_rows(tmp_path)


def test_a_row_is_due_at_shares_of_the_budget_whatever_the_steps():
    budget = 10 * ROWS
    for step in (3, 7, 10, 25, 4000):
        ends = [end for end in range(step, budget + step, step) if is_due(end - step, end, budget)]
        assert len(ends) == min(ROWS, -(-budget // step)) and ends[-1] >= budget
