"""DPG-Bench's rules over hand-made answers and over those that the official script scored; its table and its images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tolerances import relative

from tunalab.errors import UserError
from tunalab.interop.dpg import ALL_ITEMS, OFFICIAL, Question, cells, dpg_measures, item_score, read_questions, score_dpg, unclear
from tunalab.interop.outcomes import Outcomes

HEAD = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
ROWS = """a1,prompt,,1,0,entity,whole,entity - whole (cup),Is there a cup?
a1,prompt,,2,1,attribute,color,"attribute - color (cup, red)",Is the cup red?
a1,prompt,,3,"1, 2",relation,spatial,"relation - spatial (cup, table, on)","Is the red cup on a table, or a desk?"
b2,prompt,,1,0,entity,whole,entity - whole (dog),Is there a dog?
"""
QUESTIONS = [Question(1, (), "entity", "cup?"), Question(2, (1,), "attribute", "red?"), Question(3, (2,), "relation", "on?")]
GOLDEN = json.loads((Path(__file__).parents[2] / "data/golden/dpg.json").read_text())


@pytest.mark.parametrize(
    ("answers", "share", "official", "odd"),
    [
        (["yes", "yes", "yes"], 1.0, 1.0, 0),
        (["Yes.", "yes, it is", "YES"], 1.0, 0.0, 0),
        (["yes", "yes", "no"], 2 / 3, 2 / 3, 0),
        (["yes", "no", "yes"], 1 / 3, 1 / 3, 0),  # the third depends on the second
        (["no", "yes", "yes"], 0.0, 0.0, 0),  # the second fell with the first, and the third with the second
        (["red", "", "yesterday"], 0.0, 0.0, 3),
    ],
)
def test_a_child_counts_no_where_a_parent_does(answers, share, official, odd):
    score, other = (item_score(QUESTIONS, [answers], rule) for rule in (ALL_ITEMS, OFFICIAL))
    assert score is not None and score.share == pytest.approx(share) and unclear([answers]) == odd
    assert other is not None and other.share == pytest.approx(official)


def test_cells_are_averaged_and_categories_know_no_dependencies():
    answers = [["yes", "yes", "yes"], ["no", "yes", "yes"]]
    score, official = (item_score(QUESTIONS, answers, rule) for rule in (ALL_ITEMS, OFFICIAL))
    assert score is not None and official is not None and score.share == official.share == 0.5
    assert score.plain == {"entity": (1, 2), "attribute": (2, 2), "relation": (2, 2), "": (5, 6)}
    assert official.plain == {"entity": (0, 1), "attribute": (1, 1), "relation": (1, 1), "": (2, 3)}, "of the last cell"


@pytest.mark.parametrize("images", GOLDEN["samples"])
def test_the_official_rule_gives_what_the_official_script_printed(images: str, tmp_path: Path):
    """To the last bits, which the sums of Python 3.12 have otherwise. Beside it, under its name, all items and cells."""
    alike = {"rel": relative(sum(map(len, GOLDEN["samples"]["4"]["answers"].values())), torch.float64), "abs": 0}
    (tmp_path / "dpg_bench.csv").write_text(GOLDEN["csv"])
    questions, sample = read_questions(tmp_path / "dpg_bench.csv"), GOLDEN["samples"][images]
    scores = {item: item_score(questions[item], given, OFFICIAL, item == "item0") for item, given in sample["answers"].items()}
    assert {item: score.share for item, score in scores.items() if score is not None} == pytest.approx(sample["items"], **alike)
    assert [item for item, score in scores.items() if score is None] == sample["dropped"] == ["item0"]
    official, own = (dpg_measures(questions, sample["answers"], rule, "a") for rule in (OFFICIAL, ALL_ITEMS))
    expected = {"overall": sample["overall"], **sample["category"], **sample["level2"]}
    assert {one.metric: one.value for one in official} == pytest.approx(expected, **alike)
    assert {one.benchmark for one in official} == {"DPG-Bench, official rule"} and "item0" in official[0].note
    assert official[0].n == 59 and own[0].n == 60 and {one.benchmark for one in own} == {"DPG-Bench, all items"}
    assert [one.metric for one in own] == [one.metric for one in official]
    found = {one.metric: one.value for one in own}
    for name in ("entity", "entity - whole"):
        right = [
            answer == "yes"
            for item, given in sample["answers"].items()
            for row in given
            for answer, question in zip(row, questions[item], strict=True)
            if name in (question.category, question.level2)
        ]
        assert found[name] == pytest.approx(np.mean(right), **alike) and found[name] != expected[name]
    for one in (*own, *official):
        assert np.mean(one.items) == pytest.approx(one.value, abs=1e-6) and len(one.items) == one.n
        assert one.low is not None and one.high is not None and one.low < one.value < one.high


def test_the_official_rule_loses_a_first_item_only_where_others_hang_on_its_first_question():
    alone = [Question(1, (), "entity", "cup?"), Question(2, (), "attribute", "red?")]
    score = item_score(alone, [["no", "yes"]], OFFICIAL, first=True)
    assert score is not None and score.share == 1.0 and score.plain == {"attribute": (1, 1), "": (1, 1)}
    assert item_score(alone[:1], [["yes"]], OFFICIAL, first=True) is None
    assert dpg_measures({"a": alone[:1]}, {"a": [["yes"]]}, OFFICIAL, "a") == []
    both = {"a": alone[:1], "b": alone}
    assert dpg_measures(both, {"a": [["yes"]], "b": None}, OFFICIAL, "a") == []
    assert dpg_measures(both, {"a": [["yes"]], "b": None}, ALL_ITEMS, "a")[0].value == 1.0


def test_the_table(tmp_path: Path):
    path = tmp_path / "dpg_bench.csv"
    path.write_text("\ufeff" + HEAD + ROWS)
    items = read_questions(path)
    assert list(items) == ["a1", "b2"] and [question.number for question in items["a1"]] == [1, 2, 3]
    assert items["a1"][2] == Question(3, (1, 2), "relation", "Is the red cup on a table, or a desk?", "relation - spatial")
    for text, words in {
        "": "has no column item_id, proposition_id.* .columns: none",
        HEAD: "dpg_bench.csv is empty",
        "item_id,tuple\na,b\n": "has no column proposition_id, dependency, question_natural_language",
        HEAD + ROWS.replace(",2,1,", ",2,7,"): "item a1 has no question 7 that others depend on",
        HEAD + ROWS.replace(",2,1,", ",1,0,"): "item a1 has two questions of one proposition_id",
        HEAD + ROWS.replace(",2,1,", ",2,x,"): "line 3: proposition_id and dependency must be numbers",
        HEAD + "a1,prompt,,1,0\n": "line 2: item_id or question_natural_language is empty",
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=words) as caught:
            read_questions(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="nothing.csv cannot be read"):
        read_questions(tmp_path / "nothing.csv")


def test_a_grid_is_cut_into_its_samples():
    parts = [np.full((2, 3, 3), n, np.uint8) for n in range(4)]
    grid = np.vstack([np.hstack(parts[:2]), np.hstack(parts[2:])])
    assert all(np.array_equal(one, other) for one, other in zip(cells(grid, 4), parts, strict=True))
    assert cells(grid, 1) == [grid]
    with pytest.raises(ValueError, match="6x3 is no 2x2 grid"):
        cells(grid[:3], 4)


class Colour:
    """Says yes where the sample is white; asked for a colour it says which."""

    name, identity = "white", "w"
    asked = 0

    def answers(self, asked):
        self.asked += len(asked)
        return ["yes" if image.all() else "no" for image, _ in asked]


@pytest.fixture
def items(tmp_path: Path):
    (tmp_path / "dpg_bench.csv").write_text(HEAD + ROWS)
    quarter = Image.new("RGB", (8, 8))
    quarter.paste((255, 255, 255), (0, 0, 4, 4))
    quarter.save(tmp_path / "a1.png")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "b2.png")
    return read_questions(tmp_path / "dpg_bench.csv")


def test_the_score_of_a_folder(items, tmp_path: Path):
    vqa = Colour()
    measures = score_dpg(tmp_path, items, 4, vqa, Outcomes(tmp_path / "out.jsonl", "a"))
    official, own = measures[: len(measures) // 3], measures[len(measures) // 3 :]
    assert {one.benchmark for one in own} == {"DPG-Bench, all items"} and "4 samples an item" in own[0].note
    assert [(measure.metric, measure.value, measure.n) for measure in own] == [
        ("overall", 0.625, 2),
        ("entity", 0.625, 2),
        ("attribute", 0.25, 1),
        ("relation", 0.25, 1),
        ("attribute - color", 0.25, 1),
        ("entity - whole", 0.625, 2),
        ("relation - spatial", 0.25, 1),
    ]
    assert own[0].items == [0.25, 1.0]
    assert [(measure.metric, measure.value, measure.n) for measure in official] == [
        ("overall", 1.0, 1),  # without a1, whose questions hang on the first row
        ("entity", 1.0, 1),
        ("entity - whole", 1.0, 1),
    ]
    assert vqa.asked == 4 * 4
    assert score_dpg(tmp_path, items, 4, vqa, Outcomes(tmp_path / "out.jsonl", "a")) == measures and vqa.asked == 16
    (tmp_path / "a1.png").write_bytes(b"damaged")
    found = score_dpg(tmp_path, items, 4, vqa, Outcomes(tmp_path / "out.jsonl", "a"))
    overall, *rest = [one for one in found if one.benchmark == "DPG-Bench, all items"]
    assert (overall.value, overall.n, overall.failures, overall.items) == (1.0, 1, 1, [])
    assert [measure.metric for measure in rest] == ["entity", "entity - whole"] and rest[0].items == [] and rest[0].failures == 1


def test_images_that_are_missing_or_no_grids(items, tmp_path: Path):
    Image.new("RGB", (7, 8)).save(tmp_path / "b2.png")
    outcomes = Outcomes(tmp_path / "out.jsonl", "a")
    with pytest.raises(UserError, match="b2.png: 7x8 is no 2x2 grid: single samples need --cells 1"):
        score_dpg(tmp_path, items, 4, Colour(), outcomes)
    assert {one.value for one in score_dpg(tmp_path, items, 1, Colour(), outcomes)} == {0}
    (tmp_path / "b2.png").unlink()
    with pytest.raises(UserError, match="b2.png is missing: .* lacks 1 of 2 images"):
        score_dpg(tmp_path, items, 4, Colour(), outcomes)
