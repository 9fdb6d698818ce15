from dataclasses import replace
from itertools import pairwise
from math import exp, inf, log

import numpy as np
import pytest
from tests.curves import TOKENS, answered, curves_of, run_of

from tunalab.analysis.crossing import crossing, crossings, last_changes, passing
from tunalab.analysis.curves import AXES
from tunalab.analysis.resampling import Draws

TOKENS_AXIS = AXES["tokens"]


def slow_last_change(gap, x):
    """By hand, from the end: the sign there, and where it was taken over."""
    signs = [0 if abs(value) < 1e-9 else 1 if value > 0 else -1 for value in gap]
    expected = [index for index, sign in enumerate(signs) if sign]
    if not expected:
        return 0, -inf, 0
    changes = sum(signs[a] != signs[b] for a, b in pairwise(expected))
    last = signs[expected[-1]]
    before = [index for index in expected if signs[index] == -last]
    if not before:
        return last, -inf, changes
    left = before[-1]
    right = min(index for index in expected if index > left)
    if right > left + 1:  # ties between: their middle
        return last, (log(x[left + 1]) + log(x[right - 1])) / 2, changes
    share = abs(gap[left]) / (abs(gap[left]) + abs(gap[right]))
    return last, log(x[left]) + share * (log(x[right]) - log(x[left])), changes


def test_last_changes_are_those_of_the_slow_loop():
    generator = np.random.default_rng(0)
    for places in (1, 2, 3, 8):
        gap_RG = generator.integers(-2, 3, size=(600, places)) / 10  # with many ties
        x = np.geomspace(10, 1000, places)
        found = last_changes(gap_RG, x)
        for index, gap in enumerate(gap_RG):
            sign, place, count = slow_last_change(gap, x)
            assert (found.sign_R[index], found.count_R[index]) == (sign, count)
            assert found.place_R[index] == pytest.approx(place)


def rising(start, end):
    """Straight over the logarithm, as curves are between evaluations."""
    return lambda x: start + (end - start) * np.log(x / TOKENS[0]) / np.log(TOKENS[-1] / TOKENS[0])


# Of two seeds little is seen: where they scatter, the bootstrap knows that it does not know.
@pytest.mark.parametrize(("seeds", "luck", "often"), [(1, 0.0, 0.6), (2, 0.03, 0.2), (3, 0.03, 0.6), (5, 0.03, 0.6)])
def test_intervals_of_a_known_crossing_cover_it(seeds, luck, often):
    generator, draws = np.random.default_rng(1), Draws(resamples=400)
    truth = exp(log(TOKENS[0]) + 0.5 * log(TOKENS[-1] / TOKENS[0]))  # .35 -> .65 against .2 -> .8: in the middle
    inside, passed = [], []
    for _ in range(60):
        sides = [
            answered(generator, rising(*ends), seeds, luck, variant=name) for name, *ends in (("a", 0.35, 0.65), ("b", 0.2, 0.8))
        ]
        found = crossing(*curves_of(draws, *sides), TOKENS_AXIS, draws)
        inside.append(found.low <= truth <= found.high)
        passed.append(found.clear and found.leader.variant == "b" and abs(log(found.at / truth)) < 1.5)
    assert np.mean(inside) >= 0.9 and np.mean(passed) > often


def test_equal_curves_are_hardly_ever_seen_to_cross():
    generator, draws = np.random.default_rng(2), Draws(resamples=400)
    found = [
        crossing(
            *curves_of(draws, *(answered(generator, rising(0.2, 0.7), 3, 0.03, variant=name) for name in "ab")), TOKENS_AXIS, draws
        )
        for _ in range(60)
    ]
    assert np.mean([one.changes > 0 for one in found]) > 0.4  # by chance they touch often
    assert np.mean([one.clear for one in found]) <= 0.05


def test_never_crossing_says_up_to_where_and_who_leads():
    generator, draws = np.random.default_rng(3), Draws(resamples=400)
    sides = [answered(generator, rising(*ends), 3, variant=name) for name, *ends in (("a", 0.2, 0.4), ("b", 0.5, 0.8))]
    found = crossing(*curves_of(draws, *sides), TOKENS_AXIS, draws)
    assert found.leader.variant == "b" and found.at is None and not found.clear and found.changes == 0
    assert found.before == found.ahead == 1 and found.low == -inf and passing(found, TOKENS_AXIS) == "none up to 8M"


