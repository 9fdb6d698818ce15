"""The picture of learning rates: every run of a sweep in its place, the least mean ringed."""

from dataclasses import replace

import numpy as np
import pytest

from tunalab.analysis.tuning import encoder_rate, learning_rate
from tunalab.errors import UserError


@pytest.fixture
def tuned(record):
    """Runs whose loss is least at rate 1 and at an encoder's factor of .3."""

    def of(variant, rate, encoder=None, seed=0):
        own = [f"optimizer.groups.encoder={{match: frontend.encoder, lr: {encoder}}}"] if encoder is not None else []
        made = record(variant, seed=seed, settings=[f"optimizer.lr_factor={rate}", *own])
        loss = 0.5 + np.log2(rate) ** 2 / 10 + (abs(encoder - 0.3) if encoder is not None else 0) + seed / 100
        return replace(made, points=[*made.points[:-1], replace(made.points[-1], losses={"text/vqa": loss})])

    rates = [of("tuna2", rate, seed=seed) for rate in (0.5, 1.0, 2.0) for seed in (0, 1)]
    rates += [of("tuna_r", rate, 0.1) for rate in (0.5, 1.0, 2.0, 4.0)]
    return rates + [of("tuna_r", 1.0, encoder) for encoder in (0.0, 0.3, 1.0)]


def test_both_panels_show_the_runs_at_one_value_of_the_other(tuned):
    left, right = learning_rate(tuned).axes
    curves = {line.get_label(): line for line in left.lines if not line.get_label().startswith("_")}
    assert {*curves} == {"Tuna-R", "Tuna-2"}
    assert curves["Tuna-2"].get_xdata().tolist() == [0.5, 1.0, 2.0]
    assert curves["Tuna-2"].get_ydata().tolist() == pytest.approx([0.605, 0.505, 0.605])  # means of two seeds
    rings = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "o"]
    assert rings == [1.0, 1.0]
    (encoder,) = [line for line in right.lines if line.get_label() == "Tuna-R"]
    assert encoder.get_xdata()[1:].tolist() == [0.1, 0.3, 1.0] and right.get_xticklabels()[0].get_text() == "frozen"


def test_one_rate_is_no_picture(tuned, record):
    with pytest.raises(UserError, match="two learning rates or more"):
        learning_rate([tuned[0], record("tuna_r")])


@pytest.mark.parametrize(
    ("variant", "settings", "rate"),
    [
        ("tuna_r", ["optimizer.groups.encoder.match=decoder"], 1.0),
        ("tuna_r", ["frontend.encoder_trained=false"], 0.0),
        ("tuna_r", ["optimizer.groups.encoder={match: frontend.encoder, lr: 0.3}"], 0.3),
        ("tuna2", [], None),
    ],
)
def test_an_encoder_without_a_rate_of_its_own_has_the_decoders(record, variant, settings, rate):
    assert encoder_rate(record(variant, settings=settings)) == rate
