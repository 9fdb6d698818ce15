from dataclasses import replace
from itertools import pairwise
from math import exp, inf, log

import numpy as np
import pytest
from tests.curves import TOKENS, answered, curves_of, run_of

from tunalab.analysis.crossing import crossing, crossings, last_change, passing
from tunalab.analysis.curves import AXES

TOKENS_AXIS = AXES["tokens"]


def slow_last_change(gap, x):
    """By hand, from the end: the sign there, and where it was taken over."""
    signs = [0 if abs(value) < 1e-9 else 1 if value > 0 else -1 for value in gap]
    expected = [index for index, sign in enumerate(signs) if sign]
    if not expected:
        return 0, None, 0
    changes = sum(signs[a] != signs[b] for a, b in pairwise(expected))
    last = signs[expected[-1]]
    before = [index for index in expected if signs[index] == -last]
    if not before:
        return last, None, changes
    left = before[-1]
    right = min(index for index in expected if index > left)
    if right > left + 1:  # ties between: their middle
        return last, exp((log(x[left + 1]) + log(x[right - 1])) / 2), changes
    share = abs(gap[left]) / (abs(gap[left]) + abs(gap[right]))
    return last, exp(log(x[left]) + share * (log(x[right]) - log(x[left]))), changes


def test_last_changes_are_those_of_the_slow_loop():
    generator = np.random.default_rng(0)
    for places in (1, 2, 3, 8):
        gap_RG = generator.integers(-2, 3, size=(600, places)) / 10  # with many ties
        x = np.geomspace(10, 1000, places)
        for gap in gap_RG:
            sign, place, count = last_change(gap, x)
            expected = slow_last_change(gap, x)
            assert (sign, count) == (expected[0], expected[2]) and place == (expected[1] and pytest.approx(expected[1]))


def rising(start, end):
    """Straight over the logarithm, as curves are between evaluations."""
    return lambda x: start + (end - start) * np.log(x / TOKENS[0]) / np.log(TOKENS[-1] / TOKENS[0])


# Of two seeds little is certain: then the set is open, which is right and says little.
@pytest.mark.parametrize(("seeds", "often"), [(2, 0.0), (3, 0.1), (5, 0.5), (9, 0.9)])
def test_sets_of_a_known_crossing_cover_it(seeds, often):
    generator = np.random.default_rng(1)
    truth = exp(log(TOKENS[0]) + 0.5 * log(TOKENS[-1] / TOKENS[0]))  # .35 -> .65 against .2 -> .8: in the middle
    inside, passed = [], []
    for _ in range(100):
        sides = [
            answered(generator, rising(*ends), seeds, 0.03, variant=name) for name, *ends in (("a", 0.35, 0.65), ("b", 0.2, 0.8))
        ]
        found = crossing(*curves_of(*sides), TOKENS_AXIS)
        inside.append(found.low <= truth <= found.high)
        passed.append(found.clear and found.leader.variant == "b" and abs(log(found.at / truth)) < 1.5)
    assert np.mean(inside) >= 0.93 - 2 * np.sqrt(0.95 * 0.05 / 100) and np.mean(passed) >= often


@pytest.mark.parametrize("seeds", [2, 3, 9])
def test_equal_curves_are_hardly_ever_called_crossing(seeds):
    generator = np.random.default_rng(2)
    found = [
        crossing(*curves_of(*(answered(generator, rising(0.2, 0.7), seeds, 0.03, variant=name) for name in "ab")), TOKENS_AXIS)
        for _ in range(100)
    ]
    assert np.mean([one.changes > 0 for one in found]) > 0.3  # by chance they touch often
    assert np.mean([one.clear for one in found]) <= 0.05


def test_a_lead_over_one_that_is_at_chance_is_no_lead():
    """a learns early and stays, b from nothing: before b has left chance nobody is passed."""
    generator = np.random.default_rng(8)
    late = lambda x: np.where(x < TOKENS[4], 0.1, 0.9)  # noqa: E731
    sides = [answered(generator, rising(0.5, 0.6), 4, variant="a"), answered(generator, late, 4, variant="b")]
    found = crossing(*curves_of(*sides), TOKENS_AXIS)
    assert found.leader.variant == "b" and found.at is not None and found.low == -inf and not found.clear


