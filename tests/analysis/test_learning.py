import numpy as np
import pytest
from tests.curves import TOKENS, answered, curves_of, run_of

from tunalab.analysis.curves import AXES, axis_named, duration, interpolation, lines, moves, power, short
from tunalab.analysis.learning import area, band, covers, learning_curves, linear_weights, log_weights, on_grid
from tunalab.errors import UserError
from tunalab.evaluation.measure import Score, wilson

TOKENS_AXIS = AXES["tokens"]


def flat(share):
    return lambda x: np.full(len(x), share)


def test_values_by_seed_and_by_question_are_those_of_the_slow_loop():
    generator = np.random.default_rng(0)
    sides = [answered(generator, flat(share), 3, n=60, variant=name) for name, share in (("a", 0.4), ("b", 0.7))]
    for side, found in zip(sides, on_grid(curves_of(*sides), TOKENS_AXIS), strict=True):
        right_SPI = np.array([[list(point.benchmarks["count"].items()) for point in record.points] for record in side])
        assert np.allclose(found.value_SG, right_SPI.mean(axis=2)) and np.allclose(found.answer_GI, right_SPI.mean(axis=0))


def test_curves_meet_where_both_were_evaluated_and_are_straight_over_the_logarithm_between():
    right = np.ones(10, bool)
    full = [run_of("a", 0, {100: ~right, 1000: right, 10_000: right, 40_000: right})]
    gaps = [run_of("b", 0, {99: ~right, 10_000: right})]
    first, second = on_grid(curves_of(full, gaps), TOKENS_AXIS)
    assert first.x_G.tolist() == second.x_G.tolist() == [100, 1000, 10_000]  # 99 and 100 are one place, 40,000 only one has
    assert first.value_SG.tolist() == [[0, 1, 1]] and second.value_SG[0] == pytest.approx([0, 0.5, 1])
    assert np.allclose(second.answer_GI, np.array([0, 0.5, 1])[:, None])
    weight_GP = interpolation(np.array([1.0, 10.0, 100.0]), np.array([1.0, np.sqrt(10), 100.0]))
    assert np.allclose(weight_GP, [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]])


def test_two_evaluations_that_fall_together_are_the_later_one():
    right = np.ones(10, bool)
    (found,) = on_grid(curves_of([run_of("a", 0, {1000: ~right, 1010: right, 2000: right})]), TOKENS_AXIS)
    assert found.x_G.tolist() == [1010, 2000] and found.value_SG.tolist() == [[1, 1]]


def test_without_a_common_seed_or_stretch_there_is_no_mean():
    right = np.ones(10, bool)
    apart = curves_of([run_of("a", 0, {100: right, 200: right})], [run_of("b", 1, {100: right, 200: right})])
    assert on_grid(apart, TOKENS_AXIS) == []
    later = curves_of([run_of("a", 0, {100: right, 200: right})], [run_of("b", 0, {300: right, 400: right})])
    assert on_grid(later, TOKENS_AXIS) == []


@pytest.mark.parametrize(("seeds", "luck"), [(2, 0.0), (2, 0.2), (3, 0.2), (8, 0.1)])
def test_a_band_covers_the_ability_over_all_seeds(seeds, luck):
    generator = np.random.default_rng(7)
    inside = []
    for _ in range(200):
        (curve,) = curves_of(answered(generator, flat(0.5), seeds, luck, n=200))
        found = band(curve, TOKENS_AXIS)
        inside.append(found.low_G[0] <= 0.5 <= found.high_G[0])
    assert np.mean(inside) >= 0.93 - 2 * np.sqrt(0.95 * 0.05 / 200)


def test_a_band_of_one_seed_holds_for_that_run_alone_and_says_so():
    (curve,) = curves_of([run_of("a", 0, {100: np.arange(40) < 20, 200: np.arange(40) < 30})])
    found = band(curve, TOKENS_AXIS)
    assert (found.low_G[1], found.high_G[1]) == pytest.approx(wilson(30, 40))
    assert "one seed" in covers([1, 3]) and covers([2]) == covers([4, 8]) == "questions and seeds"


def test_a_band_of_answers_that_are_all_right_is_not_certain():
    right = np.ones(40, bool)
    (curve,) = curves_of([run_of("a", seed, {100: right, 200: right}) for seed in (0, 1)])
    found = band(curve, TOKENS_AXIS)
    assert (found.low_G[0], found.high_G[0]) == pytest.approx(wilson(40, 40))


def test_without_outcomes_on_record_there_are_values_by_seed_alone(record):
    def of(outcomes):
        shown = lines([record(name, seed, outcomes=outcomes) for name in ("tuna", "tuna2") for seed in (0, 1)])
        first, second = on_grid(learning_curves(shown, "count"), TOKENS_AXIS)
        return first.less(second).weighted(np.eye(len(first.x_G))[-1], 200)

    paired, counted = of(True), of(False)
    assert paired.by_item and not counted.by_item and paired.value == pytest.approx(counted.value)
    assert paired.high - paired.low > counted.high - counted.low


