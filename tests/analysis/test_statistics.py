from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tunalab.analysis.curves import align_tokens, curves, last_common_tokens
from tunalab.analysis.statistics import (
    Needed,
    above_chance,
    benjamini_hochberg,
    equivalence_p,
    equivalent,
    half_width,
    holm,
    lasting_error,
    needed,
    of_items,
    of_seeds,
    of_two_runs,
    paired_difference,
    pooled,
    question_error,
    seeds_needed,
    share_interval,
)
from tunalab.errors import UserError
from tunalab.evaluation.measure import Score, wilson
from tunalab.records.record import Point, usable


def with_scores(record, outcomes_by_tokens, chance=0.25):
    """``record`` with one benchmark, count, of the given outcomes."""
    points = [
        Point(tokens, 1, 1, 1.0, 1.0, {"count": Score.from_outcomes(right, chance)}) for tokens, right in outcomes_by_tokens.items()
    ]
    return replace(record, points=points)


def test_curves_hold_every_number_of_the_records(records):
    made = records(seeds=2)
    table = curves(made)
    assert len(table) == sum(len(point.benchmarks) for record in made for point in record.points)
    record, point = made[4], made[4].points[3]
    mine = table[(table.variant == record.run.variant) & (table.seed == record.run.seed) & (table.tokens == point.tokens)]
    for row in mine.itertuples():
        score = point.benchmarks[row.benchmark]
        assert (row.accuracy, row.n, row.chance, row.correct) == (score.accuracy, score.n, score.chance, score.correct)


def test_the_same_run_twice_is_an_error(record):
    with pytest.raises(UserError, match="one and two are the same run: variant tuna2, seed 0"):
        curves([record(name="one"), record(name="two")])


def test_unfinished_runs_are_left_out_once_one_is_finished(record):
    done, open_run = record(), record(seed=1, finished=False)
    assert usable([done, open_run]) == [done] and usable([open_run]) == [open_run]


def test_align_tokens_joins_seeds_and_keeps_points_apart(records, record):
    table = align_tokens(curves(records(seeds=3)))
    assert table["tokens"].nunique() == 6 and len(table) == 3 * 3 * 6 * 7
    assert last_common_tokens(table) == max(table["tokens"])
    # Two evaluations of one run that fall together: the later one stays.
    right = np.ones(10, bool)
    close = with_scores(record(), {1000: ~right, 1010: right, 2000: ~right})
    aligned = align_tokens(curves([close]))
    assert aligned["tokens"].tolist() == [1010, 2000] and aligned["accuracy"].tolist() == [1.0, 0.0]


def test_the_last_common_point_is_one_that_all_runs_reached(record):
    right = np.ones(10, bool)
    long, short = with_scores(record(), {1000: right, 2000: right}), with_scores(record("tuna"), {1000: right})
    assert last_common_tokens(align_tokens(curves([long, short]))) == 1000
    with pytest.raises(UserError, match="share no point"):
        last_common_tokens(align_tokens(curves([with_scores(record(), {1000: right}), with_scores(record("tuna"), {5000: right})])))


def test_records_without_a_benchmark_have_no_common_point_and_say_so(record):
    empty = record()
    empty.points.clear()
    with pytest.raises(UserError, match="no evaluated benchmark"):
        last_common_tokens(align_tokens(curves([empty])))


def test_pooled_mean_and_interval(record):
    first, second = np.arange(1000) < 600, np.arange(1000) < 620
    runs = [with_scores(record(seed=seed), {1000: right}) for seed, right in enumerate((first, second))]
    others = [with_scores(record("tuna", seed=seed), {1000: right}) for seed, right in enumerate((first, ~first))]
    row, _ = sorted(pooled(align_tokens(curves(runs + others))).to_dict("records"), key=lambda row: -row["accuracy"])
    low, high = wilson(610, 1000)
    assert row["accuracy"] == pytest.approx(0.61) and row["n"] == 2000 and row["seeds"] == 2
    seed_error = 12.706205 * np.std([0.6, 0.62], ddof=1) / np.sqrt(2)  # of this variant alone, whatever the other one does
    odds = np.log([600.5 / 400.5, 620.5 / 380.5])  # of (k + 1/2) to (n - k + 1/2): their interval reaches further down here
    bound = odds.mean() - 12.706205 * odds.std(ddof=1) / np.sqrt(2)
    down = 610.5 / 1001 - 1 / (1 + np.exp(-bound))
    assert down > seed_error
    assert row["low"] == pytest.approx(0.61 - np.hypot(0.61 - low, down))
    assert row["high"] == pytest.approx(0.61 + np.hypot(high - 0.61, seed_error))


def test_seeds_that_agree_by_rounding_are_not_without_scatter():
    """Two seeds whose shares of 50 questions differ by the same number: the error is that of rounding to 1/50."""
    value_S = np.array([0.1, 0.1])
    assert of_seeds(value_S).p == 0.0
    rounded = of_seeds(value_S, step=1 / 50)
    assert rounded.error == pytest.approx(1 / 50 / np.sqrt(12) / np.sqrt(2)) and rounded.p > 0.01


