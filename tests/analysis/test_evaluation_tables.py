import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tunalab.analysis.claims import claims_markdown
from tunalab.analysis.evaluations import (
    COUNTERPARTS,
    differences_table,
    evaluation_markdown,
    means_table,
    read_published,
    sides,
    unequal_settings,
    write_evaluation_tables,
)
from tunalab.analysis.statistics import of_items
from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure, mean, share
from tunalab.evaluation.parts import DIVIDED, OF_PARSER, PARSER, PARSER_REVISION, PARSER_SINCE, PARTS, EvaluationSettings, pieces_of
from tunalab.evaluation.whole import Evaluated
from tunalab.records.labels import Legend

PUBLISHED = Path(__file__).parents[2] / "results" / "published.csv"
SHARES = {"tuna": 0.5, "tuna_r": 0.5, "tuna2": 0.9}


def outcomes(right: float, seed: int, n: int = 200) -> list[bool]:
    return list(np.random.default_rng(seed).random(n) < right)


@pytest.fixture
def made(records):
    """Twelve records, four seeds: Tuna-2 far ahead on charts, all level on count, a distance without items."""
    found = []
    for number, record in enumerate(records(seeds=4)):
        measures = [
            share("understanding", "charts", outcomes(SHARES[record.run.variant], number), split="test", chance=0.2, ceiling=1.0),
            share("understanding", "count", outcomes(0.6, 100 + record.run.seed), split="test", chance=0.25, failures=3),
            share("understanding", "charts", outcomes(0.3, number), split="composition"),
            Measure("fidelity", "scenes", "FID", 10.0 + record.run.seed, 500, note="in the features of nothing"),
        ]
        found.append(replace(record, evaluation=[Evaluated("understanding", {"groups": 200}, {"tokens": 9}, 1.0, measures)]))
    return found


def table_of(path: Path) -> pd.DataFrame:
    first, rest = path.read_text().split("\n", 1)
    assert first == "# made by: make table"
    return pd.read_csv(io.StringIO(rest), keep_default_na=False)


def test_means_are_those_of_the_records(made, tmp_path):
    names = [path.name for path in write_evaluation_tables(made, PUBLISHED, tmp_path, "make table")]
    assert names == ["evaluation.md", "evaluation.csv", "differences.csv"]
    table = table_of(tmp_path / "evaluation.csv")
    assert len(table) == 4 * 3
    for row in table.to_dict("records"):
        values = [
            measure.value
            for record in made
            for measure in record.evaluation[0].measures
            if record.run.variant == row["variant"]
            and measure.key == tuple(row[name] for name in ("kind", "benchmark", "split", "metric"))
        ]
        assert len(values) == row["seeds"] == 4
        assert row["value"] == pytest.approx(np.mean(values), abs=1e-5)
        if row["metric"] == "FID":
            assert row["low"] == row["high"] == ""  # seeds of a distance between sets: no items, no interval
        else:
            assert float(row["low"]) < row["value"] < float(row["high"])


def test_a_lead_is_bold_and_a_tie_is_not(made):
    compared = sides(made)
    text = evaluation_markdown(means_table(compared), differences_table(compared), read_published(PUBLISHED), Legend(made))
    (charts,) = [line for line in text.splitlines() if line.startswith("| charts |")]
    (count,) = [line for line in text.splitlines() if line.startswith("| count |")]
    cells = [cell.strip() for cell in charts.split("|")[1:-1]]
    assert ["**" in cell for cell in cells[1:4]] == [False, False, True]
    assert "**" not in count and "200 (f 36)" in count
    assert "FID" in text and "in the features of nothing" in text


def test_measured_and_published_stand_in_different_cells(made):
    compared = sides(made)
    text = evaluation_markdown(means_table(compared), differences_table(compared), read_published(PUBLISHED), Legend(made))
    heads = [line for line in text.splitlines() if line.startswith("| benchmark |")]
    columns = [cell.strip() for cell in heads[0].split("|")[1:-1]]
    assert columns[1:4] == ["Tuna", "Tuna-R", "Tuna-2"]
    assert columns[-4:] == ["published benchmark", "Tuna, published", "Tuna-R, published", "Tuna-2, published"]
    (charts,) = [line for line in text.splitlines() if line.startswith("| charts |")]
    assert [cell.strip() for cell in charts.split("|")[1:-1]][-4:] == ["ChartQA", "0.858", "0.856", "0.856"]
    (other,) = [line for line in text.splitlines() if line.startswith("| charts, composition |")]
    assert [cell.strip() for cell in other.split("|")[1:-1]][-4:] == [""] * 4  # no published number is of that split
    (unmeasured,) = [line for line in text.splitlines() if "| MMVet |" in line]
    assert [cell.strip() for cell in unmeasured.split("|")[1:-1]][:7] == [""] * 7


