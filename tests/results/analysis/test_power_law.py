import numpy as np
import pytest
from scipy.optimize import least_squares
from tests.curves import TOKENS, answered, curves_of

from tunalab.results.analysis.axes import AXES
from tunalab.results.analysis.power_law import fit, power_law
from tunalab.results.analysis.resampling import Draws

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
        assert found.error_R[0] <= np.sqrt(2 * best / len(TOKENS)) + 1e-4


def test_rows_are_fitted_by_themselves():
    rows = np.array([law(0.8, 2e5, 0.7)(TOKENS), law(0.5, 5e5, 1.5)(TOKENS), np.full(8, 0.05)])
    together = fit(TOKENS, rows, CHANCE)
    for index, row in enumerate(rows):
        alone = fit(TOKENS, row[None], CHANCE)
        assert together.asymptote_R[index] == pytest.approx(alone.asymptote_R[0], abs=1e-6)
    assert together.asymptote_R[2] == pytest.approx(CHANCE)  # data below chance: no rise, and no asymptote below chance


def found_of(ability, seeds=3, n=600, luck=0.01):
    draws = Draws(resamples=200)
    (curve,) = curves_of(draws, answered(np.random.default_rng(0), ability, seeds, luck, n))
    return power_law(curve, TOKENS_AXIS, draws)


def test_a_law_is_found_with_intervals_that_hold_it_and_predicts_its_last_point():
    found = found_of(law(0.8, 1.2e5, 1.0))
    assert not found.unknown and found.residual < 0.03
    for (_, low, high), truth in ((found.asymptote, 0.8), (found.exponent, 1.0), (found.forecast, law(0.8, 1.2e5, 1.0)(8e7))):
        assert low <= truth <= high
    assert found.asymptote[2] - found.asymptote[1] < 0.2
    assert abs(found.held_out[0].error) < 0.05 and found.held_out[0].upto == TOKENS[-2]
    assert found.factor == pytest.approx((found.asymptote[0] - CHANCE) * found.start[0] ** found.exponent[0])


@pytest.mark.parametrize(
    ("ability", "why"),
    [
        (lambda x: np.full(len(x), CHANCE), "not above chance"),
        (lambda x: np.full(len(x), 0.03), "not above chance"),  # chance above the asymptote
        (lambda x: np.where(x < 3e6, CHANCE, 0.6), "points after the take-off"),
        (lambda x: CHANCE + 0.1 * np.log(x / TOKENS[0]), "not bending yet"),
        (lambda x: np.where(x < 8e5, 0.2, 0.9), "no power law: residual"),
    ],
)
def test_what_is_no_law_is_said(ability, why):
    assert why in found_of(ability).unknown


def test_too_few_points_have_no_law():
    draws = Draws(resamples=20)
    (record,) = answered(np.random.default_rng(0), law(0.8, 1e5, 1.0), 1)
    del record.points[3:]
    assert power_law(curves_of(draws, [record])[0], TOKENS_AXIS, draws) is None
