from pathlib import Path

import pytest

from tunalab.interop.endpoint import Endpoint, NoAnswer
from tunalab.interop.lmms.scores import AGAIN, ask_score, read_score


@pytest.mark.parametrize(
    ("answer", "score"),
    [("0.5", 0.5), (" 1.0\n", 1.0), ("0 because it is wrong", 0.0), ("", None), ("Score: 1", None), ("7", None), ("-0.1", None)]
    + [("nan", None), ("0.8/1", None), ("0.5\n because", 0.5), ("0.5\nbecause", None), ("0.5.", None), ("1e-1", 0.1), ("0.50", 0.5)]
    + [("1", 1.0), ("+.3 ", 0.3), ("inf", None), ("1.01", None), ("50%", None), ("\t0.2\tgood", None), ("  ", None)],
)
def test_reading_a_score(answer, score):
    assert read_score(answer) == score


def judge(monkeypatch: pytest.MonkeyPatch, *answers: str | None) -> tuple[Endpoint, list[str]]:
    """An endpoint that gives these answers, and what it was asked."""
    requests: list[str] = []

    def ask(endpoint: Endpoint, text: str, images: object, whole: bool) -> str:
        requests.append(text)
        answer = answers[len(requests) - 1]
        if answer is None:
            raise NoAnswer("timeout")
        return answer

    monkeypatch.setattr(Endpoint, "ask", ask)
    return Endpoint("http://127.0.0.1:9", "key", "judge", Path("nowhere")), requests


def test_a_score_that_cannot_be_read_is_asked_for_once_more(monkeypatch):
    endpoint, requests = judge(monkeypatch, "It is fine.", "0.7")
    assert ask_score(endpoint, "x") == 0.7 and requests == ["x", "x" + AGAIN]
    endpoint, requests = judge(monkeypatch, "It is fine.", "5")
    assert ask_score(endpoint, "x") is None and len(requests) == 2


def test_a_judge_that_does_not_answer_gives_no_score(monkeypatch):
    endpoint, requests = judge(monkeypatch, None)
    assert ask_score(endpoint, "x") is None and len(requests) == 1
