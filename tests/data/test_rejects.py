"""Counting, the limit, and a file that a resumed run continues without repeating itself."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from reading import read

from tunalab.data.documents import Document, Reject, Text
from tunalab.data.rejects import HOPELESS, MINIMUM, RejectLog, clearly_above
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
    assert (log.requested, log.rejected) == (6, 2)
    assert lines(log.path) == [
        {"corpus": "bad", "index": 1, "reason": "broken\\n at 1"},
        {"corpus": "bad", "index": 3, "reason": "broken\\n at 3"},
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
    assert (log.requested, log.rejected) == (0, 0)


def test_many_broken_documents_stop_it_early(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.01)
    corpus = Bad(set(range(0, 1000, 2)))
    with pytest.raises(UserError) as caught:
        for index in range(1000):
            read(corpus, index, log)
    assert index == MINIMUM
    message = str(caught.value)
    assert "\n" not in message
    for part in ("bad", "51 of 101", "50.5%", "data.reject_share=1.0%", "broken\\n at 100", str(log.path)):
        assert part in message


def test_a_share_just_above_the_limit_takes_longer(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.01)
    corpus = Bad(set(range(0, 10_000, 20)))
    with pytest.raises(UserError, match="30 of 581"):
        for index in range(10_000):
            read(corpus, index, log)


def test_the_limit_itself_is_allowed(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.01)
    corpus = Bad(set(range(0, 20_000, 100)))
    for index in range(20_000):
        read(corpus, index, log)
    assert log.rejected == 200


@pytest.mark.parametrize(("limit", "stops"), [(0.0, True), (1e-6, False)])
def test_one_broken_document_is_above_no_limit_but_none(tmp_path: Path, limit: float, stops: bool) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=limit)
    with pytest.raises(UserError, match="1 of 201") if stops else nullcontext():
        for index in range(202):
            read(Bad({200}), index, log)


def test_many_lanes_run_on_when_a_few_documents_are_broken() -> None:
    """1000 lanes, judged after every document: below the limit none stops, whatever its luck; above it all do."""
    rng = np.random.default_rng(0)
    observed = np.arange(1, 3001)

    def stopped(share: float) -> np.ndarray:
        rejected = np.cumsum(rng.random((1000, 3000)) < share, axis=1)
        return (clearly_above(0.01, rejected, observed) & (observed >= MINIMUM)).any(axis=1)

    for sound in (0.0005, 0.005, 0.01):
        assert not stopped(sound).any()
    assert stopped(0.05).all()


def test_lanes_of_a_stream_judge_samples(tmp_path: Path) -> None:
    """A lane of many sees a part of a short corpus: one broken document may come to it more often than its share."""
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.01, lengths={"short": 200})
    log.alone = False
    for _ in range(130):
        log.accept("short")
    for _ in range(4):
        log.reject("short", 7, "broken")
    for _ in range(66):
        log.accept("short")
    assert (log.requested, log.rejected) == (200, 4)


def test_small_corpus_is_judged_when_seen_once(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.01)
    corpus = Bad({0}, length=10)
    for index in range(9):
        read(corpus, index, log)
    with pytest.raises(UserError, match="1 of 10"):
        read(corpus, 9, log)


def test_where_in_an_epoch_a_document_comes_decides_nothing(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.1)
    corpus = Bad({0}, length=10)
    for index in (*range(10), *range(10), *reversed(range(10)), *range(10)):
        read(corpus, index, log)
    assert (log.requested, log.rejected) == (40, 4)


def test_lengths_given_to_the_log(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", lengths={"small": 2, "endless": None})
    for index in range(5):
        log.reject("endless", index, "no")
    log.accept("small")
    with pytest.raises(UserError, match="small: 1 of 2"):
        log.reject("small", 1, "no")


def test_what_does_not_fit_is_written_and_no_fault(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.0)
    for index in range(2000):
        if index % 10:
            log.reject("photos", index, "too small", fits=False)
        else:
            log.accept("photos")
    assert (log.requested, log.rejected, log.unfit) == (2000, 0, 1800)
    assert lines(log.path)[0] == {"corpus": "photos", "index": 1, "reason": "too small", "fits": False}
    again = RejectLog(log.path, limit=0.0)
    again.load_state_dict(log.state_dict())
    assert again.state_dict() == log.state_dict() and again.unfit == 1800


@pytest.mark.parametrize(
    ("limit", "length", "every", "stops"),
    [
        (0.5, None, 2, None),  # as many as allowed
        (0.5, 150, 2, None),
        (0.4, None, 2, "of .* documents do not fit and are left out .*, limit data.unfit_share=40.0%"),
        (0.4, 50, 2, "25 of 50 documents do not fit and are left out .50.0%, "),  # read to its end
        (1.0, None, 1000, None),
        (0.0, None, 7, "do not fit"),
    ],
)
def test_what_does_not_fit_has_a_limit_of_its_own(
    tmp_path: Path, limit: float, length: int | None, every: int, stops: str | None
) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.0, unfit_limit=limit, lengths={"photos": length})
    with nullcontext() if stops is None else pytest.raises(UserError, match=f"^photos: .*{stops}.*too small$"):
        for index in range(3000):
            if index % every == every - 1 or every > 500 and index % every:
                log.reject("photos", index, "too small", fits=False)
            else:
                log.accept("photos")


@pytest.mark.parametrize(("length", "alone", "most"), [(None, True, HOPELESS), (30, True, 30), (30, False, HOPELESS)])
def test_a_corpus_of_which_nothing_fits_stops(tmp_path: Path, length: int | None, alone: bool, most: int) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", lengths={"icons": length})
    log.alone = alone
    with pytest.raises(
        UserError, match=rf"icons: none of {most} documents can be used \(0 broken, {most} do not fit\).*too small$"
    ):
        for index in range(HOPELESS):
            log.reject("icons", index, "too small", fits=False)


def test_the_first_checkpoints_did_not_count_what_does_not_fit(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl")
    log.load_state_dict({"seen": {"a": 300}, "rejected": {"a": 2}, "last_reason": {"a": "no"}})
    assert (log.requested, log.rejected, log.unfit) == (300, 2, 0)


def test_a_broken_corpus_does_not_hide_in_a_mix(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.01)
    sound, broken = Bad(set(), name="sound"), Bad(set(range(5)), length=50, name="broken")
    for index in range(5000):
        read(sound, index, log)
    with pytest.raises(UserError, match="broken: 5 of 50"):
        for index in range(50):
            read(broken, index, log)
    assert log.rejected / log.requested < 0.01


def test_later_epochs_count_but_write_no_new_lines(tmp_path: Path) -> None:
    log = RejectLog(tmp_path / "rejects.jsonl", limit=0.5)
    for index in range(30):
        read(Bad({4}, length=10), index, log)
    assert (log.requested, log.rejected) == (30, 3)
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


@pytest.mark.parametrize("settings", [{"limit": -0.1}, {"limit": 1.5}, {"unfit_limit": 2.0}])
def test_settings_out_of_range(tmp_path: Path, settings: dict) -> None:
    with pytest.raises(UserError):
        RejectLog(tmp_path / "rejects.jsonl", **settings)
