import json
import re

import numpy as np
import pytest

from tunalab.analysis.curves import AXES, lines, moves
from tunalab.analysis.figure6 import learned, page
from tunalab.analysis.learning import band, learning_curves
from tunalab.errors import UserError


def page_of(records, command):
    shown = lines(records)
    return page(learned(shown, [axis for axis in AXES.values() if moves(shown, axis)]), command)


def data_of(text):
    (found,) = re.findall(r"^const data = (.*);$", text, re.M)
    return json.loads(found)


def test_the_page_holds_every_curve_on_every_axis_and_asks_nothing_of_the_network(records):
    made = records(variants=("tuna", "tuna2"), seeds=2, kinds=2)
    text = page_of(made, "make figure6")
    assert not re.search(r"(src|href)\s*=|@import|url\(|fetch\(|XMLHttp", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    data = data_of(text)
    assert [axis["name"] for axis in data["axes"]] == list(AXES) and data["command"] == "make figure6"
    assert [line["label"] for line in data["lines"]] == ["Tuna", "Tuna-2"] and [panel["name"] for panel in data["panels"]] == [
        "relations",
        "charts",
    ]
    panel = data["panels"][1]
    for curve, drawn in zip(learning_curves(lines(made), "charts"), panel["axes"]["flops"]["bands"], strict=True):
        found = band(curve, AXES["flops"])
        assert np.allclose(drawn["x"], found.x_G, rtol=1e-3) and np.allclose(drawn["low"], found.low_G, atol=1e-4)
    assert len(panel["axes"]["tokens"]["crossings"]) == 1
    assert [run["seed"] for run in panel["seeds"][0]["runs"]] == [0, 1] and len(panel["axes"]["tokens"]["places"]) == 4


def test_a_name_cannot_end_the_script(record):
    for name in ("x </script><b>", "<!--<script>", "</SCRIPT >", "<\\/script>", "]]>\u2028"):
        text = page_of([record("tuna2", kinds=1)], name)
        assert len(re.findall("</?script", text, re.I)) == 2 and "<!--" not in text and data_of(text)["command"] == name


def test_an_axis_on_which_a_run_stands_still_is_left_out(record):
    made = record("tuna2", kinds=1)
    made.parameters.pop("trainable")
    assert "parameters" not in [axis["name"] for axis in data_of(page_of([made], ""))["axes"]]
    made.points.clear()
    with pytest.raises(UserError, match="no evaluated benchmark"):
        page_of([made], "")
