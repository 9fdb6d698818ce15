import numpy as np
import pytest

from tunalab.data.documents import Question
from tunalab.errors import UserError
from tunalab.evaluation.along import ask
from tunalab.evaluation.benchmarks import Benchmark, benchmark_name, benchmarks, is_right, right_groups, score
from tunalab.evaluation.measure import wilson
from tunalab.settings.schema import RunConfig

IMAGE = np.zeros((32, 32, 3), dtype=np.uint8)


def _benchmark(*expected: tuple[str, int]) -> Benchmark:
    questions = [Question(IMAGE, f"question {n}?", answer, group) for n, (answer, group) in enumerate(expected)]
    return Benchmark("made", "MADE", 1, questions, 0.25)


@pytest.mark.parametrize(("given", "expected"), [("red", "red"), (" Red ", "red"), ("top  left\n", "top left"), ("3", "3")])
def test_right_answers(given, expected):
    assert is_right(given, expected)


@pytest.mark.parametrize(
    "given", ["", " ", "reds", "red.", "a red ring", "red red", "blue", "re", "\ufffd", "red, red", "<|eos|>red", "r e d"]
)
def test_wrong_and_malformed_answers(given):
    assert not is_right(given, "red")


def test_every_question_of_a_group_must_be_right():
    made = _benchmark(("red", 7), ("blue", 7), ("red", 2), ("blue", 2), ("3", 5))
    assert right_groups(made, ["red", "blue", "red", "red", "3"]) == [True, False, True]
    assert right_groups(made, ["red", "", "blue", "red", "3 "]) == [False, False, True]


def test_score_counts_groups_and_carries_its_interval():
    made = _benchmark(*[("yes", n) for n in range(10)])
    result = score(made, ["yes"] * 7 + ["no"] * 3)
    assert (result.correct, result.n, result.accuracy, result.chance) == (7, 10, 0.7, 0.25)
    assert (result.low, result.high) == wilson(7, 10)
    assert result.low == pytest.approx(0.3968, abs=1e-3) and result.high == pytest.approx(0.8922, abs=1e-3)  # Wilson's formula
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(result.outcomes), dtype=np.uint8), count=10)
    assert bits.tolist() == [1] * 7 + [0] * 3


def test_missing_answers_and_questions_are_errors():
    with pytest.raises(UserError, match="made: 2 answers to 3 questions"):
        score(_benchmark(("a", 0), ("b", 1), ("c", 2)), ["a", "b"])
    with pytest.raises(UserError, match="made has no questions"):
        score(_benchmark(), [])


def _small_config() -> RunConfig:
    config = RunConfig()
    config.evaluation.groups, config.evaluation.easy_vqa = 12, 0
    return config


def test_names_and_sizes_of_the_default_benchmarks():
    config = _small_config()
    found = {benchmark.name: benchmark for benchmark in benchmarks(config)}
    kinds = ["relations", "charts", "ocr", "pairs", "search", "count", "pattern"]
    assert set(found) == {*kinds, *(f"{kind}@3" for kind in kinds)}
    assert [benchmark_name("count", level) for level in (1, 2, 3)] == ["count", "count@2", "count@3"]
    assert found["pairs"].published == "MMVP" and len(found["pairs"].questions) == 24
    assert all(0 <= benchmark.chance < 0.5 for benchmark in found.values())
    assert benchmarks(config)[0] is found[benchmarks(config)[0].name], "built once"
    config.evaluation.groups = 0
    assert benchmarks(config) == []


def test_a_perfect_answerer_is_right_everywhere_and_a_broken_one_nowhere():
    pytest.importorskip("easy_vqa")
    config = _small_config()
    config.evaluation.easy_vqa = 30
    requests = benchmarks(config)
    assert requests[-1].name == "easy_vqa" and len(requests) == 15
    truth = {(id(q.image_HWC), q.prompt): q.answer for benchmark in requests for q in benchmark.questions}
    perfect = ask(requests, lambda questions: [truth[id(image), prompt] for image, prompt in questions])
    assert all(s.accuracy == 1 and s.high == 1 and s.low > s.chance for s in perfect.values())
    assert {name: s.n for name, s in perfect.items()} == {b.name: 30 if b.name == "easy_vqa" else 12 for b in requests}
    silent = ask(requests, lambda questions: [""] * len(questions))
    assert all(s.correct == 0 and s.low == 0 for s in silent.values())
    with pytest.raises(UserError, match="answers to"):
        ask(requests, lambda questions: ["red"] * (len(questions) - 1))
