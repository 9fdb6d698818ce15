import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tests.printed import assert_file_alike

from tunalab.analysis.curves import AXES
from tunalab.analysis.dynamics import write_dynamics


def read(path):
    first, rest = path.read_text().split("\n", 1)
    assert first == "# made by: make table"
    return pd.read_csv(io.StringIO(rest))


def test_tables_of_two_variants(tmp_path, records):
    made = records(variants=("tuna", "tuna2"), seeds=2, kinds=2)
    paths = write_dynamics(made, tmp_path / "a", "make table")
    assert [path.name for path in paths] == [
        f"{name}.{kind}" for name in ("crossings", "areas", "power_laws") for kind in ("md", "csv")
    ]
    crossings = read(tmp_path / "a" / "crossings.csv")
    assert len(crossings) == 2 * 5 and set(crossings["axis"]) == set(AXES)  # two benchmarks, one pair, every axis
    assert set(crossings["seeds"]) == {2} and (crossings["lead_low"] < crossings["lead_high"]).all()
    areas = read(tmp_path / "a" / "areas.csv")
    assert len(areas) == 2 * 3 * 2 * 5
    row = areas[(areas.axis == "tokens") & (areas.scale == "log") & (areas.benchmark == "charts") & (areas.variant == "tuna2")]
    own, difference = (row[row["less"].isna() == alone].iloc[0] for alone in (True, False))
    slow = []
    for record in made:
        if record.run.variant == "tuna2":
            log_x = np.log([point.tokens for point in record.points])
            y = [point.benchmarks["charts"].accuracy for point in record.points]
            slow.append(np.trapezoid(y, log_x) / (log_x[-1] - log_x[0]))
    assert own["value"] == pytest.approx(np.mean(slow), abs=1e-3) and own["low"] < own["value"] < own["high"]
    assert difference["less"] == "tuna" and difference["low"] < difference["value"] < difference["high"]
    laws = read(tmp_path / "a" / "power_laws.csv")
    assert len(laws) == 4 and laws["asymptote"].between(0, 1).all()
    text = (tmp_path / "a" / "crossings.md").read_text()
    assert text.startswith("<!-- made by: make table -->\n") and "| charts (ChartQA) | Tuna-2 | Tuna |" in text
    again = write_dynamics(made, tmp_path / "b", "make table")
    assert [path.name for path in again] == [path.name for path in paths]
    for path, other in zip(again, paths, strict=True):
        assert_file_alike(path, other)


def test_one_variant_has_no_crossings_and_nothing_asked_no_tables(tmp_path, records):
    made = records(variants=("tuna2",), ratios=(0.0, 0.5), seeds=1, kinds=1)
    assert [path.name for path in write_dynamics(made, tmp_path, "make table")] == [
        *("areas.md", "areas.csv", "power_laws.md", "power_laws.csv"),
    ]
    assert "| relations (GQA) | mask ratio 0.5 |" in (tmp_path / "areas.md").read_text()
    assert "questions only: one seed says nothing of another" in (tmp_path / "areas.md").read_text()
    silent = [replace(record, points=[replace(point, benchmarks={}) for point in record.points]) for record in made]
    assert write_dynamics(silent, tmp_path, "make table") == []
