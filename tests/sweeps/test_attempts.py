"""What a run directory says of its attempts, whoever died while it was written."""

import errno
import json
import os
from pathlib import Path

import pytest

from tunalab.records.log import Status, write_status
from tunalab.sweeps.cells import ATTEMPTS_FILE, begin, end, forgive, newest_step, read_history, settle, started


def saved(run_dir: Path, step: int) -> None:
    (run_dir / "checkpoints" / f"step-{step:09d}").mkdir(parents=True)


def killed(run_dir: Path, times: int = 1) -> None:
    for _ in range(times):
        begin(run_dir, "local", "1")
        end(run_dir, "killed", "signal 9")


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_history(tmp_path).attempts == () and read_history(tmp_path).open is None
    begin(tmp_path, "local", "4711")
    running = read_history(tmp_path).open
    assert running is not None and (running.launcher, running.job, running.how) == ("local", "4711", None)
    write_status(tmp_path, Status(120, 1000, 4.0, 220.0, "pretrain"))
    saved(tmp_path, 30)
    end(tmp_path, "preempted")
    begin(tmp_path, "slurm", "12_3")
    end(tmp_path, "finished")
    first, second = read_history(tmp_path).attempts
    assert (first.how, first.tokens, first.saved, second.launcher) == ("preempted", 120, 30, "slurm")
    assert first.began <= first.ended <= second.began  # type: ignore[operator]
    assert read_history(tmp_path).summary() == {"starts": 2, "preempted": 1}


def test_the_number_of_the_process_comes_after_the_beginning(tmp_path: Path) -> None:
    started(tmp_path, "1")  # its beginning is torn: nothing to add to
    begin(tmp_path, "local")
    running = read_history(tmp_path).open
    assert running is not None and running.job == ""
    started(tmp_path, "4711")
    running = read_history(tmp_path).open
    assert running is not None and running.job == "4711"


def test_an_attempt_that_died_without_a_word_is_recognised_once(tmp_path: Path) -> None:
    begin(tmp_path, "local", "4711")
    assert settle(tmp_path, finished=False).attempts[0].how == "killed"
    lines = (tmp_path / ATTEMPTS_FILE).read_text()
    assert settle(tmp_path, finished=False).open is None and (tmp_path / ATTEMPTS_FILE).read_text() == lines
    begin(tmp_path, "local", "4712")  # its driver died, it finished alone
    assert [attempt.how for attempt in settle(tmp_path, finished=True).attempts] == ["killed", "finished"]


def test_a_torn_last_line_costs_itself_and_nothing_else(tmp_path: Path) -> None:
    killed(tmp_path)
    begin(tmp_path, "local", "2")
    file = tmp_path / ATTEMPTS_FILE
    file.write_bytes(file.read_bytes()[:-20])
    history = read_history(tmp_path)
    assert history.unreadable == 1 and len(history.attempts) == 1 and history.open is None
    killed(tmp_path)
    history = read_history(tmp_path)
    assert history.unreadable == 1 and history.count("killed") == 2


def test_an_end_whose_begin_is_torn_counts(tmp_path: Path) -> None:
    (tmp_path / ATTEMPTS_FILE).write_text('{"event": "beg\n')
    end(tmp_path, "failed", "ValueError")
    (attempt,) = read_history(tmp_path).attempts
    assert attempt.began is None and attempt.how == "failed"


@pytest.mark.parametrize("line", ["[]", "7", '{"time": 1}', '{"event": "begun", "time": 1, "colour": "red"}', "\x00\x00"])
def test_lines_of_no_sense_are_counted(tmp_path: Path, line: str) -> None:
    (tmp_path / ATTEMPTS_FILE).write_text(line + "\n")
    assert read_history(tmp_path).unreadable == 1 and not read_history(tmp_path).attempts


def test_kills_in_vain_are_bounded_and_progress_counts_anew(tmp_path: Path) -> None:
    killed(tmp_path, 3)
    assert read_history(tmp_path).given_up(3) is None and read_history(tmp_path).given_up(2) is not None
    saved(tmp_path, 10)
    killed(tmp_path, 4)  # the first of them left the checkpoint
    reason = read_history(tmp_path).given_up(3)
    assert reason == "signal 9 (4 times without getting further)" and read_history(tmp_path).given_up(4) is None
    forgive(tmp_path)
    assert read_history(tmp_path).given_up(0) is None
    killed(tmp_path)
    assert read_history(tmp_path).given_up(0) == "signal 9"


def test_an_error_of_its_own_is_tried_once_more(tmp_path: Path) -> None:
    for step in (10, 20):
        saved(tmp_path, step)
        begin(tmp_path, "local", "1")
        end(tmp_path, "failed", "ValueError: nan")
        assert read_history(tmp_path).given_up() is None
    begin(tmp_path, "local", "1")
    end(tmp_path, "failed", "ValueError: nan")
    assert read_history(tmp_path).given_up() == "ValueError: nan (2 times without getting further)"


def test_stops_and_preemptions_speak_neither_for_nor_against_a_cell(tmp_path: Path) -> None:
    for how in ("stopped", "preempted", "preempted"):
        begin(tmp_path, "slurm", "1")
        end(tmp_path, how)  # type: ignore[arg-type]
    assert read_history(tmp_path).given_up(0) is None and read_history(tmp_path).count("preempted") == 2
    killed(tmp_path, 2)
    begin(tmp_path, "slurm", "1")
    end(tmp_path, "preempted")
    assert len(read_history(tmp_path).in_vain()) == 2


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(tmp_path)
    monkeypatch.setattr(os, "write", lambda descriptor, line: len(line) // 2)
    with pytest.raises(OSError) as caught:
        begin(tmp_path, "local", "2")
    assert caught.value.errno == errno.ENOSPC


def test_every_line_is_json(tmp_path: Path) -> None:
    killed(tmp_path, 2)
    events = [json.loads(line) for line in (tmp_path / ATTEMPTS_FILE).read_text().splitlines()]
    assert [event["event"] for event in events] == ["begun", "ended"] * 2


def test_the_newest_checkpoint_is_found_by_name(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    for step in (90, 110):
        saved(tmp_path, step)
    (tmp_path / "checkpoints" / ".step-000000200.17.tmp").mkdir()
    (tmp_path / "checkpoints" / "step-broken").mkdir()
    assert newest_step(tmp_path) == 110
