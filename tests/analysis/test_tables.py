import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tunalab.analysis.fairness import flagged, unequal
from tunalab.analysis.statistics import paired_difference
from tunalab.analysis.tables import accuracy_table, write_tables
from tunalab.cli import main
from tunalab.evaluation.measure import wilson
from tunalab.records.record import write_record


def read_csv(path):
    first, rest = path.read_text().split("\n", 1)
    return first, pd.read_csv(io.StringIO(rest))


def test_the_tables_numbers_are_those_of_the_records(tmp_path, records):
    made = records(seeds=2)
    paths = write_tables(made, tmp_path, "make table")
    assert [path.name for path in paths] == ["accuracy.md", "accuracy.csv", "cost.md", "cost.csv", "effects.md", "effects.csv"]
    comment, table = read_csv(tmp_path / "accuracy.csv")
    assert comment == "# made by: make table"
    assert (tmp_path / "accuracy.md").read_text().startswith("<!-- made by: make table -->\n")
    assert len(table) == 7 * 3
    for row in table.itertuples():
        scores = [record.points[-1].benchmarks[row.benchmark] for record in made if record.run.variant == row.variant]
        assert row.accuracy == pytest.approx(np.mean([score.accuracy for score in scores]), abs=1e-5)
        assert row.n == sum(score.n for score in scores) and row.seeds == 2 and row.chance == scores[0].chance
        low, high = wilson(np.mean([score.correct for score in scores]), scores[0].n)
        assert row.low <= low + 1e-5 and row.high >= high - 1e-5


