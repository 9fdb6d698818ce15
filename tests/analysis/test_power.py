from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tests.synthetic import synthetic_record

from tunalab.analysis.components import components_table, variance_parts
from tunalab.analysis.dynamics import areas_markdown, dynamics
from tunalab.analysis.endpoints import (
    ACCURACY,
    CHOICE_LOSS,
    EARLY,
    LOSS,
    MARGIN,
    MATCHED,
    Difference,
    choice_difference,
    difference,
    endpoints,
    endpoints_table,
    loss_area,
    loss_difference,
    matched_difference,
)
from tunalab.analysis.power import power_markdown, power_table
from tunalab.analysis.statistics import seeds_needed
from tunalab.analysis.tables import ANSWERS
from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.evaluation.measure import LossItems, Score
from tunalab.records.record import Record, write_record

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
    assert row["needed"].seeds >= seeds_needed(gap_S) and row["needed_in_family"].seeds >= row["needed"].seeds
    hours = sum(
        np.mean([one.totals.seconds * one.environment["threads"] for one in made if one.run.variant == name]) for name in by_seed
    )
    if np.isfinite(row["needed_in_family"].seeds):
        assert row["core_hours"] == pytest.approx(row["needed_in_family"].seeds * hours / 3600)
    text = power_markdown(table, price=2.0)
    assert "| charts (ChartQA): accuracy at the end | Tuna - Tuna-2 |" in text and "price" in text


def test_areas_of_losses_are_means_over_log_tokens(record):
    made = synthetic_record("tuna2")
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


def shorter(made, first: int, last: int):
    """A run that was asked at some of the points alone, and ended at the last of them."""
    points = made.points[first:last]
    end = points[-1]
    totals = replace(made.totals, tokens=end.tokens, steps=end.steps, images=end.images, flops=end.flops, seconds=end.seconds)
    return replace(made, points=points, totals=totals)


@pytest.mark.parametrize(("first", "last"), [(2, 6), (0, 4), (1, 5)])
def test_runs_of_other_lengths_are_compared_where_both_have_been(first: int, last: int) -> None:
    """One curve, and a part of it: nothing differs, over no axis, early or at the end."""
    made = [synthetic_record("tuna2", seed, kinds=2) for seed in range(3)]
    whole = [
        replace(
            one,
            points=[
                replace(
                    point,
                    losses={"text/vqa": 3.0 - 0.3 * index},
                    benchmarks={"charts": Score.from_outcomes([True, False] * 2, 0.2, [0.5 * index] * 4)},
                )
                for index, point in enumerate(one.points)
            ],
        )
        for one in made
    ]
    part = [shorter(one, first, last) for one in whole]
    other = [replace(one, run=replace(one.run, variant="other", name=f"other-{one.run.seed}")) for one in part]
    table = endpoints_table([*whole, *other])
    assert {LOSS, "margin at the end", "loss of the choice, area over log tokens"} <= {*table["endpoint"]}
    assert table["difference"].abs().max() < 1e-12


def test_what_is_early_is_not_the_end_and_unequal_tokens_are_not_compared() -> None:
    def pairs(tokens: Sequence[int]) -> list[tuple[Record, Record]]:
        found = []
        for seed in range(2):
            one = synthetic_record("tuna2", seed, kinds=1)
            moved = [replace(point, tokens=at) for point, at in zip(one.points[-len(tokens) :], tokens, strict=True)]
            two = replace(one, points=moved, totals=replace(one.totals, tokens=tokens[-1]))
            found.append((two, two))
        return found

    assert difference(pairs([200_000, 1_000_000]), ACCURACY, ["relations"], early=True) is not None
    assert difference(pairs([1_000_000]), ACCURACY, ["relations"], early=True) is None
    (one, _), (other, _) = pairs([100_000, 1_000_000])[0], pairs([100_000, 2_500_000])[0]
    assert difference([(one, other)] * 2, ACCURACY, ["relations"]) is None


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
        *("margin early", "margin at the end", "accuracy early", "accuracy at the end", CHOICE_LOSS),
        *(f"charts (ChartQA): {what}" for what in ("margin early", "margin at the end", "accuracy early", "accuracy at the end")),
    }
    assert difference(pairs, MARGIN, ["ocr"]) is None


