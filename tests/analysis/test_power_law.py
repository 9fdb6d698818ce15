import numpy as np
import pytest
from scipy.optimize import least_squares
from tests.curves import TOKENS, answered, curves_of

from tunalab.analysis.curves import AXES
from tunalab.analysis.power_law import _without_law, fit, fit_logistic, power_law

TOKENS_AXIS = AXES["tokens"]
CHANCE = 0.1


def law(asymptote, start, exponent):
    return lambda x: np.maximum(CHANCE, asymptote - (asymptote - CHANCE) * (x / start) ** -exponent)


@pytest.mark.parametrize(
    ("asymptote", "start", "exponent"),
    [(0.8, 2e5, 0.7), (0.55, 4e5, 1.5), (0.95, 1e3, 0.3), (1.0, 1e6, 1.0)],
)
def test_known_laws_are_recovered(asymptote, start, exponent):
    found = fit(TOKENS, law(asymptote, start, exponent)(TOKENS)[None], CHANCE)
    assert found.error_R[0] < 2e-4
    assert found.asymptote_R[0] == pytest.approx(asymptote, abs=5e-3)
    assert found.exponent_R[0] == pytest.approx(exponent, rel=0.03) and found.start_R[0] == pytest.approx(start, rel=0.1)
    assert found.at(1e8)[0] == pytest.approx(law(asymptote, start, exponent)(1e8), abs=5e-3)


def test_no_start_of_scipy_finds_a_better_fit():
    """The slow reference: bounded least squares from many starts, on noisy curves."""
    generator = np.random.default_rng(0)
    for asymptote, start, exponent in ((0.8, 2e5, 0.7), (0.5, 1e6, 2.0), (0.9, 1e4, 0.2)):
        y_P = law(asymptote, start, exponent)(TOKENS) + 0.03 * generator.standard_normal(len(TOKENS))

        def residuals(p, y_P=y_P):
            return np.maximum(CHANCE, p[0] - (p[0] - CHANCE) * np.exp(-p[2] * (np.log(TOKENS) - p[1]))) - y_P

        bounds = ([CHANCE, np.log(TOKENS[0]) - 14, 0.03], [1, np.log(TOKENS[-1]), 10])
        starts = [(0.7, np.log(first), c) for first in (1e3, 1.5e5, 1e6, 3e6) for c in (0.1, 0.5, 2.0)]
        best = min(least_squares(residuals, start, bounds=bounds).cost for start in starts)
        found = fit(TOKENS, y_P[None], CHANCE)
        assert found.error_R[0] <= np.sqrt(2 * best / len(TOKENS)) + 1e-6


def kinds_of_curves():
    """Rows above chance: laws with noise, and all that leaves a law open: level, one, two or three points, a step, below chance."""
    generator = np.random.default_rng(1)
    places = len(TOKENS)
    noisy = [
        law(*one)(TOKENS) + noise * generator.standard_normal(places)
        for one in ((0.8, 2e5, 0.7), (0.5, 1e6, 2.0), (0.9, 1e4, 0.2))
        for noise in (0.001, 0.03, 0.1)
        for _ in range(10)
    ]
    late = [np.where(np.arange(places) < places - count, CHANCE - 0.01, 0.3) for count in (1, 2, 3)]
    rising = [np.where(np.arange(places) < places - 3, CHANCE, np.linspace(-0.5, 0.7, places)) for count in (1, 2, 3)]
    level = [np.full(places, value) for value in (0, 0.05, CHANCE, 0.4, 1)]
    return np.clip(np.array([*noisy, *late, *rising, *level]), 0, 1)


@pytest.mark.parametrize("part", ["accuracy", "places"])
def test_last_bits_do_not_move_a_law(part):
    """As another processor's logarithm would: a thousandth of what is printed may change, and no law jumps to another."""
    generator = np.random.default_rng(2)
    rows = kinds_of_curves()
    shift = 1 + 4 * np.finfo(float).eps * generator.uniform(-1, 1, (2, 8))
    plain = fit(TOKENS, rows, CHANCE)
    moved = fit(TOKENS * shift[0] if part == "places" else TOKENS, rows * shift[1] if part == "accuracy" else rows, CHANCE)
    for name in ("asymptote_R", "exponent_R", "start_R", "error_R"):
        assert getattr(moved, name) == pytest.approx(getattr(plain, name), rel=2e-5, abs=1e-7), name