def test_differences_are_paired_by_item(records):
    """The same items right but for a few: two separate intervals would overlap widely, the paired one excludes zero."""
    base = outcomes(0.5, 0, 400)
    better = [right or index % 20 == 0 for index, right in enumerate(base)]
    made = []
    for record in records(seeds=2):
        chosen = better if record.run.variant == "tuna2" else base
        made.append(replace(record, evaluation=[Evaluated("x", {}, {}, 0.0, [share("understanding", "charts", chosen)])]))
    rows = {(row["a"], row["b"]): row for row in differences_table(sides(made)).to_dict("records")}
    assert rows["tuna", "tuna_r"]["difference"] == 0 and not rows["tuna", "tuna_r"]["apart"]
    row = rows["tuna", "tuna2"]
    assert row["apart"] and row["high"] < 0 and row["difference"] == pytest.approx(np.mean(base) - np.mean(better))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        seed_S1 = 0.05 * generator.standard_normal((3, 1))
        value_SI = seed_S1 + generator.standard_normal((1, 100)) * 0.5 + 0.1 * generator.standard_normal((3, 100))
        found = of_items([value_SI], shares=False)
        covered += found.low <= 0 <= found.high
    assert covered >= 180


def test_runs_that_cannot_be_compared_are_refused(made):
    other = replace(made[0], evaluation=[replace(made[0].evaluation[0], settings={"groups": 50})])
    with pytest.raises(UserError, match="different settings"):
        sides([other, *made[1:]])
    with pytest.raises(UserError, match="two evaluated runs of"):
        sides([made[0], made[0]])


def test_a_share_that_is_always_right_is_not_certain(records):
    made = [
        replace(record, evaluation=[Evaluated("x", {}, {}, 0.0, [share("understanding", "charts", [True] * 48)])])
        for record in records(seeds=2)
    ]
    for row in means_table(sides(made)).to_dict("records"):
        assert row["value"] == row["high"] == 1 and 0.9 < row["low"] < 0.93


def test_distances_that_do_not_scatter_are_no_shares_and_shares_stay_within_0_and_1(records):
    made = []
    for record in records(seeds=2):
        items = [0.0] * 10 + [0.25 * record.run.seed]
        measures = [
            mean("diversity", "renders", [1.0] * 12, metric="Vendi score"),
            mean("generation", "prompts", items, metric="overall"),
        ]
        made.append(replace(record, evaluation=[Evaluated("x", {}, {}, 0.0, measures)]))
    rows = means_table(sides(made)).to_dict("records")
    for row in rows:
        assert row["kind"] != "diversity" or (row["low"], row["high"]) == pytest.approx((1, 1))
    assert all(0 <= row["low"] < row["value"] < row["high"] for row in rows if row["kind"] == "generation")


def test_runs_of_unequal_length_or_settings_are_refused_or_told(made):
    def of(record, **origin):
        return replace(record, evaluation=[replace(record.evaluation[0], origin=origin)])

    with pytest.raises(UserError, match="evaluated at 2,000,000 and 9,000,000 tokens: no fair comparison"):
        sides([of(made[0], tokens=2_000_000), *(of(record, tokens=9_000_000) for record in made[1:])])
    with pytest.raises(UserError, match="averaged and raw weights"):
        sides([of(made[0], tokens=9, weights="raw"), *(of(record, tokens=9, weights="averaged") for record in made[1:])])
    other = replace(made[0], config={**made[0].config, "seed": 5, "threads": 7})
    assert unequal_settings(made) == []
    with pytest.raises(UserError, match="differ in more than the seed"):
        sides([replace(other, config={**other.config, "data": {"image_size": 64}}), *made[1:]])
    changed = [
        replace(record, config={**record.config, "data": {"image_size": 64}}) if record.run.variant == "tuna" else record
        for record in made
    ]
    assert unequal_settings(changed) == ["data.image_size"]