def test_markdown_shows_the_same_numbers_and_bold_means_a_paired_lead(tmp_path, records):
    made = records(seeds=4)
    write_tables(made, tmp_path, "make table")
    table = accuracy_table(made)
    text = (tmp_path / "accuracy.md").read_text()
    header = next(line for line in text.splitlines() if line.startswith("| benchmark"))
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["benchmark", "Tuna", "Tuna-R", "Tuna-2", "chance", "n"]
    bold = 0
    for benchmark in set(table["benchmark"]):
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {benchmark} (")]
        cells = [cell.strip() for cell in line.split("|")[2:5]]
        for variant, cell in zip(("tuna", "tuna_r", "tuna2"), cells, strict=True):
            (row,) = table[(table.benchmark == benchmark) & (table.variant == variant)].to_dict("records")
            assert re.sub(r"\*", "", cell) == f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
            assert ("**" in cell) == row["leads"]
            bold += row["leads"]
            if row["rank"] == 1:
                (second,) = table[(table.benchmark == benchmark) & (table["rank"] == 2)].to_dict("records")
                among = {name: [one for one in made if one.run.variant == name] for name in ("tuna", "tuna_r", "tuna2")}
                of = among.pop(variant)
                gaps = {name: paired_difference(of, other, benchmark, row["tokens"]) for name, other in among.items()}
                assert row["lead"] == pytest.approx(gaps[second["variant"]].value)
                if all(gap.value > 0 for gap in gaps.values()):
                    assert row["p"] == pytest.approx(min(1, 3 * max(gap.p for gap in gaps.values()))) and row["q"] >= row["p"]
                assert row["leads"] == (row["q"] < 0.05 and row["low"] > row["chance"])
            else:
                assert not row["leads"]
    assert 0 < bold < 7  # these records hold both a clear lead and a tie


def test_runs_that_asked_nothing_have_costs_alone(tmp_path, records):
    made = [
        replace(record, points=[replace(point, benchmarks={}, losses={}) for point in record.points]) for record in records(seeds=1)
    ]
    assert [path.name for path in write_tables(made, tmp_path, "make table")] == ["cost.md", "cost.csv"]


def test_runs_that_asked_nothing_and_measured_losses_have_a_table_of_them(tmp_path, records):
    made = []
    for record in records(variants=("tuna_r", "tuna2"), ratios=(0.0, 0.5), seeds=2):
        loss = {"text/vqa": record.run.mask_ratio + record.run.seed, "flow/edit": 0.5}
        made.append(replace(record, points=[replace(point, benchmarks={}, losses=loss) for point in record.points]))
    written = write_tables(made, tmp_path, "make table")
    assert [path.name for path in written] == ["losses.md", "losses.csv", "cost.md", "cost.csv"]
    table = read_csv(tmp_path / "losses.csv")[1]
    assert table["text/vqa"].tolist() == [0.5, 1.0, 0.5, 1.0] and set(table["seeds"]) == {2}
    text = (tmp_path / "losses.md").read_text()
    assert "| Tuna-R | mask ratio 0 | 2 | 0.500 | **0.500** |" in text and text.count("**") == 4


def test_mask_ratios_become_rows(tmp_path, records):
    write_tables(records(ratios=(0.0, 0.5), seeds=1), tmp_path, "x")
    text = (tmp_path / "accuracy.md").read_text()
    assert "| benchmark | mask ratio | Tuna |" in text and len(re.findall(r"^\| ocr \(OCRBench\) \| 0(?:\.5)? \|", text, re.M)) == 2


def test_every_setting_that_differs_is_a_column(tmp_path, record):
    made = [
        record(variant, seed, kinds=3, settings=[f"stages.pretrain.lr={rate}", f"decoder.layers={layers}"])
        for variant in ("tuna", "tuna2")
        for seed in (0, 1)
        for rate in (0.01, 0.001)
        for layers in (3, 10)
    ]
    write_tables(made, tmp_path, "x")
    _, table = read_csv(tmp_path / "accuracy.csv")
    assert len(table) == 3 * 2 * 4 and set(table["seeds"]) == {2}
    assert list(table.columns[:4]) == ["benchmark", "decoder.layers", "stages.pretrain.lr", "variant"]
    mine = table[(table["decoder.layers"] == 10) & (table["stages.pretrain.lr"] == 0.01) & (table.variant == "tuna")]
    scores = [
        point.points[-1].benchmarks
        for point in made
        if (point.run.variant, point.config["decoder"]["layers"], point.config["stages"]["pretrain"]["lr"]) == ("tuna", 10, 0.01)
    ]
    for row in mine.itertuples():
        assert row.accuracy == pytest.approx(np.mean([score[row.benchmark].accuracy for score in scores]), abs=1e-5)
    text = (tmp_path / "accuracy.md").read_text()
    rows = [line.split("|")[2:4] for line in text.splitlines() if line.startswith("| ocr")]
    assert rows == [[" 3 ", " 0.001 "], [" 3 ", " 0.01 "], [" 10 ", " 0.001 "], [" 10 ", " 0.01 "]]
    assert "| Tuna-2 | 10 | 0.001 | 2 |" in (tmp_path / "cost.md").read_text()


def test_cost_is_what_the_records_say(tmp_path, records):
    made = records(seeds=2)
    write_tables(made, tmp_path, "x")
    _, cost = read_csv(tmp_path / "cost.csv")
    row = cost[cost.variant == "tuna_r"].iloc[0]
    mine = [record.totals for record in made if record.run.variant == "tuna_r"]
    assert row.tokens == pytest.approx(np.mean([total.tokens for total in mine]), rel=1e-5)
    assert row.minutes == pytest.approx(np.mean([total.seconds for total in mine]) / 60, rel=1e-5)
    assert (
        row.decoder_parameters == 600_000
        and row.trainable_parameters == 700_000
        and list(cost.columns)[-1] == "trainable_parameters"
    )
    assert "| Tuna-R | 2 |" in (tmp_path / "cost.md").read_text()


def test_unfinished_runs_are_left_out_and_mentioned(tmp_path, record):
    write_tables([record(), record(seed=1, finished=False)], tmp_path, "x")
    _, table = read_csv(tmp_path / "accuracy.csv")
    assert set(table["seeds"]) == {1} and "Unfinished runs left out: 1." in (tmp_path / "accuracy.md").read_text()


def test_the_note_says_what_is_unequal_and_only_then(tmp_path, records):
    made = records(seeds=2, kinds=1)
    write_tables(made, tmp_path, "x")
    assert "equal comparison" not in (tmp_path / "accuracy.md").read_text()
    made[-1] = replace(made[-1], totals=replace(made[-1].totals, tokens=9_000_000))
    write_tables(made, tmp_path, "x")
    printed = f"**Not an equal comparison:** tokens (4M: 5 runs; 9M: {made[-1].run.name}): unequal budgets."
    assert printed in (tmp_path / "accuracy.md").read_text()


def test_what_is_varied_is_compared_but_a_budget_is_told(records):
    made = records(("tuna2",), seeds=1, ratios=(0.0, 0.5))
    precise = [
        replace(made[0], config=made[0].config | {"precision": "fp32"}),
        replace(made[1], config=made[1].config | {"precision": "bf16"}),
    ]
    assert any(one.breaks and one.varied for one in unequal(precise)) and flagged(precise) == []
    longer = replace(made[1], totals=replace(made[1].totals, tokens=8_000_000))
    assert flagged([made[0], longer]) == [f"tokens (4M: {made[0].run.name}; 8M: {longer.run.name}): unequal budgets"]


def test_a_run_that_is_left_out_is_one_difference(record):
    made = [record(), record(seed=1), record(seed=2, finished=False)]
    made[2] = replace(made[2], totals=replace(made[2].totals, tokens=1_000_000))
    assert flagged(made) == [
        f"finished (yes: {made[0].run.name}, {made[1].run.name}; no: {made[2].run.name}): a part of a run is no run"
    ]


@pytest.mark.parametrize("call", (["table"], ["figure", "curves"]), ids=lambda call: call[-1])
def test_commands_tell_what_is_unequal_a_line_each(call, tmp_path, records, capsys):
    made = records(("tuna", "tuna2"), seeds=1, kinds=1)
    for unequal_too in (False, True):
        if unequal_too:
            made[0] = replace(made[0], totals=replace(made[0].totals, tokens=9_000_000))
            made[1] = replace(made[1], environment=made[1].environment | {"accelerator": "H100"})
        for one in made:
            write_record(tmp_path / f"{one.run.name}.json", one)
        assert main([*call, "--records", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2 * unequal_too and all(line.startswith("not an equal comparison: ") for line in lines), lines
    assert "tokens (9M: " in lines[0] and "precision (" in lines[1]


def test_a_benchmark_that_some_runs_were_not_asked_is_drawn_of_the_others_and_said(tmp_path, records, capsys):
    made = records(("tuna", "tuna2"), seeds=3, kinds=2)
    without = [
        replace(one, points=[replace(p, benchmarks=dict(list(p.benchmarks.items())[:1])) for p in one.points]) for one in made
    ]
    for one in [*made[:1], *without[1:]]:
        write_record(tmp_path / f"{one.run.name}.json", one)
    assert main(["figure", "curves", "--records", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    (lacking,) = set(made[0].points[0].benchmarks) - set(without[0].points[0].benchmarks)
    assert line.startswith(f"a panel shows only a part of the runs: {lacking}: not asked of tuna") and line.endswith(", ...")
    assert main(["figure", "curves", "--records", str(tmp_path), "--out", str(tmp_path / "out"), "--panels", "relations"]) == 0
    assert not capsys.readouterr().err


def test_many_seeds_are_told_as_a_stretch(records):
    made = records(seeds=5)
    fewer = [record for record in made if record.run.variant != "tuna" or record.run.seed in (0, 2)]
    assert flagged(fewer) == []  # differences are paired over the seeds that both have
    some = [record for record in fewer if record.run.variant == "tuna" or record.run.seed]
    assert flagged(some) == ["seeds (0, 2: tuna; 1 to 4: tuna_r, tuna2): means over other seeds are of other draws"]