def test_a_few_low_seeds_do_not_rule_out_those_that_take_off():
    low, high = share_interval(np.array([0.0, 0.03, 0.12]), 200)
    t = 4.302653 * np.std([0.0, 0.03, 0.12], ddof=1) / np.sqrt(3)
    assert low == 0.0 and high > 0.05 + t + 0.05


def test_above_chance_needs_the_bound_not_the_mean(record):
    table = align_tokens(curves([with_scores(record(), {1000: np.arange(100) < 30})]))
    assert above_chance(table) == {("tuna2", ""): {"count": False}}
    half, fifth = np.arange(100) < 50, np.arange(100) < 20
    runs = [with_scores(record(mask_ratio=0.5), {1000: half, 2000: fifth}), with_scores(record(mask_ratio=0.0), {2000: half})]
    assert above_chance(align_tokens(curves(runs))) == {
        ("tuna2", "mask ratio 0"): {"count": True},
        ("tuna2", "mask ratio 0.5"): {"count": False},
    }


def test_nothing_is_pooled_that_differs_in_more_than_the_seed(record):
    right = np.ones(10, bool)
    runs = [with_scores(record(settings=[f"optimizer.ema={ema}"]), {1000: right}) for ema in (0.9, 0.99)]
    assert len(pooled(align_tokens(curves(runs)))) == 2
    with pytest.raises(ValueError, match="differ in more than the seed"):
        pooled(pd.concat([curves([one]) for one in runs]))
    with pytest.raises(ValueError, match="differ in more than the seed"):
        paired_difference(runs, [with_scores(record("tuna"), {1000: right})], "count", 1000)


def test_pairing_by_question_is_sharper_than_counts(record):
    # b is right wherever a is, and on 15 more of 200: far from luck question by question, within noise as two counts.
    easy = np.arange(200) < 100
    more = np.arange(200) < 115
    a, b = with_scores(record("tuna2"), {1000: more}), with_scores(record("tuna"), {1000: easy})
    paired = of_two_runs((a.points[0].benchmarks["count"], b.points[0].benchmarks["count"]))
    assert paired.by_item and paired.value == pytest.approx(0.075) and paired.excludes_zero and paired.low > 0
    counts = of_two_runs((Score.of(115, 200, 0.25), Score.of(100, 200, 0.25)))
    assert not counts.by_item and counts.value == pytest.approx(0.075) and not counts.excludes_zero


def test_seeds_that_disagree_widen_the_interval(record):
    rng = np.random.default_rng(0)

    def runs(variant, shares):
        return [with_scores(record(variant, seed), {1000: rng.permutation(400) < 400 * share}) for seed, share in enumerate(shares)]

    agree = paired_difference(runs("a", [0.6] * 4), runs("b", [0.5] * 4), "count", 1000)
    disagree = paired_difference(runs("a", [0.8, 0.4, 0.8, 0.4]), runs("b", [0.5] * 4), "count", 1000)
    assert agree.seeds == disagree.seeds == 4 and agree.value == pytest.approx(disagree.value) == pytest.approx(0.1)
    assert disagree.high - disagree.low > 2 * (agree.high - agree.low)
    assert agree.excludes_zero and not disagree.excludes_zero and agree.p < 0.05 < disagree.p
    alone = paired_difference(runs("a", [0.6]), runs("b", [0.5]), "count", 1000)
    assert alone.value == pytest.approx(0.1) and alone.low is alone.high is alone.p is None and not alone.excludes_zero


def test_without_a_common_seed_or_point_there_is_no_difference(record):
    right = np.ones(20, bool)
    here, there = with_scores(record("a", 0), {1000: right}), with_scores(record("b", 1), {1000: right})
    assert paired_difference([here], [there], "count", 1000) is None
    assert paired_difference([here], [with_scores(record("b", 0), {9000: right})], "count", 1000) is None
    same = paired_difference([here], [with_scores(record("b", 0), {1005: right})], "count", 1000)
    assert (same.value, same.excludes_zero) == (0, False)


def test_without_questions_it_is_a_paired_t_test() -> None:
    gap_S = np.array([0.1, 0.2, 0.0])
    found, expected = of_seeds(gap_S), stats.stats.ttest_1samp(gap_S, 0)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(0.95))
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)


def test_the_error_over_questions_is_added_in_squares_and_the_p_value_is_where_the_interval_meets_zero() -> None:
    gap_S = np.array([0.10, 0.14, 0.12, 0.08])
    seeds, both = half_width(gap_S), half_width(gap_S, 0.05)
    assert both == pytest.approx(np.hypot(seeds, 1.959964 * 0.05))
    found = of_seeds(gap_S, 0.05)
    assert half_width(gap_S, 0.05, 1 - found.p) == pytest.approx(found.value, rel=1e-6)
    assert found.excludes_zero == (found.p < 0.05)


