import numpy as np
import pytest

from tunalab.evaluation.measure import Measure, mean, share, wilson


def test_a_share_counts_what_is_right_with_wilsons_interval() -> None:
    one = share("understanding", "count@2", [True, False, True, True], split="test", chance=0.25, ceiling=1.0, note="a note")
    assert (one.value, one.n, one.items, one.metric) == (0.75, 4, [1, 0, 1, 1], "accuracy")
    assert (one.low, one.high) == wilson(3, 4)
    assert (one.split, one.chance, one.ceiling, one.note, one.failures) == ("test", 0.25, 1.0, "a note", 0)
    assert one.key == ("understanding", "count@2", "test", "accuracy")
    with pytest.raises(ValueError, match="n=0"):
        share("understanding", "count", [])


def test_a_mean_has_an_interval_around_it_that_repeats_itself_and_narrows() -> None:
    values = np.random.default_rng(1).normal(20, 3, 400)
    one, few = (mean("reconstruction", "scenes", values[:n].tolist(), metric="psnr", failures=2) for n in (400, 25))
    assert one == mean("reconstruction", "scenes", values.tolist(), metric="psnr", failures=2)
    assert one.value == pytest.approx(values.mean()) and one.n == 400 and one.failures == 2
    assert one.items == pytest.approx(values.tolist(), abs=1e-6)
    # The textbook's interval of a normal sample's mean.
    half = 1.96 * values.std(ddof=1) / 20
    assert (one.low, one.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert few.high - few.low > 2.5 * (one.high - one.low)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [0.5, 0.5, 0.5], [1.0] * 50 + [1.0 + 2**-52], [-7.0] * 3 + [-7.0 - 1e-12]])
def test_without_spread_there_is_no_interval(values: list[float]) -> None:
    one = mean("editing", "move", values, metric="psnr")
    assert one.value == pytest.approx(values[0]) and one.n == len(values)
    assert one.low is None and one.high is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [[1.0, 2.0], [0.0] * 199 + [1.0], [5.0] * 10 + [5.00001], [0.0] * 20 + [1e9], [-1e-7, 1e-7]])
def test_with_little_spread_there_is_one(values: list[float]) -> None:
    one = mean("editing", "move", values, metric="psnr")
    assert one.low is not None and one.high is not None and one.low < one.high and one.low <= one.value <= one.high


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_what_could_not_be_measured_is_no_item(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite values"):
        mean("editing", "move", values, metric="psnr")


def test_a_mean_of_many_items_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).random(1000).tolist()
    whole = mean("attention", "relations", values, metric="share")
    monkeypatch.setattr("tunalab.evaluation.measure._BOOTSTRAP_VALUES", 10_000)  # ten resamples at a time
    parts = mean("attention", "relations", values, metric="share")
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=4e-3) and parts.value == whole.value


def test_a_measure_is_of_a_known_kind() -> None:
    with pytest.raises(ValueError, match="'understnding' is no kind of measure"):
        Measure("understnding", "count", "accuracy", 0.5, 4)
