from random import Random
from typing import Any

import pandas as pd
import pytest
from tests.synthetic import synthetic_records

from tunalab.analysis.evaluations import COLUMNS, counterpart, evaluation_markdown
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.published import BENCHMARKS, RULED, RULES, metric
from tunalab.evaluation.subject import Subject
from tunalab.inference.prompts import answer_prompts, question_prompt
from tunalab.interop.lmms.asking import Request, reply
from tunalab.interop.lmms.scores import measures
from tunalab.records.labels import Legend
from tunalab.verification.scorers import by_published_rule, golden_replies


def test_replies_count_as_by_the_official_code():
    replies = list(golden_replies())
    wrong = [one for one in replies if by_published_rule(*one[:3]) != one[3]["published"]]
    assert len(replies) == 502 and wrong == []


QUESTION = "Which one?\nA. The car\nB. A bus\nPlease answer directly with only the letter."


@pytest.mark.parametrize(
    ("task", "doc", "text", "right"),
    [
        ("realworldqa", {"question": QUESTION, "answer": "B"}, "I see A bus.", True),
        ("realworldqa", {"question": QUESTION, "answer": "A"}, "The car, not A bus", True),  # the leftmost
        ("realworldqa", {"question": "How many?", "answer": "10"}, "TEN", True),
        ("realworldqa", {"question": "How many?", "answer": "2"}, "two.", False),  # no number word, with its full stop
        ("realworldqa", {"question": "How many?", "answer": "2"}, "", False),
        ("ocrbench", {"dataset": "HME100k", "answer": "x + y"}, "X+Y", True),  # a text alone is a list of one
        ("ocrbench", {"dataset": "CTW", "answer": ["no", "Yes\nsir"]}, "YES SIR!", True),
        ("mmmu_val", {"question_type": "open", "answer": "7", "options": "[]"}, "7", False),
        ("mmmu_val", {"question_type": "multiple-choice", "answer": ["A", "B"], "options": "['x', 'y']"}, "(B)", True),
        ("mmmu_val", {"question_type": "multiple-choice", "answer": "B", "options": "['x', 'y']"}, "A. or B. then", False),
    ],
)
def test_further_replies(task, doc, text, right):
    assert RULED[task].right(doc, text, Random(0)) == right


def test_a_reply_under_a_smaller_limit_is_the_beginning_of_one_under_a_larger(subject: Subject):
    def asked(item: int, limit: int) -> Request:
        return Request("mmmu_val", item, "what is it? " * (1 + item), list, limit)

    limits = (2, 8, 20)
    apart = [[reply(subject, [asked(item, limit)], 100)[0] for limit in limits] for item in range(4)]
    together = reply(subject, [asked(item, limit) for item in range(4) for limit in limits], 1000)
    assert together == [text for texts in apart for text in texts]
    assert len({text for texts in apart for text in texts}) > len(limits)


def test_greedy_token_ids_under_any_limit_are_the_first_of_those_under_a_larger_also_with_an_end(subject: Subject):
    model = subject.model.eval()
    prompts = [
        question_prompt(subject.tokenizer, model.frontend.space, None, text) for text in ("what is it?", "how many circles?")
    ]
    without_end = answer_prompts(model, prompts, 9, eos=-1)
    for eos in {ids[place] for ids in without_end for place in (0, 3, 8)}:
        ended = answer_prompts(model, prompts, 9, eos)
        assert min(map(len, ended)) < 9
        for limit in (1, 3, 4, 5):
            assert answer_prompts(model, prompts, limit, eos) == [ids[:limit] for ids in ended]


def test_the_model_is_run_once_for_all_limits_and_an_answer_that_ends_earlier_is_whole(subject, monkeypatch):
    calls = []

    def answer_ids(model: object, tokenizer: object, questions: list[object], limit: int, batch_tokens: int) -> list[list[int]]:
        calls.append((len(questions), limit))
        return [list(range(10, 10 + 4 * (number + 1))) for number in range(len(questions))]

    monkeypatch.setattr("tunalab.interop.lmms.asking.answer_ids", answer_ids)
    both = [Request("mmmu_val", item, "?", list, limit) for limit in (128, 6) for item in (0, 1)]
    decode = subject.tokenizer.decode
    expected = [decode(range(10, 14)), decode(range(10, 18)), decode(range(10, 14)), decode(range(10, 16))]
    kept_at = subject.folder / "replies.jsonl"
    assert reply(subject, both, 100, kept_at) == reply(subject, both, 100, kept_at) == expected
    assert calls == [(2, 128)]


