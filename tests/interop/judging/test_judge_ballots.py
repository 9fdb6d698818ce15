from collections import Counter

import pytest

from tunalab.interop.judge import BLANK, LETTERS, QUESTIONS, Ballot, deal, read_choice


@pytest.mark.parametrize("candidates", [2, 3])
def test_every_order_is_dealt_equally_often(candidates):
    prompts = [f"prompt {number}" for number in range(120)]
    ballots = deal(prompts, candidates)
    assert [ballot.prompt for ballot in ballots] == prompts
    orders = Counter(ballot.order for ballot in ballots)
    assert set(orders.values()) == {120 // len(orders)} and len(orders) == {2: 2, 3: 6}[candidates]


@pytest.mark.parametrize("candidates", range(2, len(LETTERS) + 1))
def test_every_candidate_stands_in_every_place_equally_often_up_to_one(candidates):
    counts = [[0] * candidates for _ in range(candidates)]
    ballots = deal(["p"] * 201, candidates, seed=candidates)
    for ballot in ballots:  # after each prompt: for every number of prompts
        assert sorted(ballot.order) == list(range(candidates))
        for place, who in enumerate(ballot.order):
            counts[who][place] += 1
        frequencies = {count for row in counts for count in row}
        assert max(frequencies) - min(frequencies) <= 1
    assert deal(["p"] * 7, candidates, seed=candidates) == ballots[:7]


def test_orders_are_shuffled_and_the_same_every_time():
    assert deal(["p"] * 50, 3, seed=1) == deal(["p"] * 50, 3, seed=1) != deal(["p"] * 50, 3, seed=2)
    assert deal([], 3) == []


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ('{"best": "A"}', "A"),
        ('{"best": "b"}', "B"),
        ('{"Best": "C"}', "C"),
        ('{ "best" :\n "C" }', "C"),
        ('```json\n{"best": "C"}\n```', "C"),
        ('{"best": "Candidate B"}', "B"),
        ('{"best": "candidate b"}', "B"),
        ('{"best": "CANDIDATE_B."}', "B"),
        ('{"best": "(B)"}', "B"),
        ('{"best": " B "}', "B"),
        ('{"best": "Option C"}', "C"),
        ('{"reason": "sharp {edges}", "best": "A"}', "A"),
        ('{"best": "A", "reason": "as {\\"best\\": \\"B\\"} would be wrong"}', "A"),
        # nested
        ('{"answer": {"best": "B"}}', "B"),
        ('{"best": {"best": "B"}}', "B"),
        ('{"scores": {"A": 1, "B": {"sharp": 3}}, "best": "B"}', "B"),
        ('{"result": {"verdict": {"best": "Candidate C", "why": {"a": []}}}}', "C"),
        ('[{"best": "B"}]', "B"),
        ('{"answer": "{\\"best\\": \\"B\\"}"}', "B"),
        ('{"quality": {"best": "A"}, "detail": {"best": "a"}}', "A"),
        ('{"quality": {"best": "A"}, "detail": {"best": "B"}}', None),
        # behind a reasoning part
        ('<think>{"best": "A"} seems right... no.</think>{"best": "B"}', "B"),
        ('{"best": "A"} seems right... no.</think>\n\n{"best": "B"}', "B"),
        ("<think>A? B? C!</think>\nB", "B"),
        ("<THINKING>\nA\n</THINKING> **Tie**", "tie"),
        ('<think>{"best": "A"} is what I would say', None),  # never came to its answer
        ('<think>{"best": "A"}</think>', None),
        ('At first {"best": "A"} seems right, but on reflection: {"best": "B"}', "B"),
        ("The first has {three} circles, {the second} none.\n" + '{"best": "C"}', "C"),
        # an example before the answer
        ('The format is {"best": "A"}. My answer: {"best": "C"}', "C"),
        (f'As you asked for {{"best": "{BLANK}"}}: {{"best": "B"}}', "B"),
        (f'{{"best": "B"}} (in the form {{"best": "{BLANK}"}})', "B"),
        ('For example {"best": "A"}. My answer: B', None),
        (f'I was to say {{"best": "{BLANK}"}}, but I cannot judge images.', None),
        ('{"best": "B"} My answer is candidate B.', "B"),
        ('{"best": "B"} What is best: a red circle, and the best: A vivid one.', "B"),
        ('{"best": "A"} No: {"best": "B', None),  # cut off
        ('{"best": "A"} No, on reflection {"best": "', None),
        ('{"best": "A', None),
        # ties
        ('{"best": "tie"}', "tie"),
        ('{"best": "TIE"}', "tie"),
        ('{"best": "Tie."}', "tie"),
        ('{"best": "a tie"}', "tie"),
        ('{"best": "tied"}', "tie"),
        ('{"best": "None is better."}', "tie"),
        ('{"best": "EQUAL"}', "tie"),
        ('{"best": "tie between A and B"}', None),
        ('{"answer": {"best": "It is a tie"}}', "tie"),
        ("Tie.", "tie"),
        ("It's a tie!", "tie"),
        # without JSON
        ("B", "B"),
        ("b", "B"),
        ("**C**", "C"),
        ('{"best": "A"} The second best is B.', "A"),
        ("(A)", "A"),
        ("Candidate A", "A"),
        ("Answer: B", "B"),
        ("<think>A?</think><answer>B</answer>", "B"),
        ("The best candidate is **Candidate C**.", "C"),
        # names nobody
        ('{"best": "D"}', None),  # there is no D
        ('{"best": "A"} or rather {"best": "D"}', None),
        ('{"best": ["A", "B"]}', None),
        ('{"best": "A and B"}', None),
        ('{"best": "A/B"}', None),
        ('{"best": null}', None),
        ('{"best": "none"}', None),
        ('{"best": ""}', None),
        ('{"best": 1}', None),
        ('{"best": true}', None),
        ('{"best": "I cannot judge"}', None),
        ('{"worst": "A"}', None),
        ("{}", None),
        ("A and B are equally good", None),
        ("A is a good candidate", None),
        ("I cannot judge images.", None),
        ("I", None),
        ("", None),
        ("{best: A}", None),
        ("{" * 5000, None),
    ],
)
def test_reading_a_choice(answer, choice):
    assert read_choice(answer, 3) == choice


@pytest.mark.parametrize("candidates", [2, 8])
def test_the_question_itself_is_no_vote(candidates):
    ballot = Ballot("a red circle", tuple(range(candidates)))
    for question in QUESTIONS:
        assert read_choice(ballot.text(question), candidates) is None
        assert read_choice(f'{ballot.text(question)}\n{{"best": "B"}}', candidates) == "B"


def test_the_question_names_every_letter_and_the_prompt():
    for question in QUESTIONS:
        text = Ballot("a red circle", (2, 0, 1)).text(question)
        assert "a red circle" in text and "A, B, C" in text and QUESTIONS[question] in text
