"""Counting, the limit, and a file that a resumed run continues without repeating itself."""

import json
from pathlib import Path

import pytest
from reading import read

from tunalab.data.documents import Document, Reject, Text
from tunalab.data.rejects import RejectLog
from tunalab.errors import UserError


class Bad:
    """Rejects the listed indices (modulo the length)."""

    def __init__(self, bad: set[int], length: int | None = None, name: str = "bad") -> None:
        self.bad, self.length, self.name = bad, length, name

    def document(self, index: int) -> Document:
        at = index if self.length is None else index % self.length
        if at in self.bad:
            raise Reject(f"broken\n at {at}")
        return Document("text", (Text(str(index), target=True),))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_counts_and_lines(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "run" / "rejects.jsonl", limit=0.5)
    got = [read(Bad({1, 3}), index, log) for index in range(6)]
    assert [document is None for document in got] == [False, True, False, True, False, False]
    assert (log.seen, log.rejected) == (6, 2)
    assert lines(log.path) == [
        {"corpus": "bad", "index": 1, "reason": "broken at 1"},
        {"corpus": "bad", "index": 3, "reason": "broken at 3"},
    ]


def test_no_file_without_rejects(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl")
    read(Bad(set()), 0, log)
    assert not log.path.exists()


def test_other_errors_are_not_rejects(tmp_path: Path) -> None:
    class Buggy(Bad):
        def document(self, index: int) -> Document:
            raise ZeroDivisionError

    log = RejectLog(tmp_path / "rejects.jsonl")
    with pytest.raises(ZeroDivisionError):
        read(Buggy(set()), 0, log)
    assert (log.seen, log.rejected) == (0, 0)


def test_limit_waits_for_the_minimum(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.01, minimum=100)
    corpus = Bad({0, 1})
    for index in range(99):
        read(corpus, index, log)
    with pytest.raises(UserError) as caught:  # an accepted document completes the count
        read(corpus, 99, log)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("bad", "2 of 100", "2.0%", "1.0%", "broken at 1", str(log.path)):
        assert part in message


def test_exactly_the_limit_is_allowed(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.01, minimum=100)
    for index in range(100):
        read(Bad({50}), index, log)
    assert log.rejected == 1


def test_limit_holds_after_the_minimum(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.01, minimum=100)
    corpus = Bad(set(range(150, 200)))
    for index in range(151):
        read(corpus, index, log)
    with pytest.raises(UserError, match="2 of 152"):
        read(corpus, 151, log)


def test_small_corpus_is_judged_when_seen_once(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.01, minimum=100)
    corpus = Bad({0}, length=10)
    for index in range(9):
        read(corpus, index, log)
    with pytest.raises(UserError, match="1 of 10"):
        read(corpus, 9, log)


def test_lengths_given_to_the_log(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", lengths={"small": 2, "endless": None})
    for index in range(5):
        log.reject("endless", index, "no")
    log.accept("small")
    with pytest.raises(UserError, match="small: 1 of 2"):
        log.reject("small", 1, "no")


def test_a_broken_corpus_does_not_hide_in_a_mix(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.01, minimum=100)
    sound, broken = Bad(set(), name="sound"), Bad(set(range(5)), length=50, name="broken")
    for index in range(5000):
        read(sound, index, log)
    with pytest.raises(UserError, match="broken: 5 of 50"):
        for index in range(50):
            read(broken, index, log)
    assert log.rejected / log.seen < 0.01


def test_later_epochs_count_but_write_no_new_lines(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.5)
    for index in range(30):
        read(Bad({4}, length=10), index, log)
    assert (log.seen, log.rejected) == (30, 3)
    assert [line["index"] for line in lines(log.path)] == [4]


def test_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    corpus = Bad({2, 5, 11, 17}, length=None)
    whole = RejectLog(tmp_path / "whole.jsonl", limit=0.5)
    for index in range(20):
        read(corpus, index, whole)

    killed = RejectLog(tmp_path / "killed.jsonl", limit=0.5)
    for index in range(13):
        if index == 4:
            state = json.loads(json.dumps(killed.state_dict()))  # plain enough for any checkpoint format
        read(corpus, index, killed)
    resumed = RejectLog(tmp_path / "killed.jsonl", limit=0.5)
    resumed.load_state_dict(state)
    for index in range(4, 20):
        read(corpus, index, resumed)

    assert resumed.state_dict() == whole.state_dict()
    assert resumed.path.read_bytes() == whole.path.read_bytes()


def test_state_is_a_copy(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.5)
    read(Bad(set()), 0, log)
    state = log.state_dict()
    read(Bad(set()), 1, log)
    assert state["seen"] == {"bad": 1}


def test_torn_last_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "rejects.jsonl"
    path.write_text('{"corpus": "bad", "index": 2, "reason": "x"}\n{"corpus": "bad", "ind')
    log = RejectLog(path, limit=0.5)
    log.reject("bad", 2, "x")
    log.reject("bad", 5, "y")
    assert [line["index"] for line in lines(path)] == [2, 5]


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"corpus": "bad"}', '{"corpus": "bad", "index": "x"}'])
def test_foreign_file_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rejects.jsonl"
    path.write_text('{"corpus": "bad", "index": 2, "reason": "x"}\n' + line + "\n")
    with pytest.raises(UserError, match="line 2"):
        RejectLog(path)


@pytest.mark.parametrize("settings", [{"limit": -0.1}, {"limit": 1.5}, {"minimum": 0}])
def test_settings_out_of_range(tmp_path: Path, settings: dict) -> None:
    with pytest.raises(UserError):
        RejectLog(tmp_path / "rejects.jsonl", **settings)