def test_the_loss_of_the_choice_is_the_area_of_what_margins_leave():
    """ln(1 + exp(-margin)) of the right option against the best wrong one, in straight lines over log tokens."""
    margin_P = [[0.0, 0.0, 0.5, 1.0, 1.5, 3.0], [0.0, 0.25, 1.0, 2.0, 2.5, 4.0]]
    sides = []
    for margins in margin_P:
        made = synthetic_record("tuna2")
        points = [
            replace(point, benchmarks={"charts": Score.from_outcomes([True] * 4, 0.2, [margin] * 4)})
            for point, margin in zip(made.points, margins, strict=True)
        ]
        sides.append(replace(made, points=points))
    x_P = np.log([point.tokens for point in sides[0].points])
    areas = [np.trapezoid(np.log1p(np.exp(-np.array(margins))), x_P) / (x_P[-1] - x_P[0]) for margins in margin_P]
    found = choice_difference([(sides[0], sides[1])] * 2, ["charts"])
    assert found.value_S == pytest.approx([areas[0] - areas[1]] * 2) and found.questions == 0.0
    assert choice_difference([(sides[0], sides[1])], ["ocr"]) is None


def with_losses(variant: str, seed: int, nats_D: np.ndarray, tokens_D: np.ndarray, items: bool = True):
    """A run whose documents have these losses throughout."""
    made = synthetic_record(variant, seed)
    held = {"loss_items": {ANSWERS: LossItems.of(nats_D, tokens_D)}} if items else {}
    losses = {ANSWERS: float(nats_D.sum() / tokens_D.sum())}
    return replace(made, points=[replace(point, losses=losses, **held) for point in made.points])


def test_losses_have_an_error_over_the_documents_that_all_runs_share():
    """Of a ratio: nats and tokens both differ between documents, and long ones cost more. As the jackknife has it."""
    generator = np.random.default_rng(0)
    tokens_D = generator.integers(2, 40, 80)
    nats_AD = tokens_D * (1 + 0.02 * tokens_D) * generator.uniform(0.5, 1.5, (2, 80))
    pairs = [
        tuple(with_losses(name, seed, nats_AD[at] + seed * tokens_D, tokens_D) for at, name in enumerate("ab")) for seed in range(3)
    ]
    found = loss_difference(pairs)
    left_D = np.array([np.subtract(*(np.delete(nats_AD, d, axis=1).sum(axis=1))) / np.delete(tokens_D, d).sum() for d in range(80)])
    assert found.value_S == pytest.approx([np.subtract(*nats_AD.sum(axis=1)) / tokens_D.sum()] * 3, rel=1e-5)
    assert found.questions == pytest.approx(np.sqrt(79 / 80 * ((left_D - left_D.mean()) ** 2).sum()), rel=0.05)
    bare = [tuple(replace(one, points=[replace(p, loss_items={}) for p in one.points]) for one in pair) for pair in pairs]
    assert loss_difference(bare).questions == 0.0
    assert loss_difference([*pairs[:2], bare[2]]).questions == pytest.approx(found.questions, rel=1e-3)
    assert matched_difference(pairs, "flops").questions == pytest.approx(found.questions, rel=0.05)
    fewer = tuple(with_losses(name, 2, nats_AD[at][:40], tokens_D[:40]) for at, name in enumerate("ab"))
    with pytest.raises(UserError, match="held-out losses of 40 and 80 documents do not compare"):
        loss_difference([*pairs[:2], fewer])


def test_losses_by_document_are_read_as_they_were_written():
    nats_D, tokens_D = np.array([70_000.5, 3.25]), np.array([6001, 2])
    read_nats, read_tokens = LossItems.of(nats_D, tokens_D).arrays()
    assert read_nats.tolist() == nats_D.tolist() and read_tokens.tolist() == tokens_D.tolist()
    early = LossItems(np.array([1.5, 2], "<f2").tobytes().hex(), np.array([3, 4], "<f2").tobytes().hex())
    assert [values.tolist() for values in early.arrays()] == [[1.5, 2.0], [3.0, 4.0]]
    for wrong in (LossItems("00", "00"), LossItems("", ""), LossItems("007c", "003c"), LossItems("003c", "003c", bits=8)):
        with pytest.raises(ValueError):
            wrong.arrays()