def test_runs_that_start_from_their_own_checkpoints_are_compared(made):
    def starts(record, seed):
        return replace(record, config={**record.config, "start": {"checkpoint": f"exports/{record.run.variant}-seed{seed}"}})

    assert sides([starts(record, record.run.seed) for record in made])
    with pytest.raises(UserError, match="differ in more than the seed"):
        sides([starts(record, 0) for record in made])


def test_ceilings_and_notes_name_their_variant(records):
    made = []
    for record in records(seeds=1):
        tuna = record.run.variant == "tuna"
        measure = share(
            "editing", "recolour", outcomes(0.5, 0), metric="success", ceiling=0.6 if tuna else 1.0, note="vae" if tuna else ""
        )
        made.append(replace(record, evaluation=[Evaluated("editing", {}, {}, 0.0, [measure])]))
    compared = sides(made)
    text = evaluation_markdown(means_table(compared), differences_table(compared), read_published(PUBLISHED), Legend(made))
    assert "| 0.600 / 1.000 / 1.000 |" in text


def test_more_attention_is_not_better(records):
    made = []
    for record in records(seeds=1):
        measure = share("attention", "all", outcomes(SHARES[record.run.variant], 0), metric="share on others")
        made.append(replace(record, evaluation=[Evaluated("attention", {}, {}, 0.0, [measure])]))
    compared = sides(made)
    assert "**" not in evaluation_markdown(
        means_table(compared), differences_table(compared), read_published(PUBLISHED), Legend(made)
    )


def test_attention_is_shown_in_brief(records):
    made = []
    for record in records(seeds=1):
        measures = [share("attention", name, outcomes(0.5, 0), metric="pointing") for name in ("search", "all")]
        made.append(replace(record, evaluation=[Evaluated("attention", {}, {}, 0.0, measures)]))
    compared = sides(made)
    text = evaluation_markdown(means_table(compared), differences_table(compared), read_published(PUBLISHED), Legend(made))
    assert "| all, pointing |" in text and "search, pointing" not in text and "Further rows stand in `evaluation.csv`" in text


def test_no_evaluation_no_table(records, tmp_path):
    assert write_evaluation_tables(records(seeds=1), PUBLISHED, tmp_path, "make table") == []


def test_published_results_are_read_with_their_source():
    table = read_published(PUBLISHED)
    assert (table["source"] != "").all()
    counterparts = {(kind, *theirs) for kind, pairs in COUNTERPARTS.items() for theirs in pairs.values()}
    assert counterparts <= set(zip(table["kind"], table["benchmark"], table["metric"], strict=True))
    shares = table[table["kind"].isin(["understanding", "judge", "generation"])]
    assert shares["value"].between(0, 1).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kind,benchmark\na,b\n", "columns are kind, benchmark"),
        ("kind,benchmark,metric,model,value,setting,source\na,b,c,d,high,e,f\n", "'high' of b is no number"),
    ],
)
def test_other_files_are_refused(tmp_path, text, reason):
    path = tmp_path / "published.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=reason):
        read_published(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_published(tmp_path / "missing.csv")


def test_a_mean_needs_finite_items():
    with pytest.raises(ValueError, match="finite"):
        mean("reconstruction", "scenes", [1.0, float("nan")], metric="PSNR")


@pytest.mark.parametrize(("settings", "marked"), [({}, True), ({PARSER: 1}, True), ({PARSER: PARSER_REVISION}, False)])
def test_what_an_earlier_parser_judged_is_marked(records, settings, marked):
    made = []
    for record in records(seeds=2):
        measures = [share("generation", "scene prompts", [True, False], metric="overall", split="test")]
        made.append(replace(record, evaluation=[Evaluated("generation", settings, {}, 0.0, measures)]))
    compared = sides(made)
    text = evaluation_markdown(means_table(compared), differences_table(compared), read_published(PUBLISHED), Legend(made))
    printed = f"before {PARSER_SINCE}"
    assert (printed in text) == (printed in claims_markdown(made)) == marked


def test_parts_that_the_parser_judges_are_measured_again_after_it_changed():
    settings = EvaluationSettings()
    for name in PARTS:
        if name not in DIVIDED:
            (piece,) = pieces_of(name, getattr(settings, name))
            assert piece.settings.get(PARSER) == (PARSER_REVISION if name in OF_PARSER else None)
