import pytest

from tunalab.evaluation.measure import wilson


def test_wilson_agrees_with_published_values():
    # Newcombe (1998), table I: 81 of 263, and 0 of 20, by the score method without continuity correction.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_wilson_is_symmetric_and_never_leaves_the_unit_interval():
    for n in (1, 3, 50):
        for correct in range(n + 1):
            low, high = wilson(correct, n)
            other_low, other_high = wilson(n - correct, n)
            assert 0 <= low <= correct / n <= high <= 1 and low < high
            assert (low, high) == pytest.approx((1 - other_high, 1 - other_low))


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(correct, n):
    with pytest.raises(ValueError, match="0 <= correct <= n"):
        wilson(correct, n)
