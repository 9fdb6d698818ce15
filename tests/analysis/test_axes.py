import pytest

from tunalab.analysis.curves import axis_named, duration, power, short
from tunalab.errors import UserError


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