def test_of_laws_that_fit_alike_it_is_a_stated_one():
    nothing, one, two = np.full(8, CHANCE), np.full(8, CHANCE), np.full(8, CHANCE)
    one[-1:], two[-2:] = 0.3, (0.2, 0.3)
    found = fit(TOKENS, np.array([nothing, one, two]), CHANCE)
    assert found.exponent_R == pytest.approx([1, 1, 1], abs=1e-4)
    assert found.asymptote_R[0] == CHANCE and found.start_R[0] == pytest.approx(TOKENS[0] * np.exp(-14))
    assert found.start_R[1] == pytest.approx(TOKENS[-2]), "the place before the one point above chance"
    assert TOKENS[-3] < found.start_R[2] < TOKENS[-2] and found.error_R == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_law_that_starts_at_a_place_counts_those_after_it():
    """Whatever the last bit of that place's logarithm."""
    for shift in (1, 1 - 1e-15, 1 + 1e-15):
        x_P = TOKENS * shift
        y_P = np.where(x_P > x_P[3] * 1.01, 0.6, 0.02)
        found = fit(x_P, y_P[None], CHANCE)
        assert found.start_R[0] == pytest.approx(x_P[3]) and "3 points" not in _without_law(found, x_P, above_chance=True)


def test_rows_are_fitted_by_themselves():
    rows = np.array([law(0.8, 2e5, 0.7)(TOKENS), law(0.5, 5e5, 1.5)(TOKENS), np.full(8, 0.05)])
    together = fit(TOKENS, rows, CHANCE)
    for index, row in enumerate(rows):
        alone = fit(TOKENS, row[None], CHANCE)
        assert together.asymptote_R[index] == pytest.approx(alone.asymptote_R[0], abs=1e-6)
    assert together.asymptote_R[2] == pytest.approx(CHANCE)  # data below chance: no rise, and no asymptote below chance


def found_of(ability, seeds=5, n=2000, luck=0.003):
    (curve,) = curves_of(answered(np.random.default_rng(0), ability, seeds, luck, n))
    return power_law(curve, TOKENS_AXIS)


def logistic(asymptote, steepness, middle):
    return lambda x: CHANCE + (asymptote - CHANCE) / (1 + np.exp(-steepness * (np.log(x) - np.log(middle))))


@pytest.mark.parametrize(("asymptote", "steepness", "middle"), [(0.8, 2.0, 6e5), (0.5, 4.0, 2e6), (0.95, 1.0, 3e5)])
def test_a_logistic_curve_is_recovered(asymptote, steepness, middle):
    truth = logistic(asymptote, steepness, middle)
    fitted = fit_logistic(TOKENS, truth(TOKENS), CHANCE)
    for x in (TOKENS[0], TOKENS[4], 3e7):
        assert fitted(x) == pytest.approx(float(truth(np.array(x))), abs=2e-3)


def test_a_law_is_found_with_intervals_that_hold_it_and_predicts_its_last_point():
    found = found_of(law(0.8, 1.2e5, 1.0))
    assert not found.unknown and found.residual < 0.03
    for (_, low, high), truth in ((found.asymptote, 0.8), (found.exponent, 1.0), (found.forecast, law(0.8, 1.2e5, 1.0)(8e7))):
        assert low <= truth <= high
    assert found.asymptote[2] - found.asymptote[1] < 0.2
    assert abs(found.held_out[0].error) < abs(found.held_out[0].logistic) and found.held_out[0].upto == TOKENS[-2]
    assert found.factor == pytest.approx((found.asymptote[0] - CHANCE) * found.start[0] ** found.exponent[0])


def test_logistic_curves_have_no_power_law():
    """More than half of them had one while the residual alone decided."""
    generator, found = np.random.default_rng(3), []
    for _ in range(30):
        ability = logistic(generator.uniform(0.5, 1), generator.uniform(1, 4), generator.uniform(2e5, 1.5e6))
        (curve,) = curves_of(answered(generator, ability, 5, 0.01, 400))
        found.append(power_law(curve, TOKENS_AXIS).unknown)
    assert sum(not one for one in found) <= 3
    assert any("logistic" in one for one in found)


def test_one_seed_has_no_law():
    found = found_of(law(0.8, 1.2e5, 1.0), seeds=1)
    assert "one seed" in found.unknown and found.asymptote[1] is None


@pytest.mark.parametrize(
    ("ability", "why"),
    [
        (lambda x: np.full(len(x), CHANCE), "not above chance"),
        (lambda x: np.full(len(x), 0.03), "not above chance"),  # chance above the asymptote
        (lambda x: np.where(x < 3e6, CHANCE, 0.6), "points after the take-off"),
        (lambda x: CHANCE + 0.1 * np.log(x / TOKENS[0]), "not bending yet"),
        (lambda x: np.where(x < 8e5, 0.2, 0.9), "too few points to predict"),
    ],
)
def test_what_is_no_law_is_said(ability, why):
    assert why in found_of(ability).unknown


def test_too_few_points_have_no_law():
    (record,) = answered(np.random.default_rng(0), law(0.8, 1e5, 1.0), 1)
    del record.points[3:]
    assert power_law(curves_of([record])[0], TOKENS_AXIS) is None
