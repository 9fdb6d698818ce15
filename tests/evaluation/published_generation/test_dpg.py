"""DPG-Bench's rule over hand-made answers: right, wrong, malformed; its table and its images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tunalab.errors import UserError
from tunalab.evaluation.published_generation.dpg import Question, cells, grid_score, read_questions
from tunalab.evaluation.published_generation.dpg_score import score_dpg
from tunalab.evaluation.published_generation.outcomes import Outcomes

HEAD = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
ROWS = """a1,prompt,,1,0,entity,whole,entity - whole (cup),Is there a cup?
a1,prompt,,2,1,attribute,color,"attribute - color (cup, red)",Is the cup red?
a1,prompt,,3,"1, 2",relation,spatial,"relation - spatial (cup, table, on)","Is the red cup on a table, or a desk?"
b2,prompt,,1,0,entity,whole,entity - whole (dog),Is there a dog?
"""
QUESTIONS = [Question(1, (), "entity", "cup?"), Question(2, (1,), "attribute", "red?"), Question(3, (2,), "relation", "on?")]


@pytest.mark.parametrize(
    ("answers", "share", "unclear"),
    [
        (["yes", "yes", "yes"], 1.0, 0),
        (["Yes.", "yes, it is", "YES"], 1.0, 0),
        (["yes", "yes", "no"], 2 / 3, 0),
        (["yes", "no", "yes"], 1 / 3, 0),  # the third depends on the second
        (["no", "yes", "yes"], 0.0, 0),  # the second fell with the first, and the third with the second
        (["red", "", "yesterday"], 0.0, 3),
    ],
)
def test_a_child_counts_no_where_a_parent_does(answers, share, unclear):
    score = grid_score(QUESTIONS, [answers])
    assert score.share == pytest.approx(share) and score.unclear == unclear


def test_cells_are_averaged_and_categories_know_no_rule():
    score = grid_score(QUESTIONS, [["yes", "yes", "yes"], ["no", "yes", "yes"]])
    assert score.share == 0.5 and score.plain == {"entity": 0.5, "attribute": 1.0, "relation": 1.0}


def test_the_table(tmp_path: Path):
    path = tmp_path / "dpg_bench.csv"
    path.write_text("\ufeff" + HEAD + ROWS)
    items = read_questions(path)
    assert list(items) == ["a1", "b2"] and [question.number for question in items["a1"]] == [1, 2, 3]
    assert items["a1"][2] == Question(3, (1, 2), "relation", "Is the red cup on a table, or a desk?")
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
    assert [(measure.metric, measure.value, measure.n) for measure in measures] == [
        ("overall", 0.625, 2),
        ("entity", 0.625, 2),
        ("attribute", 0.25, 1),
        ("relation", 0.25, 1),
    ]
    assert measures[0].items == [0.25, 1.0] and measures[0].benchmark == "DPG-Bench" and "4 samples an item" in measures[0].note
    assert vqa.asked == 4 * 4
    assert score_dpg(tmp_path, items, 4, vqa, Outcomes(tmp_path / "out.jsonl", "a")) == measures and vqa.asked == 16
    (tmp_path / "a1.png").write_bytes(b"damaged")
    overall, *rest = score_dpg(tmp_path, items, 4, vqa, Outcomes(tmp_path / "out.jsonl", "a"))
    assert (overall.value, overall.n, overall.failures, overall.items) == (1.0, 1, 1, [])
    assert [measure.metric for measure in rest] == ["entity"]


def test_images_that_are_missing_or_no_grids(items, tmp_path: Path):
    Image.new("RGB", (7, 8)).save(tmp_path / "b2.png")
    outcomes = Outcomes(tmp_path / "out.jsonl", "a")
    with pytest.raises(UserError, match="b2.png: 7x8 is no 2x2 grid: of single samples say --cells 1"):
        score_dpg(tmp_path, items, 4, Colour(), outcomes)
    assert score_dpg(tmp_path, items, 1, Colour(), outcomes)[0].value == 0
    (tmp_path / "b2.png").unlink()
    with pytest.raises(UserError, match="b2.png is missing: .* lacks 1 of 2 images"):
        score_dpg(tmp_path, items, 4, Colour(), outcomes)
