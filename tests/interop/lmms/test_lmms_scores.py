import math
from pathlib import Path
from typing import Any

import pytest

from tunalab.analysis.evaluations import counterpart, read_published
from tunalab.errors import UserError
from tunalab.evaluation.measure import wilson
from tunalab.evaluation.parts import OPTIONAL, PARTS
from tunalab.evaluation.published import BENCHMARKS, RULED
from tunalab.interop.lmms.scores import mean_score, measures


def results(task: str, values: list[Any], total: float, key: str | None = None) -> dict[str, Any]:
    """As lmms-eval returns them, samples in any order."""
    metric = BENCHMARKS[task].metric
    samples = [{"doc_id": number, "target": "", metric: value} for number, value in enumerate(values)]
    totals = {"alias": task, key or f"{metric},none": total, f"{metric}_stderr,none": "N/A"}
    return {"results": {task: totals}, "samples": {task: samples[::-1]}, "n-samples": {task: {"effective": len(values)}}}


def scored(*scores: float | None, judge: str = "judge") -> list[dict[str, Any]]:
    return [{"eval_model": judge} | ({} if score is None else {"score": score}) for score in scores]


def letters(*pairs: str) -> list[dict[str, str]]:
    return [{"pred": pair[0], "answer": pair[1], "question_id": "1"} for pair in pairs]


CASES = [
    ("gqa", [1.0, 0.0, 1.0], 2 / 3),
    ("realworldqa", [1.0, 0.0, 1.0], 2 / 3),
    ("mmmu_val", [{"score": 1.0}, {"score": 0}, {"score": 1}], 0.66667),
    ("seedbench_2_plus", letters("AA", "bC", "bB"), 2 / 3),
    ("ai2d", [1.0, 0.0, 1.0], 2 / 3),
    ("chartqa", [1.0, 0.0, 1.0], 2 / 3),
    ("ocrbench", [{"score": 1}, {"score": 0}, {"score": 1}], 2 / 1000),
    ("vstar_bench", [{"score": 1.0}, {"score": 0.0}, {"score": 1.0}], 200 / 3),
    ("countbench", [1.0, 0.0, 1.0], 2 / 3),
    ("visulogic", [1.0, 0.0, 1.0], 2 / 3),
]


@pytest.mark.parametrize(("task", "values", "total"), CASES, ids=[case[0] for case in CASES])
def test_every_scale_becomes_a_share_with_its_interval(task, values, total):
    (found,) = measures(results(task, values, total), "stock")
    name = "accuracy (stock rules)" if task in RULED else "accuracy"
    assert (found.kind, found.benchmark, found.metric) == ("understanding", BENCHMARKS[task].title, name)
    assert found.value == pytest.approx(2 / 3) and found.n == 3 and found.failures == 0
    assert found.items == [1, 0, 1]  # in the order of the data
    assert (found.low, found.high) == wilson(2, 3)
    assert found.chance == BENCHMARKS[task].chance


def test_a_named_filter_is_no_other_metric():
    (found,) = measures(results("ai2d", [1.0, 0.0], 0.5, "exact_match,flexible-extract"))
    assert found.value == 0.5


def test_mmvp_counts_questions_and_whole_pairs():
    right = {1: True, 2: True, 3: True, 4: False, 5: True}  # of the last pair one question was asked
    values = [{"index": number - 1, "pair_index": (number - 1) // 2, "is_correct": right[number]} for number in right]
    questions, pairs = measures(results("mmvp", values, 0.8))
    assert questions.value == 0.8 and questions.chance == 0.5
    assert pairs.metric == "pair accuracy" and pairs.items == [1, 0] and pairs.value == 0.5 and pairs.chance == 0.25


def test_what_the_judge_did_not_score_is_a_failure_not_a_zero():
    (found,) = measures(results("mmvet", scored(0.0, None, 1.0, 0.5), 50.0))
    assert found.value == 0.5 and found.n == 3 and found.failures == 1
    assert found.items == []  # those behind the failure would be compared with other items of another model
    assert found.low is not None and found.low < 0.5 < (found.high or 0) and found.note == "judged by judge"


def test_items_of_a_judge_that_scored_all():
    (found,) = measures(results("mmvet", scored(0.0, 1.0, 0.5), 50.0))
    assert found.items == [0.0, 1.0, 0.5] and found.failures == 0


def test_a_failure_of_the_stock_judge_is_known_by_its_missing_name():
    (found,) = measures(results("mmvet", [*scored(0.0, 0.4), *scored(0.0, judge="")], 13.33))
    assert found.value == pytest.approx(0.2) and found.n == 2 and found.failures == 1


def test_a_judge_that_scored_nothing():
    with pytest.raises(UserError, match="^mmvet: none of 2 replies was scored"):
        measures(results("mmvet", scored(None, None), float("nan")))


def test_a_total_that_counts_in_another_way_is_refused():
    with pytest.raises(UserError, match=r"^vstar_bench: lmms-eval's total is 0\.0050 and the mean of its items 0\.5000"):
        measures(results("vstar_bench", scored(1.0, 0.0), 0.5))


def test_totals_alone():
    plain = results("vstar_bench", scored(1.0, 0.0), 50.0)
    del plain["samples"]
    (found,) = measures(plain)
    assert found.value == 0.5 and found.n == 2 and found.low is None and found.items == [] and "not logged" in found.note
    for task in ("mmvet", "ocrbench"):
        plain = results(task, scored(1.0), 1.0) | {"samples": {}}
        with pytest.raises(UserError, match=f"^{task}: its total alone does not show what was right"):
            measures(plain)


def test_a_task_of_unknown_scale():
    with pytest.raises(UserError, match=r"^mme: its scale is not known here \(choices: gqa, "):
        measures({"results": {"mme": {"mme_score,none": 1400.0}}})


def test_the_mean_for_lmms_eval_leaves_failures_out():
    assert mean_score(scored(0.2, None, 0.4)) == pytest.approx(0.3)
    assert math.isnan(mean_score(scored(None)))


def test_published_benchmarks_are_measured_on_request_only():
    assert "published" in PARTS and "published" in OPTIONAL


def test_each_stands_beside_its_own_published_results():
    rows = read_published(Path(__file__).parents[3] / "results" / "published.csv")
    published = set(rows[rows["kind"] == "understanding"]["benchmark"])
    assert {benchmark.title for benchmark in BENCHMARKS.values()} == published
    for title in published:
        assert counterpart("understanding", title, "", "accuracy") == (title, "accuracy")
