from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tunalab.analysis.curves import align_tokens, curves, last_common_tokens
from tunalab.analysis.statistics import Scatter, above_chance, paired_difference, pooled, scatter_of_contrasts, scatter_of_means
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
    others = [with_scores(record("tuna", seed=seed), {1000: right}) for seed, right in enumerate((first, first))]
    row, _ = sorted(pooled(align_tokens(curves(runs + others))).to_dict("records"), key=lambda row: -row["accuracy"])
    low, high = wilson(1220, 2000)
    assert row["accuracy"] == pytest.approx(0.61) and row["n"] == 2000 and row["seeds"] == 2
    # Four runs of two variants: two degrees of freedom, shared by both.
    seed_error = 4.302653 * np.sqrt(0.0002 / 2) / np.sqrt(2)
    assert row["low"] == pytest.approx(0.61 - np.hypot(0.61 - low, seed_error))
    assert row["high"] == pytest.approx(0.61 + np.hypot(high - 0.61, seed_error))


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
    paired = paired_difference([a], [b], "count", 1000)
    assert paired.by_item and paired.mean == pytest.approx(0.075) and paired.excludes_zero and paired.low > 0
    bare_a, bare_b = (
        replace(run, points=[replace(run.points[0], benchmarks={"count": Score.of(correct, 200, 0.25)})])
        for run, correct in ((a, 115), (b, 100))
    )
    counts = paired_difference([bare_a], [bare_b], "count", 1000)
    assert not counts.by_item and counts.mean == pytest.approx(0.075) and not counts.excludes_zero


def test_seeds_that_disagree_widen_the_interval(record):
    rng = np.random.default_rng(0)

    def runs(variant, shares):
        return [with_scores(record(variant, seed), {1000: rng.permutation(400) < 400 * share}) for seed, share in enumerate(shares)]

    agree = paired_difference(runs("a", [0.6] * 4), runs("b", [0.5] * 4), "count", 1000)
    disagree = paired_difference(runs("a", [0.8, 0.4, 0.8, 0.4]), runs("b", [0.5] * 4), "count", 1000)
    assert agree.seeds == disagree.seeds == 4 and agree.mean == pytest.approx(disagree.mean) == pytest.approx(0.1)
    assert disagree.high - disagree.low > 2 * (agree.high - agree.low)
    assert agree.excludes_zero and not disagree.excludes_zero


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says(record):
    # Two equal variants, one seed: 95% intervals must hold 0 in about 95 of 100 worlds.
    rng = np.random.default_rng(1)
    base_a, base_b = record("a"), record("b")
    covered = 0
    for _ in range(200):
        ability = rng.random(150)
        a, b = (with_scores(base, {1000: rng.random(150) < ability}) for base in (base_a, base_b))
        covered += not paired_difference([a], [b], "count", 1000, resamples=400).excludes_zero
    assert 180 <= covered <= 199


def test_two_seeds_grant_no_lead_that_is_a_seeds_luck(record):
    """Three equal variants whose runs scatter five times as much as their questions: zero is excluded in about 5 of 100 worlds."""
    rng = np.random.default_rng(3)
    bare = {(name, seed): record(name, seed) for name in ("tuna", "tuna_r", "tuna2") for seed in (0, 1)}
    leads = {"together": 0, "alone": 0}
    for _ in range(100):
        right = {key: rng.random(100) < 0.5 + 0.25 * rng.standard_normal() for key in bare}
        sides = [
            [with_scores(bare[name, seed], {1000: right[name, seed]}) for seed in (0, 1)] for name in ("tuna", "tuna_r", "tuna2")
        ]
        for name, among in (("together", sides), ("alone", ())):
            leads[name] += paired_difference(sides[0], sides[1], "count", 1000, among, resamples=200).excludes_zero
    assert leads["together"] <= 12 and leads["alone"] <= 12  # 12 or more of 100 at 5%: one time in 200


def test_without_a_common_seed_or_point_there_is_no_difference(record):
    right = np.ones(20, bool)
    here, there = with_scores(record("a", 0), {1000: right}), with_scores(record("b", 1), {1000: right})
    assert paired_difference([here], [there], "count", 1000) is None
    assert paired_difference([here], [with_scores(record("b", 0), {9000: right})], "count", 1000) is None
    same = paired_difference([here], [with_scores(record("b", 0), {1005: right})], "count", 1000)
    assert (same.mean, same.low, same.high, same.excludes_zero) == (0, 0, 0, False)


def test_two_cells_are_a_paired_t_test() -> None:
    a, b = np.array([0.5, 0.7, 0.6]), np.array([0.4, 0.5, 0.6])
    found = scatter_of_contrasts(np.stack([a, b]))
    gap = a - b
    assert found is not None and found.freedom == 2
    half = 4.302653 * gap.std(ddof=1) / np.sqrt(3)
    assert found.half_width(3, squares=2) == pytest.approx(half)


def test_what_cells_and_seeds_share_is_no_scatter() -> None:
    cells, seeds = np.array([[0.2], [0.5], [0.9]]), np.array([[0.0, 0.1]])
    found = scatter_of_contrasts(cells + seeds)
    assert found is not None and found.deviation == pytest.approx(0) and found.freedom == 2
    own = scatter_of_means(list(cells + seeds))
    assert own is not None and own.deviation == pytest.approx(0.1 / np.sqrt(2)) and own.freedom == 3


def test_many_cells_of_two_seeds_find_the_deviation() -> None:
    value_CS = np.random.default_rng(0).normal(scale=0.3, size=(400, 2))
    for found in (scatter_of_contrasts(value_CS), scatter_of_means(list(value_CS))):
        assert found is not None and found.deviation == pytest.approx(0.3, rel=0.08) and found.freedom >= 399


def test_one_seed_knows_nothing() -> None:
    assert scatter_of_contrasts(np.ones((5, 1))) is None and scatter_of_contrasts(np.ones((1, 5))) is None
    assert scatter_of_means([np.ones(1), np.ones(1)]) is None
    unequal = scatter_of_means([np.array([0.0, 1.0]), np.ones(1)])
    assert unequal is not None and unequal.freedom == 1 and unequal.deviation == pytest.approx(np.sqrt(0.5))


def test_draws_are_students() -> None:
    scatter = Scatter(deviation=0.1, freedom=3)
    drawn_R = scatter.draws(4000, 4, 2.0, np.random.default_rng(0))
    half = scatter.half_width(4, 2.0)
    assert half == pytest.approx(3.182446 * 0.1 * np.sqrt(2 / 4))
    assert np.quantile(drawn_R, [0.025, 0.975]) == pytest.approx([-half, half], rel=0.01)
    assert abs(np.corrcoef(drawn_R, np.arange(4000))[0, 1]) < 0.05