def results(task: str, docs: list[dict[str, Any]], replies: list[str], stock: list[float]) -> dict[str, Any]:
    logged = [{"score": score} if BENCHMARKS[task].metric != "exact_match" else score for score in stock]
    samples = [
        {"doc_id": number, "doc": doc, "resps": [[text]], BENCHMARKS[task].metric: value}
        for number, (doc, text, value) in enumerate(zip(docs, replies, logged, strict=True))
    ]
    totals = {f"{BENCHMARKS[task].metric},none": sum(stock) / len(stock)}
    return {"results": {task: totals}, "samples": {task: samples[::-1]}, "n-samples": {task: {"effective": len(stock)}}}


def both_of_realworldqa() -> list[Measure]:
    docs = [{"question": QUESTION, "answer": answer} for answer in "BAB"]
    return measures(results("realworldqa", docs, ["A bus", "The answer is A", "B"], [0, 1, 1]))


def test_both_accuracies_with_their_rules():
    published, stock = both_of_realworldqa()
    assert (published.metric, published.items) == ("accuracy (published rules)", [1, 0, 1])
    assert (stock.metric, stock.items) == ("accuracy (stock rules)", [0, 1, 1])
    assert "options are known by their text" in published.note
    docs = [{"question": QUESTION, "answer": "B"}]
    (alone,) = measures(results("realworldqa", docs, ["A bus"], [0]), "stock")
    assert alone.metric == "accuracy (stock rules)" and alone.items == [0]


def test_a_reply_is_cut_for_the_published_rule_alone():
    docs = [{"question_type": "multiple-choice", "options": "['x', 'y']", "answer": "B"}] * 2
    found = results("mmmu_val", docs, ["so (A) or rather (B)"] * 2, [1, 1])
    published, stock = measures(found, cut={("mmmu_val", 0): "so (A)", ("mmmu_val", 1): "so (B)"})
    assert published.items == [0, 1] and stock.items == [1, 1]
    uncut, _ = measures(found)
    assert uncut.items == [1, 1]


def test_guesses_are_the_same_every_time_and_not_always_one_letter():
    doc = {"question_type": "multiple-choice", "options": "['x', 'y', 'z', 'u']", "answer": "B"}
    found = results("mmmu_val", [doc] * 40, ["?"] * 40, [0] * 40)
    first, again = measures(found)[0], measures(found)[0]
    assert first == again and 0 < sum(first.items) < 40


def test_both_stand_beside_the_papers_figure():
    title = BENCHMARKS["realworldqa"].title
    rows = [
        {"kind": one.kind, "benchmark": one.benchmark, "split": "", "metric": one.metric, "variant": "tuna", "value": one.value}
        | {"low": None, "high": None, "chance": None, "ceiling": None, "n": one.n, "failures": 0, "note": one.note, "seeds": 1}
        for one in both_of_realworldqa()
    ]
    paper = pd.DataFrame([["understanding", title, "accuracy", "tuna", 0.661, "7B", "x"]], columns=COLUMNS)
    differences = pd.DataFrame(columns=["kind", "benchmark", "split", "metric", "a", "b", "difference", "apart"])
    text = evaluation_markdown(pd.DataFrame(rows), differences, paper, Legend(synthetic_records(variants=("tuna",), kinds=1)))
    for rules in RULES:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {title}, accuracy ({rules} rules) |")]
        assert "0.667" in line and f"| {title} | 0.661 |" in line
        for task in RULED:
            assert counterpart("understanding", BENCHMARKS[task].title, "", metric(rules)) == (BENCHMARKS[task].title, "accuracy")
