"""Questions from a file: read whole or refused with the line, the same ones asked of every run, judged by each rule."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.training.conftest import quick_config as run_config

from tunalab.data.documents import Question
from tunalab.errors import UserError
from tunalab.evaluation.along import margin
from tunalab.evaluation.benchmarks import benchmarks, check_benchmarks, out_of_reach, outside, right_groups, score
from tunalab.evaluation.jsonl import RULES, chance, read_lines, rule, subset


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for colour in ("red", "blue", "green"):
        Image.new("RGB", (64, 48), colour).save(tmp_path / f"{colour}.png")
    return tmp_path


def write(folder: Path, *lines: object) -> Path:
    path = folder / "q.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


COLOURS = [
    {"image": f"{colour}.png", "question": "what colour?", "answer": colour, "options": ["red", "blue", "green"]}
    for colour in ("red", "blue", "green")
]


def test_a_file_is_a_benchmark_of_the_run(folder):
    write(folder, *COLOURS)
    config = run_config(evaluation__groups=0, evaluation__easy_vqa=0, evaluation__benchmarks={"mine": {"path": "q.jsonl"}})
    check_benchmarks(config)
    (made,) = benchmarks(config)
    assert made.name == "mine" and made.chance == pytest.approx(1 / 3)
    assert [one.image_HWC.shape for one in made.questions] == [(32, 32, 3)] * 3 and made.questions[0].options == (
        "red",
        "blue",
        "green",
    )
    assert score(made, ["Red.", "green", " green"], [0.5, -1.0, 2.0]).correct == 2
    assert made.describe()["items"] == made.describe()["of"] == 3


def test_a_limit_draws_the_same_items_whatever_the_run_and_keeps_groups_whole(folder):
    lines = [{"image": "red.png", "question": f"{n}?", "answer": "yes", "group": n // 2} for n in range(40)]
    write(folder, *lines)
    made = []
    for seed in (0, 5):
        config = run_config(seed=seed, evaluation__benchmarks={"mine": {"path": "q.jsonl", "limit": 7}})
        made.append(outside("mine", config, 7))
    first, second = ([one.prompt for one in one.questions] for one in made)
    assert first == second and len(first) == 14 and first != [f"{n}?" for n in range(14)]
    assert {one.group for one in made[0].questions} == subset([n // 2 for n in range(40)], 7)
    assert made[0].describe()["items"] == 7 and made[0].describe()["of"] == 20
    assert right_groups(made[0], ["yes"] * 13 + ["no"]).count(False) == 1
    assert made[0].describe()["questions"] != outside("mine", config, 8).describe()["questions"]


@pytest.mark.parametrize(
    ("rule_name", "line", "right", "wrong"),
    [
        ("exact", {"answers": ["two", "2"]}, ["two", "2", " Two."], ["2 dogs", "to"]),
        ("contains", {"answers": ["dog"]}, ["a Dog, running", "dog"], ["dogs", "hotdog"]),
        (
            "option",
            {"answers": ["red"], "options": ["blue", "red"]},
            ["red", "B", "(b)", "b. red", "B)"],
            ["a", "blue", "brown", "c"],
        ),
        ("number", {"answers": ["1,200"]}, ["1200", "about 1,200.0 of them"], ["12", "none", "-1200"]),
        ("number", {"answers": ["3"]}, ["3", "3,4 or 5", "3."], ["34", "three"]),
        ("number", {"answers": ["0.5"]}, [".5", "0.50", "5e-1"], ["5"]),
        ("number", {"answers": ["1e-05"]}, ["0.00001", "1e-5"], ["1"]),
        ("number", {"answers": ["12345678901234567890"]}, ["12345678901234567890"], ["12345678901234567891"]),
    ],
)
def test_rules(rule_name, line, right, wrong):
    assert all(RULES[rule_name](reply, line) for reply in right)
    assert not any(RULES[rule_name](reply, line) for reply in wrong)


def test_a_rule_of_ones_own_sees_the_reply_and_the_line(folder):
    (folder / "judge.py").write_text("def half(reply, line):\n    return reply == line['answers'][0][: line['letters']]\n")
    write(folder, {"image": "red.png", "question": "?", "answer": "crimson", "letters": 3})
    config = run_config(evaluation__benchmarks={"mine": {"path": "q.jsonl", "rule": "judge.py:half"}})
    check_benchmarks(config)
    assert right_groups(outside("mine", config), ["cri"]) == [True] and right_groups(outside("mine", config), ["crimson"]) == [
        False
    ]
    with pytest.raises(
        UserError, match=r"evaluation.benchmarks.x.rule=loose is not known \(choices: exact, contains, option, number"
    ):
        rule("evaluation.benchmarks.x", "loose")


def test_chance_is_that_of_the_better_blind_guess(folder):
    path = write(folder, *COLOURS, {"image": "red.png", "question": "what colour?", "answer": "red", "options": ["red", "blue"]})
    assert chance(read_lines("x", path)) == 0.5  # red twice of four; drawn evenly 3/8
    open_ended = [{"image": "red.png", "question": f"who is {n}?", "answer": name} for n, name in enumerate("aabc")]
    assert chance(read_lines("x", write(folder, *open_ended))) == 0.5
    pair = [
        {"image": "red.png", "question": "red?", "answer": answer, "options": ["yes", "no"], "group": "g"}
        for answer in ("yes", "no")
    ]
    assert chance(read_lines("x", write(folder, *pair))) == 0.25
    assert chance(read_lines("x", write(folder, COLOURS[0]))) < 1


def test_chance_counts_the_options_that_are_right(folder):
    """Other words of the right option are no option."""
    for more in ([], ["the beast"]):
        lines = [
            {"image": "red.png", "question": f"{n}?", "answers": [name, *more], "options": ["cat", "dog", "cow"]}
            for n, name in enumerate(("cat", "dog", "cow"))
        ]
        assert chance(read_lines("x", write(folder, *lines))) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("rule_name", "line", "message"),
    [
        ("option", {"answer": "red"}, "rule=option needs options"),
        ("number", {"answer": "three"}, "rule=number needs an answer in digits, not 'three'"),
        ("judge.py:words", {"answer": "red"}, "it must say True or False of a reply, not 'False'"),
        ("judge.py:alone", {"answer": "red"}, "rule=judge.py:alone: it must take a reply and a line"),
        ("exact", {"answers": ["a", "b"], "options": ["a", "b"]}, "every option is right: a, b"),
    ],
)
def test_a_rule_by_which_nothing_can_be_right_is_refused(folder, rule_name, line, message):
    (folder / "judge.py").write_text("def words(reply, line):\n    return 'False'\ndef alone(reply):\n    return True\n")
    write(folder, {"image": "red.png", "question": "?", **line})
    config = run_config(evaluation__benchmarks={"mine": {"path": "q.jsonl", "rule": rule_name}})
    with pytest.raises(UserError, match=message):
        check_benchmarks(config)
        right_groups(outside("mine", config), ["red"])


def test_margins_are_between_right_and_wrong_options():
    question = Question(np.zeros((1, 1, 3), np.uint8), "?", "red", 0, ("red", "crimson", "blue"), ("crimson",))
    assert margin(question, [-1.0, -0.5, -9.0]) == 8.5


def test_other_keys_are_for_a_rule_of_ones_own(folder):
    path = write(folder, {**COLOURS[0], "difficulty": 3, "groups": ["a"], "group": "b"})
    assert read_lines("x", path)[0]["difficulty"] == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "item 2: not JSON"),
        ({"question": "?", "answer": "a"}, "item 2: image missing .keys of a line: image, question"),
        ({"image": "red.png", "question": "?"}, "item 2: one of answer and answers must be there"),
        ({"image": "red.png", "question": "?", "answer": "a", "answers": ["b"]}, "one of answer and answers"),
        ({"image": "red.png", "question": "?", "answers": []}, "answers must be a list with at least one"),
        ({"image": "red.png", "question": "?", "answer": "c", "options": ["a", "b"]}, "'c' is none of the options a, b"),
        ({"image": "red.png", "question": "?", "answer": "a", "options": ["a", "a"]}, "two or more different ones"),
        ({"image": "red.png", "question": "?", "answer": {"a": 1}}, "answer must be a string, not dict"),
        ({"image": "red.png", "question": "?", "answer": " "}, "an empty text"),
        ({"image": "red.png", "question": "?", "answer": "a", "group": [1]}, "group must be a text or a number"),
        ({"image": "none.png", "question": "?", "answer": "a"}, "none.png"),
        ({"image": "red.png", "question": "?", "answer": "a", "optoins": ["a", "b"]}, "'optoins', did you mean options"),
        ({"image": "red.png", "question": "?", "anser": "a"}, "'anser', did you mean answer"),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_left_out(folder, line, message):
    write(folder, COLOURS[0], line)
    config = run_config(evaluation__benchmarks={"mine": {"path": "q.jsonl"}})
    with pytest.raises(UserError, match=message) as raised:
        outside("mine", config)
    assert "q.jsonl" in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_or_empty_file_is_said(folder):
    config = run_config(evaluation__benchmarks={"mine": {"path": "q.jsonl"}})
    with pytest.raises(UserError, match=r"evaluation.benchmarks.mine.path=q.jsonl: there is no such file"):
        outside("mine", config)
    write(folder, "")
    with pytest.raises(UserError, match="holds no questions"):
        outside("mine", config)


def test_numbers_stand_for_their_text(folder):
    (line,) = read_lines("x", write(folder, {"image": "red.png", "question": "how many?", "answer": 3, "options": [1, 2, 3]}))
    assert line["answers"] == ["3"] and line["options"] == ["1", "2", "3"]


def test_answers_that_no_reply_can_be_are_said(folder, tokenizer):
    """Of three answers one is too long whole but short in another form; letters are always in reach."""
    lines = [
        {"image": "red.png", "question": "who?", "answer": "a very long name of somebody"},
        {"image": "red.png", "question": "who?", "answers": ["another very long name of somebody", "red"]},
        {"image": "red.png", "question": "who?", "answer": "red"},
    ]
    write(folder, *lines)
    config = run_config(evaluation__benchmarks={"mine": {"path": "q.jsonl"}}, evaluation__max_answer_tokens=4)
    (line,) = out_of_reach(config, tokenizer, ["mine"])
    assert line.startswith(
        "evaluation.benchmarks.mine: 1 of 3 answers are longer than evaluation.max_answer_tokens=4 ('a very long"
    )
    config.evaluation.max_answer_tokens = len(tokenizer.encode(lines[0]["answer"]))
    assert out_of_reach(config, tokenizer, ["mine"]) == []

    class Poor:
        """Knows one word."""

        def encode(self, text: str) -> list[int]:
            return [int(word != "red") for word in text.split()]

        def decode(self, ids: list[int]) -> str:
            return " ".join("?" if number else "red" for number in ids)

    (line,) = out_of_reach(config, Poor(), ["mine"])
    assert line == (
        "evaluation.benchmarks.mine: 1 of 3 answers cannot be spelt by this tokenizer "
        "('a very long name of somebody'): see decoder.tokenizer"
    )
    config.evaluation.benchmarks["mine"].rule = "option"
    assert out_of_reach(config, Poor(), ["mine"]) == []


def test_a_file_that_changes_while_the_process_lives_is_read_again(folder, tmp_path, monkeypatch):
    config = run_config(evaluation__benchmarks={"mine": {"path": "q.jsonl"}})
    write(folder, *COLOURS)
    assert len(outside("mine", config).questions) == 3
    write(folder, *COLOURS[:2])
    assert len(outside("mine", config).questions) == 2
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="there is no such file"):
        outside("mine", config)
