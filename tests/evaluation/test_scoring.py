import numpy as np
import pytest
import torch

from tunalab.data.documents import Question
from tunalab.errors import UserError
from tunalab.evaluation.along import answers_and_margins, evaluation_mode, margin, scored
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
    truth = [question.answer for benchmark in requests for question in benchmark.questions]
    perfect = scored(requests, truth)
    assert all(s.accuracy == 1 and s.high == 1 and s.low > s.chance for s in perfect.values())
    assert {name: s.n for name, s in perfect.items()} == {b.name: 30 if b.name == "easy_vqa" else 12 for b in requests}
    silent = scored(requests, [""] * len(truth))
    assert all(s.correct == 0 and s.low == 0 for s in silent.values())
    with pytest.raises(UserError, match="answers to"):
        scored(requests, ["red"] * (len(truth) - 1))


def test_the_margin_is_of_the_right_option_over_the_best_wrong_one():
    asked = Question(IMAGE, "is the ring red or blue?", "blue", 0, ("red", "blue", "green"))
    assert margin(asked, [-3.0, -0.5, -1.25]) == 0.75
    assert margin(asked, [-0.25, -2.0, -1.25]) == -1.75
    assert margin(Question(IMAGE, "what word is this?", "HELLO", 0), []) is None


def test_margins_are_those_of_groups_bounded_and_only_where_all_options_are_known():
    made = _benchmark(("red", 7), ("blue", 7), ("red", 2), ("blue", 2))
    answers = ["red", "blue", "red", "blue"]
    result = score(made, answers, [2.0, 0.53, 30.0, 9.0])
    assert result.margin_items().tolist() == [0.5, 127 / 16]  # the least sure of each group, in steps of 1/16
    assert result.margin == pytest.approx((0.53 + 127 / 16) / 2, rel=1e-12)
    for nothing in (score(made, answers), score(made, answers, [2.0, None, 1.0, 1.0])):
        assert nothing.margin is nothing.margins is nothing.margin_items() is None
    with pytest.raises(ValueError, match="zip"):
        score(made, answers, [1.0])


def test_every_question_with_few_answers_says_which():
    pytest.importorskip("easy_vqa")
    config = _small_config()
    config.evaluation.easy_vqa = 60
    config.evaluation.levels = [1, 2, 3]
    for benchmark in benchmarks(config):
        closed = {bool(question.options) for question in benchmark.questions}
        assert closed == {not benchmark.name.startswith("ocr")}, benchmark.name
        for question in benchmark.questions:
            if question.options:
                assert question.answer in question.options and len(set(question.options)) == len(question.options) >= 2


def test_with_the_shipped_tokenizer_an_option_is_not_the_beginning_of_another(tokenizer):
    """The likelihood of an option has no end: where one began another, it would be at least as likely."""
    config = _small_config()
    config.evaluation.levels = [1, 2, 3]
    for options in {question.options for benchmark in benchmarks(config) for question in benchmark.questions}:
        ids = [tuple(tokenizer.encode(option)) for option in options]
        assert all(one == other or one != other[: len(one)] for one in ids for other in ids), options


def test_a_right_answer_has_a_positive_margin_in_a_group_of_closed_questions(tiny_model, tokenizer):
    """Answers and margins come from the same reading of the prompt: who answers with an option that is one token has the better
    of the others' likelihoods below it."""
    config = _small_config()
    chosen = [benchmark for benchmark in benchmarks(config) if benchmark.name in ("search", "pairs")]
    model = tiny_model("patch_embed")
    questions = [question for benchmark in chosen for question in benchmark.questions]
    with evaluation_mode(model):
        answers, margins = answers_and_margins(model, tokenizer, questions, 4)
        biased = model.decoder.lm_head
        likely = questions[0].answer
        (token,) = tokenizer.encode(likely)
        hook = biased.register_forward_hook(
            lambda *call: call[2].index_add(-1, torch.tensor([token]), torch.full((*call[2].shape[:-1], 1), 50.0))
        )
        try:
            _, sure = answers_and_margins(model, tokenizer, questions, 4)
        finally:
            hook.remove()
    assert len(answers) == len(margins) == len(questions) and all(one is not None for one in margins)
    for question, value in zip(questions, sure, strict=True):
        if likely in question.options:
            assert (value > 0) == (question.answer == likely)
    assert scored(chosen, answers, margins)["search"].margin is not None
