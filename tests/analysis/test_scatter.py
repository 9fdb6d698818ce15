"""The scatter between seeds against what it was drawn with, and against textbook cases."""

import numpy as np
import pytest

from tunalab.analysis.statistics import Scatter, scatter_of_contrasts, scatter_of_means


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