def test_resamples_without_a_crossing_open_the_interval_and_are_counted():
    """b passes a in the last step only, by little: many resamples never see it, and none is dropped."""
    generator = np.random.default_rng(4)
    shares = {"a": [0.3, 0.4, 0.5, 0.6], "b": [0.2, 0.3, 0.4, 0.62]}
    sides = [
        [run_of(name, 0, {at: generator.permutation(200) < 200 * share for at, share in zip(TOKENS[: len(of)], of, strict=True)})]
        for name, of in shares.items()
    ]
    draws = Draws(resamples=1000)
    found = crossing(*curves_of(draws, *sides), TOKENS_AXIS, draws)
    assert found.leader.variant == "b" and TOKENS[2] < found.at < TOKENS[3]
    assert found.before + found.within + found.after == pytest.approx(1) and 0.1 < found.after < 0.6
    assert found.high == inf and passing(found, TOKENS_AXIS).endswith(f"> {TOKENS_AXIS.text(TOKENS[3])}]")
    assert found.after == pytest.approx(found.behind, abs=0.05)


def test_ties():
    """Level at the end: who led last leads; level for a stretch: its middle; level throughout: nobody."""
    few, many = np.arange(100) < 30, np.arange(100) < 60
    draws = Draws(resamples=200)

    def of(first, second):
        sides = [
            [run_of(name, 0, dict(zip((100, 1000, 10_000, 100_000), part, strict=True)))]
            for name, part in zip("ab", (first, second), strict=True)
        ]
        return crossing(*curves_of(draws, *sides), TOKENS_AXIS, draws)

    end = of([many, few, many, many], [few, many, many, many])
    assert end.leader.variant == "b" and end.ahead == end.behind == 0 and end.at == pytest.approx(10**2.5)
    stretch = of([many, many, many, few], [few, many, many, many])
    assert stretch.leader.variant == "b" and stretch.at == pytest.approx(10**3.5)
    nobody = of([few] * 4, [few] * 4)
    assert nobody.low is None and nobody.at is None and nobody.before + nobody.within + nobody.after == 0
    several = of([many, few, many, few], [few, many, few, many])
    assert several.changes == 3 and several.at == pytest.approx(10**4.5)


def test_missing_points_and_seeds_of_one_side_do_not_stop_it():
    generator, draws = np.random.default_rng(5), Draws(resamples=200)
    a, b = (answered(generator, rising(*ends), 3, variant=name) for name, *ends in (("a", 0.35, 0.65), ("b", 0.2, 0.8)))
    whole = crossing(*curves_of(draws, a, b), TOKENS_AXIS, draws)
    del a[0].points[3], b[1].points[5]
    gaps = crossing(*curves_of(draws, a, b[:2]), TOKENS_AXIS, draws)
    assert gaps.seeds == 2 and whole.seeds == 3 and abs(log(gaps.at / whole.at)) < 0.7
    assert crossing(*curves_of(draws, a[:1], b[1:]), TOKENS_AXIS, draws) is None


def test_on_another_axis_the_dearer_front_end_is_passed_earlier():
    """b costs half of a's parameters here: against tokens x parameters it stands further left, and passes sooner in tokens of a."""
    generator, draws = np.random.default_rng(6), Draws(resamples=200)
    a, b = (answered(generator, rising(*ends), 2, variant=name) for name, *ends in (("a", 0.35, 0.65), ("b", 0.2, 0.8)))
    a = [replace(record, parameters={"trainable": 1_400_000}) for record in a]
    curves = curves_of(draws, a, b)
    tokens, parameters = (crossing(*curves, AXES[name], draws) for name in ("tokens", "parameters"))
    assert parameters.at / 1_400_000 < tokens.at < parameters.at / 700_000


def test_pairs_are_of_one_setting(records):
    from tunalab.analysis.curves import lines
    from tunalab.analysis.resampling import learning_curves

    made, draws = records(ratios=(0.0, 0.5), seeds=1, kinds=1), Draws(resamples=50)
    found = crossings(learning_curves(lines(made), "relations", draws), TOKENS_AXIS, draws)
    assert len(found) == 2 * 3 and all(one.leader.setting == one.other.setting for one in found)
