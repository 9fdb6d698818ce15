"""Published benchmarks asked along a run: the same requests and verdicts as at its end."""

from collections import Counter

import pytest
from tests.interop.lmms.conftest import rows
from tests.interop.lmms.test_lmms_published import CASES, PUBLISHED_ITEMS, cache, no_network, says

from tunalab.data.buckets import Buckets
from tunalab.errors import UserError
from tunalab.evaluation.benchmarks import TASKS, benchmarks
from tunalab.evaluation.published import BENCHMARKS, RULED
from tunalab.interop.lmms import asking
from tunalab.interop.lmms.published import pieces
from tunalab.interop.lmms.questions import published_questions
from tunalab.settings.loading import laid_over

pytestmark = pytest.mark.lmms
__all__ = ["cache", "no_network", "says"]
ALL = set


@pytest.mark.parametrize(("task", "limit", "replies", "items"), CASES, ids=[f"{case[0]}{case[3]}" for case in CASES])
def test_verdicts_are_those_of_the_end_of_a_run(subject, copy, task, limit, replies, items):
    data, buckets = copy(task), Buckets.of(subject.config.data)
    stock = published_questions(task, data, "stock", buckets, ALL)
    assert [int(stock.right(*pair)) for pair in zip(replies, stock.questions, strict=True)] == items
    assert stock.of == len(items) and stock.max_tokens == limit and 0 <= stock.chance < 1
    if task in RULED:
        published = published_questions(task, data, "published", buckets, ALL)
        assert [int(published.right(*pair)) for pair in zip(replies, published.questions, strict=True)] == PUBLISHED_ITEMS[
            task, tuple(items)
        ]


@pytest.mark.parametrize("task", [task for task in BENCHMARKS if not BENCHMARKS[task].judged])
def test_what_is_asked_is_what_is_asked_at_the_end(subject, copy, says, monkeypatch, task):
    data = copy(task)
    found = published_questions(task, data, "stock", Buckets.of(subject.config.data), ALL)
    requests = says(*["x"] * 20)
    seen = []
    answered = asking.answer_ids
    monkeypatch.setattr(
        asking,
        "answer_ids",
        lambda model, tokenizer, asked, *rest: (seen.extend(asked), answered(model, tokenizer, asked, *rest))[1],
    )
    from tunalab.evaluation.parts import PublishedSettings

    (piece,) = pieces(PublishedSettings(data=str(data), tasks=[task], rules="stock"))
    piece.measure(subject)
    assert Counter(text for text, _ in requests) == Counter(question.prompt for question in found.questions)
    assert {limit for _, limit in requests} == {found.max_tokens}
    images = {question.prompt: question.image_HWC for question in found.questions}
    for image_HWC, text in seen:
        assert text in images and (len(images) < len(seen) or (image_HWC == images[text]).all())


def test_some_items_always_the_same_in_the_record(subject, copy):
    data = copy("mmvp")
    config = laid_over(subject.config, f"evaluation.benchmarks={{mmvp: {{task: mmvp, path: {data}, limit: 2}}}}")
    config.evaluation.groups = config.evaluation.easy_vqa = 0
    (one,) = benchmarks(config)
    about = one.describe()
    assert (about["items"], about["of"], one.chance, one.published) == (2, len(rows()["mmvp"]), 0.5, "MMVP")
    config.evaluation.benchmarks["mmvp"].limit = 3
    (more,) = benchmarks(config)
    assert {question.group for question in one.questions} < {question.group for question in more.questions}


def test_chance_is_what_one_answer_gets(subject, copy):
    """Of CountBench's two items, and of V*'s two, one answer gets one."""
    for task in ("countbench", "vstar_bench"):
        assert published_questions(task, copy(task), "stock", Buckets.of(subject.config.data), ALL).chance == 0.5


def test_a_missing_copy_is_one_line(subject, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no folder ocrbench .a copy of echo840/OCRBench"):
        published_questions("ocrbench", tmp_path / "empty", "stock", Buckets.of(subject.config.data), ALL)
    assert "ocrbench" in TASKS and "mmvet" not in TASKS
