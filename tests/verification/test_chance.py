"""Chance: what blind guessing reaches is what evaluations write, what records are read with, and what the committed page says."""

import csv
import json
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest

from tests.printed import assert_printed_alike
from tests.synthetic import synthetic_record
from tunalab.analysis.curves import align_tokens, curves, lines
from tunalab.analysis.learning import learning_curves
from tunalab.analysis.statistics import above_chance
from tunalab.data.scenes import BENCHMARKS
from tunalab.data.scenes.vocabulary import LEVELS
from tunalab.evaluation import measure as known_chance
from tunalab.evaluation.benchmarks import benchmark_name, scenes
from tunalab.evaluation.measure import FILE, chance_of
from tunalab.evaluation.measure import share as measured_share
from tunalab.evaluation.parts import SCENE_SPLITS
from tunalab.evaluation.whole import Evaluated
from tunalab.records.record import read_record, write_record
from tunalab.verification import markdown
from tunalab.verification.chance import GROUPS, Measured, Question, by_template, by_words, of_easy_vqa, of_scenes, share, table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "results" / "verification" / "chance.md"


def committed() -> list[Measured]:
    with (Path(known_chance.__file__).parent / FILE).open(encoding="utf-8") as rows:
        return [
            Measured(row["benchmark"], row["split"], int(row["groups"]), int(row["n"]), *map(float, list(row.values())[4:]))
            for row in csv.DictReader(rows)
        ]


ROWS = {(row.benchmark, row.split, row.groups): row for row in committed()}


@pytest.mark.parametrize("split", SCENE_SPLITS)
@pytest.mark.parametrize("cell", [("count", 1), ("search", 1), ("charts", 1), ("pattern", 2), ("pairs", 1)], ids=str)
def test_measured_again_it_is_what_is_committed(cell: tuple[str, int], split: str) -> None:
    row = ROWS[benchmark_name(*cell), split, 400]
    again = of_scenes(*cell, split, 400, lessons=1500, groups=800)
    for guess in ("uniform", "template", "words", "own_words"):
        expected = getattr(row, guess)
        # Three standard errors, twice as wide: fewer scenes teach as well.
        assert abs(getattr(again, guess) - expected) <= 2 * 3 * sqrt(expected * (1 - expected) / again.n), guess


def test_easy_vqa_measured_again_is_what_is_committed() -> None:
    pytest.importorskip("easy_vqa")
    again, row = of_easy_vqa(), ROWS["easy_vqa", "test", 9673]
    assert replace(again, words=0, own_words=0).__dict__ == pytest.approx(replace(row, words=0, own_words=0).__dict__, abs=1e-6)
    assert abs(again.words - row.words) < 0.005 and abs(again.own_words - row.own_words) < 0.005


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: f"{row.benchmark}-{row.split}-{row.groups}")
def test_no_wording_gives_more_away_than_chance_says(row: Measured) -> None:
    chance = chance_of(row.benchmark, row.groups, row.split)
    assert chance == max(row.uniform, row.template, row.words, row.own_words)
    whole = row.n < GROUPS  # every scene that there is was asked about
    assert chance == row.uniform or whole or sqrt(chance * (1 - chance) / row.n) < 0.01, "a standard error below a point"
    if row.benchmark.startswith("pairs"):
        assert (row.uniform, row.template, row.words, row.own_words) == (0.25, 0, 0, 0)


def test_every_benchmark_level_and_split_is_there_and_the_page_says_the_same() -> None:
    names = {benchmark_name(kind, level) for kind in BENCHMARKS for level in LEVELS}
    assert {(name, split) for name, split, _ in ROWS} == {(name, split) for name in names for split in SCENE_SPLITS} | {
        ("easy_vqa", "test")
    }
    assert_printed_alike(
        PAGE.read_text(encoding="utf-8").split("\n", 2)[2], markdown(table(committed())), "run `tunalab verify chance`"
    )


@pytest.mark.parametrize("split", SCENE_SPLITS)
@pytest.mark.parametrize(("kind", "level"), [("count", 1), ("search", 2), ("pairs", 1)])
def test_evaluations_write_it(kind: str, level: int, split: str) -> None:
    assert scenes(kind, level, split, 16, 6).chance == chance_of(benchmark_name(kind, level), 6, split)


def test_chance_is_of_the_next_larger_benchmark() -> None:
    sizes = [chance_of("count", groups) for groups in (1, 400, 401, 1000, 1001, 4000, 10**6)]
    assert sizes[0] == sizes[1] < sizes[2] == sizes[3] < sizes[4] == sizes[5] == sizes[6]
    assert 0.29 < (sizes[0] or 0) < 0.35, "the four answers are not equally frequent in training"
    assert chance_of("mine", 10) is None and chance_of("count", 10, "train") is None


def test_old_records_are_read_with_todays_chance(tmp_path: Path) -> None:
    """Whatever decides by it then has the same: above chance or not, the curves of figures and power laws."""
    today = read_record(ROOT / "results" / "figure6" / "tuna2-seed0.json", evaluation=False)
    quarter = [
        replace(point, benchmarks={name: replace(score, chance=0.25) for name, score in point.benchmarks.items()})
        for point in today.points
    ]
    asked = [measured_share("understanding", "count", [True] * 200, chance=0.25, split=split) for split in SCENE_SPLITS]
    old = replace(today, points=quarter, evaluation=[Evaluated("understanding", {}, {}, 1.0, asked)])
    write_record(tmp_path / "old.json", old)
    assert json.loads((tmp_path / "old.json").read_bytes())["points"][0]["benchmarks"]["count"]["chance"] == 0.25
    record = read_record(tmp_path / "old.json")
    for point in record.points:
        assert all(score.chance == chance_of(name, score.n) for name, score in point.benchmarks.items())
    requests = [one for result in record.evaluation if result.part == "understanding" for one in result.measures]
    assert {one.split for one in requests} == set(SCENE_SPLITS)
    assert all(one.chance == chance_of(one.benchmark, one.n, one.split) for one in requests)
    assert above_chance(align_tokens(curves([record])))[("tuna2", "")].keys() == record.points[-1].benchmarks.keys()
    (curve,) = learning_curves(lines([record]), "count")
    assert curve.chance == chance_of("count", 200)


def test_the_chance_of_other_measures_stays_what_was_written(tmp_path: Path) -> None:
    other = [
        measured_share("understanding", "MMVP", [True], chance=0.5, split="test"),
        measured_share("editing", "count", [True], chance=0.5, split="test"),
    ]
    write_record(tmp_path / "a.json", replace(synthetic_record(), evaluation=[Evaluated("understanding", {}, {}, 1.0, other)]))
    assert [one.chance for one in read_record(tmp_path / "a.json").evaluation[0].measures] == [0.5, 0.5]


def test_guesses_know_what_they_learned_and_no_more() -> None:
    def group(*turns: tuple[str, str]) -> list[Question]:
        return [Question(prompt, answer, prompt.split()[0], 2) for prompt, answer in turns]

    learned = [group(("how many rings?", answer)) for answer in "1123"] + [group(("how many cups?", "3")) for _ in range(3)]
    learned += [group(("what now?", "go"))]
    template, words = by_template(learned), by_words(learned)
    rings, cups = group(("how many rings?", "1"), ("how many cups?", "3"))
    assert (template(rings), template(cups)) == ("3", "3") and (words(rings), words(cups)) == ("1", "3")
    assert template(Question("who?", "", "who?", 2)) is None
    assert share(words, [[rings], [cups], [rings, cups], [rings, rings._replace(answer="2")]]) == 0.75
