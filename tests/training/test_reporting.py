"""What a run says of the data it read: the mix it came to, what was left out, and no more evaluations with more data processes."""

import json
from pathlib import Path

import pytest

from tests.training.conftest import MIX, quick_config
from tunalab.data.stream import COUNTS
from tunalab.records.log import read_rows
from tunalab.records.record import read_record
from tunalab.settings.schema import StageConfig
from tunalab.training.callbacks import Reporting, what_was_read
from tunalab.training.module import Progress
from tunalab.training.run import train


def test_the_record_says_the_mix_that_was_read_and_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = quick_config(data__workers=3, data__row_tokens=80, data__rows=3, data__unfit_share=0.9)
    assert train(config, tmp_path) == 0
    record = read_record(tmp_path / "record.json")
    # As with any number of data processes: one evaluation at each planned count, the last with the step that reaches the budget.
    assert len(record.points) == 2
    assert 2700 <= record.totals.tokens == record.points[-1].tokens < 2700 + 3 * 80
    mix = record.data["mix"]
    assert list(mix) == ["connector", "pretrain", "sft"]
    assert mix["connector"]["requested"] == MIX and mix["sft"]["requested"] == {"scenes/vqa": 1.0}
    assert sum(sum(stage["tokens"].values()) for stage in mix.values()) == record.totals.tokens
    assert all(set(stage["documents"]) == set(MIX) for stage in mix.values())
    lost = record.data["left_out"]
    unfit = {source: counts["unfit"] for source, counts in lost.items() if counts["unfit"]}
    assert unfit and all(counts["broken"] == 0 and counts["asked"] >= counts["unfit"] for counts in lost.values())
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: scenes/")]
    assert sorted(line.split(": ")[1] for line in printed) == sorted(
        source for source in unfit if unfit[source] >= 0.01 * lost[source]["asked"]
    )
    last = read_rows(tmp_path)[-1].metrics
    assert {name.removeprefix("data/unfit/") for name in last if name.startswith("data/unfit/")} <= set(unfit)
    assert any(name.startswith("data/unfit/") for name in last)
    assert json.loads((tmp_path / "record.json").read_text())["data"] == record.data


def progress(asked: int, unfit: int, tokens: int = 0) -> Progress:
    numbers = {"documents": asked - unfit, "tokens": tokens, "asked": asked, "broken": 0, "unfit": unfit}
    return Progress(tokens=tokens, read={"only": {"text/books": [numbers[kind] for kind in COUNTS]}})


@pytest.mark.parametrize(
    ("asked", "unfit", "at_once", "at_the_end"), [(900, 10, 1, 1), (1001, 10, 0, 0), (50, 1, 0, 1), (9, 0, 0, 0)]
)
def test_from_one_percent_on_it_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: int, unfit: int, at_once: int, at_the_end: int
) -> None:
    reporting = Reporting(tmp_path, 1000)
    printed = []
    for least in (10, 10, 1):
        reporting._warn(progress(asked, unfit), least)
        reporting.print_lines()
        printed += capsys.readouterr().out.splitlines()
        assert len(printed) == (at_the_end if least == 1 else at_once)
    for line in printed:
        assert line.startswith(
            f"warning: text/books: {unfit} of {asked} documents do not fit and are left out ({unfit / asked:.1%}; "
        )


def test_a_run_that_began_before_mixes_were_counted_claims_none() -> None:
    stages = {"only": StageConfig(mix={"text/books": 1.0, "none": 0.0})}
    assert what_was_read(Progress(tokens=500), stages) == {} == what_was_read(Progress(), stages)
    partly = progress(10, 0, tokens=300)
    partly.tokens = 500
    assert what_was_read(partly, stages) == {}
    assert what_was_read(progress(10, 2, tokens=300), stages)["mix"]["only"] == {
        "requested": {"text/books": 1.0},
        "documents": {"text/books": 8},
        "tokens": {"text/books": 300},
    }