def test_the_error_over_questions_is_that_of_their_mean_and_of_one_more_that_tells_apart() -> None:
    value_SI = np.array([[1.0, 0, 0, 1], [1, 0, 1, 1]])
    mean_I = value_SI.mean(axis=0)
    expected = np.sqrt((((mean_I - mean_I.mean()) ** 2).sum() + 1) / 12)
    assert question_error([value_SI]) == pytest.approx(expected)
    assert question_error([value_SI, value_SI]) == pytest.approx(expected / np.sqrt(2))  # questions of their own each
    assert question_error([np.zeros((3, 200))]) > 0 and question_error([np.ones((3, 200))], shares=False) == 0
    assert of_items([value_SI]).value == pytest.approx(value_SI.mean()) and of_items([value_SI, 0 * value_SI]).n == 8


def test_what_seeds_do_to_both_sides_alike_cancels() -> None:
    shared = np.array([0.3, -0.2, 0.1])
    assert of_seeds((0.5 + shared) - (0.4 + shared)).low == pytest.approx(0.1)


def test_corrections_are_those_of_scipy_and_of_the_book() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005, 0.5]
    assert benjamini_hochberg(p_values) == pytest.approx(stats.false_discovery_control(p_values))
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's own example
    assert holm([None, 0.02, None, float("nan")]) == [None, 0.02, None, None] and holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0] and benjamini_hochberg([0.9, None]) == [0.9, None]


def test_equivalence_needs_seeds_and_a_margin() -> None:
    close = np.array([0.01, -0.01, 0.005, 0.0])
    assert equivalent(close, 0.03) and not equivalent(close, 0.005) and not equivalent(close[:1], 0.5)
    assert not equivalent(close, 0.03, questions=0.05)
    for margin in (0.005, 0.01, 0.02, 0.03):
        one_sided = [
            stats.ttest_1samp(close, side * margin, alternative="greater" if side < 0 else "less").pvalue for side in (-1, 1)
        ]
        assert equivalence_p(close, margin) == pytest.approx(min(1.0, max(one_sided) if max(one_sided) < 0.5 else 1.0), rel=1e-4)
    assert equivalence_p(close[:1], 0.5) == 1.0


def test_seeds_needed_find_the_difference_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    pilot = np.array([0.3, -0.5, 1.1, 0.7, 0.2])
    count = int(seeds_needed(pilot))
    found = [of_seeds(generator.normal(pilot.mean(), pilot.std(ddof=1), count)).p < 0.05 for _ in range(1000)]
    fewer = [of_seeds(generator.normal(pilot.mean(), pilot.std(ddof=1), count // 2)).p < 0.05 for _ in range(1000)]
    assert np.mean(found) > 0.77 and np.mean(fewer) < 0.7
    assert seeds_needed(pilot, questions=1.0) == np.inf  # more seeds do not help where questions are too few


def test_luck_of_answers_is_no_error_that_lasts() -> None:
    """In worlds whose questions do not tell the sides apart it is next to none, in others their true share."""
    generator = np.random.default_rng(1)
    luck = [lasting_error([generator.normal(0, 1, (9, 200))]) for _ in range(200)]
    assert np.sqrt(np.mean(np.square(luck))) < 0.5 * question_error([generator.normal(0, 1, (9, 200))], shares=False)
    real = [lasting_error([generator.normal(0, 1, (9, 200)) + generator.normal(0, 2, 200)]) for _ in range(200)]
    assert np.sqrt(np.mean(np.square(real))) == pytest.approx(2 / np.sqrt(200), rel=0.05)
    one = generator.normal(0, 1, (1, 200))
    assert lasting_error([one]) == question_error([one], shares=False)
    assert lasting_error([np.ones((3, 5))]) == 0.0


def test_more_questions_are_asked_for_until_they_save_no_seeds() -> None:
    generator = np.random.default_rng(0)
    pilot = np.array([0.3, -0.5, 1.1, 0.7, 0.2])
    alone = seeds_needed(pilot)
    assert needed(pilot) == Needed(alone, 1)
    found = needed(pilot, questions=0.5)
    assert (
        found.times > 1 and alone <= found.seeds <= 2 * alone and found.shown == f"{found.seeds} with {found.times} x the questions"
    )
    assert seeds_needed(pilot, 0.5 / np.sqrt(found.times / 2)) > 2 * alone
    # by simulation: seeds that scatter as these, and questions whose error falls with their number
    error = 0.5 / np.sqrt(found.times)
    means = generator.normal(0, error, 1000) + pilot.mean()
    tests = [of_seeds(generator.normal(mean, pilot.std(ddof=1), found.seeds), error).p < 0.05 for mean in means]
    assert np.mean(tests) == pytest.approx(0.8, abs=0.05)
    for nothing in (np.array([0.1, -0.1]), np.zeros(3)):
        assert needed(nothing) == Needed(np.inf, 1) and needed(nothing, 1.0).shown == "over 1,000"
    assert needed(np.full(3, 0.2)) == Needed(2, 1)  # seeds that agree