def test_runs_that_share_an_encoder_count_as_one_where_other_encoders_are_meant():
    found = Difference("x", np.array([1.0, 2.0, 6.0, 3.0]), parts=["a", "b", "c", "a"])
    over = found.over_parts()
    assert over.seeds == 3 and over.value == pytest.approx((2.0 + 2.0 + 6.0) / 3)
    assert (over.high - over.value) == pytest.approx(4.302653 * np.std([2, 2, 6], ddof=1) / np.sqrt(3))
    none = Difference("y", np.zeros(4), parts=[""] * 4)
    assert found.less(none, "x").parts == none.less(found, "x").parts == found.parts
    other = Difference("y", np.zeros(4), parts=["b", "b", "b", ""])
    assert found.less(other, "x").parts == ["a, b", "b", "b, c", "a"]
    for parts in ((), ["a"] * 4, list("abcd"), [""] * 4):
        assert Difference("x", np.arange(4.0), parts=parts).over_parts() is None


def test_runs_that_were_asked_nothing_have_their_losses_alone():
    pairs = [
        tuple(with_losses(name, seed, np.array([6.0, 7.0]) + at, np.array([2, 3])) for at, name in enumerate("ab"))
        for seed in range(2)
    ]
    bare = [tuple(replace(one, points=[replace(p, benchmarks={}) for p in one.points]) for one in pair) for pair in pairs]
    assert {one.what for one in endpoints(bare)} == {LOSS, *MATCHED.values()}


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


def test_runs_of_two_folders_are_compared_by_their_settings(records, tmp_path, capsys):
    """One variant under two settings, of two sweeps; of the panels that are named alone."""
    for number, ratio in enumerate((0.0, 0.5)):
        for one in records(variants=("tuna2",), seeds=3, kinds=2, ratios=(ratio,)):
            (tmp_path / str(number)).mkdir(exist_ok=True)
            write_record(tmp_path / str(number) / f"{one.run.name}.json", one)
    folders = [str(tmp_path / name) for name in "01"]
    assert main(["power", "--records", *folders, "--panels", "charts", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "charts (ChartQA): accuracy at the end | " in printed and "relations" not in printed and "mask ratio 0.5" in printed
    made_by = (tmp_path / "out/power.md").read_text(encoding="utf-8").splitlines()[0]
    assert f"tunalab power --records {' '.join(folders)} --panels charts" in made_by


def test_hours_are_those_of_all_gpus(records, tmp_path, capsys):
    """Eight of them for an hour are eight hours, whatever threads each has."""
    on = {"accelerator": "NVIDIA H100", "processes": 8, "threads": 4}
    made = [
        replace(one, environment=one.environment | on, totals=replace(one.totals, seconds=3600.0))
        for one in records(variants=("tuna_r", "tuna2"), seeds=3, kinds=2)
    ]
    row = power_table(made).iloc[-1]
    assert row["core_hours"] == pytest.approx(row["needed_in_family"].seeds * 16)
    for one in made:
        write_record(tmp_path / f"{one.run.name}.json", one)
    call = ["power", "--records", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*call, "--price", "2", "--power", "0.9"]) == 0
    assert "--power 0.9 --price 2 -->" in (tmp_path / "out/power.md").read_text(encoding="utf-8")
    needed = pd.read_csv(tmp_path / "out/power.csv", comment="#")["needed"].astype(str)
    assert needed.str.match(r"(over )?[\d,]+( with \d+ x the questions)?$").all()
    for price in ("-3", "nan", "inf"):
        assert main([*call, f"--price={price}"]) == 2
        assert "--price" in capsys.readouterr().err


def test_two_variants_by_one_label_are_told_apart(records):
    made = [
        replace(one, config=one.config | {"label": "F"} if one.run.variant != "tuna2" else one.config)
        for one in records(variants=("tuna", "tuna_r", "tuna2"), seeds=3, kinds=1)
    ]
    pairs = {(row["a"], row["b"]) for row in endpoints_table(made).to_dict("records")}
    assert pairs == {("F (tuna)", "F (tuna_r)"), ("F (tuna)", "Tuna-2"), ("F (tuna_r)", "Tuna-2")}
    found = dynamics(made)
    assert all(text in areas_markdown(found) for text in ("F (tuna)", "F (tuna_r)"))
