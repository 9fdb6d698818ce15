from dataclasses import replace

import numpy as np
import pytest

from tunalab.analysis.power import ENDPOINTS, loss_area, mean_margin, power_markdown, power_table
from tunalab.analysis.statistics import seeds_needed
from tunalab.errors import UserError


def test_a_row_an_endpoint_and_pair_with_its_seeds_and_hours(records):
    made = records(variants=("tuna", "tuna2"), seeds=4, kinds=2)
    table = power_table(made)
    assert set(table["endpoint"]) >= {"accuracy at the end", "relations (GQA) at the end", "charts (ChartQA) at the end"}
    row = table[table["endpoint"] == "charts (ChartQA) at the end"].iloc[0]
    by_seed = {
        name: np.array([one.points[-1].benchmarks["charts"].accuracy for one in made if one.run.variant == name])
        for name in ("tuna", "tuna2")
    }
    gap_S = by_seed["tuna"] - by_seed["tuna2"]
    assert row["difference"] == pytest.approx(gap_S.mean()) and row["seeds"] == 4
    assert row["needed"] >= seeds_needed(gap_S) and row["needed_in_family"] >= row["needed"]
    hours = sum(
        np.mean([one.totals.seconds * one.environment["threads"] for one in made if one.run.variant == name]) for name in by_seed
    )
    if np.isfinite(row["needed_in_family"]):
        assert row["core_hours"] == pytest.approx(row["needed_in_family"] * hours / 3600)
    text = power_markdown(table, price=2.0)
    assert "| charts (ChartQA) at the end | Tuna - Tuna-2 |" in text and "price" in text


def test_areas_of_losses_are_means_over_log_tokens(record):
    made = record("tuna2")
    losses = [1.5 / (1 + number) for number in range(len(made.points))]
    points = [replace(point, losses={"text/vqa": loss}) for point, loss in zip(made.points, losses, strict=True)]
    assert loss_area(made) is None
    made = replace(made, points=points)
    x = np.log([point.tokens for point in made.points])
    assert loss_area(made) == pytest.approx(np.trapezoid(losses, x) / (x[-1] - x[0]))
    assert mean_margin(made) is None and set(ENDPOINTS) >= {"answers' loss, area over log tokens"}


def test_one_seed_is_no_pilot(records):
    with pytest.raises(UserError, match="two seeds in common"):
        power_table(records(seeds=1))
