from collections import Counter

import pytest

from tunalab.evaluation.judging.ballots import QUESTIONS, Ballot, deal, read_choice


@pytest.mark.parametrize("candidates", [2, 3])
def test_every_order_is_dealt_equally_often(candidates):
    prompts = [f"prompt {number}" for number in range(120)]
    ballots = deal(prompts, candidates)
    assert [ballot.prompt for ballot in ballots] == prompts
    orders = Counter(ballot.order for ballot in ballots)
    assert set(orders.values()) == {120 // len(orders)} and len(orders) == {2: 2, 3: 6}[candidates]
    for place in range(candidates):
        assert set(Counter(ballot.order[place] for ballot in ballots).values()) == {120 // candidates}


def test_orders_are_shuffled_and_the_same_every_time():
    assert deal(["p"] * 50, 3, seed=1) == deal(["p"] * 50, 3, seed=1) != deal(["p"] * 50, 3, seed=2)


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ('{"best": "A"}', "A"),
        ('{"best": "b"}', "B"),
        ('```json\n{"best": "C"}\n```', "C"),
        ('At first {"best": "A"} seems right, but on reflection: {"best": "B"}', "B"),
        ('{"best": "tie"}', "tie"),
        ("Tie.", "tie"),
        ("B", "B"),
        ("**C**", "C"),
        ("Candidate A", "A"),
        ('{"best": "Candidate A"}', "A"),
        ('{"best": "D"}', None),  # there is no D
        ('{"best": ["A", "B"]}', None),
        ('{"worst": "A"}', None),
        ("A and B are equally good", None),
        ("I cannot judge images.", None),
        ("", None),
        ("{best: A}", None),
    ],
)
def test_reading_a_choice(answer, choice):
    assert read_choice(answer, 3) == choice


def test_the_question_names_every_letter_and_the_prompt():
    for question in QUESTIONS:
        text = Ballot("a red circle", (2, 0, 1)).text(question)
        assert "a red circle" in text and "A, B, C" in text and QUESTIONS[question] in text