def test_lines_are_variants_in_their_order_by_setting(records, record):
    made = records(ratios=(0.5, 0.0), seeds=2)
    assert [(line.variant, line.setting.label) for line in lines(made)][:3] == [
        ("tuna", "mask ratio 0"),
        ("tuna", "mask ratio 0.5"),
        ("tuna_r", "mask ratio 0"),
    ]
    assert [record.run.seed for record in lines(made)[0].records] == [0, 1]
    with pytest.raises(UserError, match="one and two are the same run"):
        lines([record(name="one"), record(name="two")])


def test_a_run_that_does_not_move_on_an_axis_cannot_be_drawn_on_it(record):
    right = np.ones(10, bool)
    still = run_of("a", 0, {100: right, 200: right})
    still.points[1] = type(still.points[1])(200, 2, 4, still.points[0].flops, 9.0, {"count": Score.from_outcomes(right, 0.1)})
    (curve,) = curves_of([still])
    with pytest.raises(UserError, match="training FLOPs do not grow"):
        band(curve, AXES["flops"])
    assert not moves([curve.line], AXES["flops"]) and moves([curve.line], AXES["tokens"])


def test_every_axis_has_its_places(record):
    made = record("tuna2")
    (curve,) = curves_of([made])
    point = made.points[3]
    for name, expected in (
        ("tokens", point.tokens),
        ("images", point.images),
        ("flops", point.flops),
        ("wall_clock", point.seconds),
        ("parameters", point.tokens * 700_000),
    ):
        assert curve.places.on(AXES[name])[0][3] == expected
    assert len(TOKENS) == 8


TOKENS_AXIS = AXES["tokens"]


def test_weights_are_the_integrals_of_lines_over_the_logarithm():
    generator = np.random.default_rng(0)
    x_G = np.sort(generator.uniform(1, 100, 6))
    value_G = generator.random(6)
    fine = np.linspace(x_G[0], x_G[-1], 400_001)
    drawn = np.interp(np.log(fine), np.log(x_G), value_G)
    assert linear_weights(x_G) @ value_G == pytest.approx(drawn.mean(), abs=1e-5)
    even = np.linspace(np.log(x_G[0]), np.log(x_G[-1]), 400_001)
    assert log_weights(x_G) @ value_G == pytest.approx(np.interp(even, np.log(x_G), value_G).mean(), abs=1e-5)
    assert linear_weights(x_G).sum() == pytest.approx(1) and log_weights(x_G).sum() == pytest.approx(1)


def test_areas_and_their_differences_are_means_over_the_common_stretch():
    half, all_right = np.arange(200) % 2 == 0, np.ones(200, bool)
    a, b = curves_of(
        [run_of("a", seed, {100: half, 10_000: all_right}) for seed in (0, 1)],
        [run_of("b", seed, {10: half, 100: half, 1000: half, 10_000: half}) for seed in (0, 1)],
    )
    of_a = {one.scale: one for one in area(a, TOKENS_AXIS)}
    assert of_a["log"].estimate.value == pytest.approx(0.75) and of_a["linear"].estimate.value > 0.85
    log, linear = area(a, TOKENS_AXIS, less=b)
    assert log.estimate.value == pytest.approx(0.25) and (log.first, log.last) == (100, 10_000)
    # Right wherever b is, by both seeds alike: what is left is the error over questions, and shares that are rounded to 1/200.
    questions, rounding = 1.96 * np.sqrt((200 / 16 + 1) / (200 * 199)), 12.706205 / 200 / np.sqrt(12) / np.sqrt(2)
    assert log.estimate.low == pytest.approx(0.25 - np.hypot(questions, rounding), abs=1e-4)
    assert linear.estimate.value > log.estimate.value
    assert area(a, TOKENS_AXIS, less=curves_of([run_of("c", 0, {10_000: half})])[0]) == []
    (alone,) = curves_of([run_of("a", 0, {100: half, 10_000: all_right})])
    assert area(alone, TOKENS_AXIS, less=b)[0].estimate.low is None  # one seed says nothing of another


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        (short, 1500, "1.5k"),
        (short, 9_001_598, "9M"),
        (short, 0.5, "0.5"),
        (power, 4.586e13, "4.59e13"),
        (power, 1e12, "1e12"),
        (duration, 45, "45 s"),
        (duration, 5400, "1.5 h"),
        (duration, 172_800, "2 d"),
    ],
)
def test_places_as_text(text, value, expected):
    assert text(value) == expected


def test_an_unknown_axis_names_the_choices():
    with pytest.raises(UserError, match="unknown x axis 'steps', choices: tokens, images, flops, wall_clock, parameters"):
        axis_named("steps")