def test_never_crossing_says_up_to_where_and_who_leads():
    generator = np.random.default_rng(3)
    sides = [answered(generator, rising(*ends), 3, variant=name) for name, *ends in (("a", 0.2, 0.4), ("b", 0.5, 0.8))]
    found = crossing(*curves_of(*sides), TOKENS_AXIS)
    assert found.leader.variant == "b" and found.at is None and not found.clear and found.changes == 0
    assert found.end.value > 0.3 and found.end.low > 0 and passing(found, TOKENS_AXIS) == "none up to 8M"


def test_one_seed_has_no_certain_lead():
    generator = np.random.default_rng(4)
    sides = [answered(generator, rising(*ends), 1, variant=name) for name, *ends in (("a", 0.6, 0.3), ("b", 0.2, 0.9))]
    found = crossing(*curves_of(*sides), TOKENS_AXIS)
    assert found.leader.variant == "b" and (found.low, found.high) == (-inf, inf) and found.end.low is None
    assert passing(found, TOKENS_AXIS).endswith("[< 100k, > 8M]")


def test_ties():
    """Level at the end: who led last leads; level for a stretch: its middle; level throughout: nobody."""
    few, many = np.arange(100) < 30, np.arange(100) < 60

    def of(first, second):
        sides = [
            [run_of(name, 0, dict(zip((100, 1000, 10_000, 100_000), part, strict=True)))]
            for name, part in zip("ab", (first, second), strict=True)
        ]
        return crossing(*curves_of(*sides), TOKENS_AXIS)

    end = of([many, few, many, many], [few, many, many, many])
    assert end.leader.variant == "b" and end.end.value == 0 and end.at == pytest.approx(10**2.5)
    stretch = of([many, many, many, few], [few, many, many, many])
    assert stretch.leader.variant == "b" and stretch.at == pytest.approx(10**3.5)
    nobody = of([few] * 4, [few] * 4)
    assert nobody.level and nobody.at is None and not nobody.clear
    several = of([many, few, many, few], [few, many, few, many])
    assert several.changes == 3 and several.at == pytest.approx(10**4.5)


def test_missing_points_and_seeds_of_one_side_do_not_stop_it():
    generator = np.random.default_rng(5)
    a, b = (answered(generator, rising(*ends), 3, variant=name) for name, *ends in (("a", 0.35, 0.65), ("b", 0.2, 0.8)))
    whole = crossing(*curves_of(a, b), TOKENS_AXIS)
    del a[0].points[3], b[1].points[5]
    gaps = crossing(*curves_of(a, b[:2]), TOKENS_AXIS)
    assert gaps.end.seeds == 2 and whole.end.seeds == 3 and abs(log(gaps.at / whole.at)) < 0.7
    assert crossing(*curves_of(a[:1], b[1:]), TOKENS_AXIS) is None


def test_on_another_axis_the_dearer_front_end_is_passed_earlier():
    """b costs half of a's parameters here: against tokens x parameters it stands further left, and passes sooner in tokens of a."""
    generator = np.random.default_rng(6)
    a, b = (answered(generator, rising(*ends), 2, variant=name) for name, *ends in (("a", 0.35, 0.65), ("b", 0.2, 0.8)))
    a = [replace(record, parameters={"trainable": 1_400_000}) for record in a]
    curves = curves_of(a, b)
    tokens, parameters = (crossing(*curves, AXES[name]) for name in ("tokens", "parameters"))
    assert parameters.at / 1_400_000 < tokens.at < parameters.at / 700_000


def test_pairs_are_of_one_setting(records):
    from tunalab.analysis.curves import lines
    from tunalab.analysis.learning import learning_curves

    made = records(ratios=(0.0, 0.5), seeds=1, kinds=1)
    found = crossings(learning_curves(lines(made), "relations"), TOKENS_AXIS)
    assert len(found) == 2 * 3 and all(one.leader.setting == one.other.setting for one in found)
