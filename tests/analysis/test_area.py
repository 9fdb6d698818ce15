import numpy as np
import pytest
from tests.curves import curves_of, run_of

from tunalab.analysis.curves import AXES
from tunalab.analysis.resampling import Draws, area, areas, linear_weights, log_weights

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
    draws = Draws(resamples=300)
    a, b = curves_of(
        draws,
        [run_of("a", 0, {100: half, 10_000: all_right})],
        [run_of("b", 0, {10: half, 100: half, 1000: half, 10_000: half})],
    )
    of_a = {one.scale: one for one in areas([a], TOKENS_AXIS, draws)}
    assert of_a["log"].value == pytest.approx(0.75) and of_a["linear"].value > 0.85
    log, linear = area(a, TOKENS_AXIS, draws, less=b)
    assert log.value == pytest.approx(0.25) and (log.first, log.last) == (100, 10_000)
    # Right wherever b is: question by question the difference is certain to be above zero, as two intervals it is not.
    assert log.low > 0.18 and log.high < 0.32 and not log.excludes_zero  # of one seed it says nothing of another
    assert linear.value > log.value
    assert area(a, TOKENS_AXIS, draws, less=curves_of(draws, [run_of("c", 0, {10_000: half})])[0]) == []
