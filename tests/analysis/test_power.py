from dataclasses import replace

import numpy as np
import pytest

from tunalab.analysis.components import components_table, variance_parts
from tunalab.analysis.endpoints import (
    EARLY,
    LOSS,
    MARGIN,
    difference,
    endpoints,
    endpoints_table,
    loss_area,
    loss_difference,
)
from tunalab.analysis.power import power_markdown, power_table
from tunalab.analysis.statistics import seeds_needed
from tunalab.errors import UserError
from tunalab.evaluation.measure import Score

KINDS = "relations (GQA)", "charts (ChartQA)"


def test_a_row_an_endpoint_and_pair_with_its_seeds_and_hours(records):
    made = records(variants=("tuna", "tuna2"), seeds=4, kinds=2)
    table = power_table(made)
    assert set(table["endpoint"]) >= {
        "accuracy at the end",
        "relations (GQA): accuracy at the end",
        "charts (ChartQA): accuracy at the end",
    }
    row = table[table["endpoint"] == "charts (ChartQA): accuracy at the end"].iloc[0]
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
    assert "| charts (ChartQA): accuracy at the end | Tuna - Tuna-2 |" in text and "price" in text


def test_areas_of_losses_are_means_over_log_tokens(record):
    made = record("tuna2")
    losses = [1.5 / (1 + number) for number in range(len(made.points))]
    points = [replace(point, losses={"text/vqa": loss}) for point, loss in zip(made.points, losses, strict=True)]
    assert np.isnan(loss_area(made)) and loss_difference([(made, made)]) is None
    made = replace(made, points=points)
    x = np.log([point.tokens for point in made.points])
    assert loss_area(made) == pytest.approx(np.trapezoid(losses, x) / (x[-1] - x[0]))
    better = replace(made, points=[replace(point, losses={"text/vqa": point.losses["text/vqa"] / 2}) for point in points])
    found = loss_difference([(made, better), (made, better)])
    assert found is not None and found.value_S == pytest.approx(loss_area(made) / 2)
    assert LOSS not in set(endpoints_table([made, replace(better, run=replace(better.run, variant="x"))])["endpoint"])  # one seed


def test_margins_are_compared_early_and_at_the_end(record):
    """Early: the three evaluations nearest to .135, .223 and .367 of the tokens, each question's mean over them."""
    pairs, shift = [], [0.0, 0.0, 0.5, 1.0, 1.5, 3.0]
    for seed in range(3):
        sides = []
        for of_side in (1.0, 0.0):
            made = record("tuna2", seed=seed)
            points = [
                replace(point, benchmarks={"charts": Score.from_outcomes([True] * 4, 0.2, [of_side * more + 0.125 * seed] * 4)})
                for point, more in zip(made.points, shift, strict=True)
            ]
            sides.append(replace(made, points=points))
        pairs.append(tuple(sides))
    end, early = (difference(pairs, MARGIN, ["charts"], early) for early in (False, True))
    tokens = [point.tokens / pairs[0][0].totals.tokens for point in pairs[0][0].points]
    taken = [min(range(6), key=lambda at: abs(np.log(tokens[at] / share))) for share in EARLY]
    assert end.value_S == pytest.approx([3.0] * 3) and early.value_S == pytest.approx([np.mean([shift[at] for at in taken])] * 3)
    assert {one.what for one in endpoints(pairs)} == {
        *("margin early", "margin at the end", "accuracy early", "accuracy at the end"),
        *(f"charts (ChartQA): {what}" for what in ("margin early", "margin at the end", "accuracy early", "accuracy at the end")),
    }
    assert difference(pairs, MARGIN, ["ocr"]) is None


def test_one_seed_is_no_pilot(records):
    with pytest.raises(UserError, match="two seeds in common"):
        power_table(records(seeds=1))


def test_scatter_is_divided_between_runs_and_the_parts_behind_them():
    """Groups that differ by 1 and runs that differ by .1: the classical estimates, by hand for equal groups."""
    generator = np.random.default_rng(0)
    found = [
        variance_parts([centre + 0.1 * generator.standard_normal(3) for centre in generator.standard_normal(3)]) for _ in range(400)
    ]
    within, between, p = np.array(found).T
    assert np.sqrt((within**2).mean()) == pytest.approx(0.1, rel=0.1) and np.sqrt((between**2).mean()) == pytest.approx(1, rel=0.15)
    assert (p < 0.05).mean() > 0.95
    nothing = [variance_parts([generator.standard_normal(n) for n in (2, 3, 4)])[2] for _ in range(400)]
    assert np.mean(np.array(nothing) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_parts_count_only_where_seeds_cross_with_them(record):
    def made(crossed):
        parts = [{"encoder": {"name": f"encoder/seed{seed % 2 if crossed else 0}@10000"}} for seed in range(4)]
        runs = [replace(record("tuna_r", seed=seed), components=of) for seed, of in enumerate(parts)]
        losses = [[replace(point, losses={"text/vqa": 1.0 + 0.1 * seed}) for point in run.points] for seed, run in enumerate(runs)]
        return [replace(run, points=of) for run, of in zip(runs, losses, strict=True)]

    table = components_table(made(crossed=True))
    assert table[["part", "endpoint", "seeds", "groups"]].to_dict("records")[0] == {
        "part": "encoder",
        "endpoint": LOSS,
        "seeds": 4,
        "groups": 2,
    }
    assert components_table(made(crossed=False)).empty
