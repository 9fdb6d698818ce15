"""Conversations: roles, order, and the one image placeholder."""

import pytest

from tunalab.data.assembling import read_turns
from tunalab.data.documents import Reject


def talk(*values: str, roles: tuple[str, ...] = ("human", "gpt")) -> list[dict[str, str]]:
    return [{"from": roles[number % len(roles)], "value": value} for number, value in enumerate(values)]


def test_pairs() -> None:
    assert read_turns(talk("a?", "b", "c?", "d"), images=0) == [("a?", "b"), ("c?", "d")]


def test_other_names_of_the_roles() -> None:
    assert read_turns(talk("a?", "b", roles=("user", "assistant")), images=0) == [("a?", "b")]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<image>\nwhat is it?", "<image>what is it?"),
        (" <image> what is it? ", "<image>what is it?"),
        ("what is it?\n<image>", "<image>what is it?"),
        ("what is it? \n \n <image> \n", "<image>what is it?"),
        ("what is <image> here?", "what is<image>here?"),
        ("look at\n<image>\nwhat is it?", "look at<image>what is it?"),
        ("what is it: <image>", "what is it:<image>"),
        ("what is it?", "<image>what is it?"),
        ("<image>", "<image>"),
    ],
)
def test_a_placeholder_stays_where_it_stands(prompt: str, expected: str) -> None:
    """But on a line behind the whole text it means the same as before it, as when it is left out."""
    assert read_turns(talk(prompt, "b"), images=1) == [(expected, "b")]


def test_a_placeholder_for_each_of_several_images() -> None:
    assert read_turns(talk("<image>\n<image>\nwhich is red?", "b"), images=2) == [("<image><image>which is red?", "b")]
    assert read_turns(talk("which is red?\n<image>\n<image>", "b"), images=2) == [("<image><image>which is red?", "b")]
    assert read_turns(talk("is <image> or <image> red?", "b"), images=2) == [("is<image>or<image>red?", "b")]
    assert read_turns(talk("A:\n<image>\nB:\n<image>", "b"), images=2) == [("A:<image>B:<image>", "b")]
    assert read_turns(talk("which is red?", "b"), images=2) == [("<image><image>which is red?", "b")]
    for prompt in ("<image>", "<image><image><image>"):
        with pytest.raises(Reject, match="<image>, 2 images"):
            read_turns(talk(prompt, "b"), images=2)


def test_roles_and_contents() -> None:
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    assert read_turns(turns, images=0) == [("a?", "b")]


def test_system_turn_opens_the_first_prompt() -> None:
    turns = [{"from": "system", "value": "Be brief."}, *talk("<image>\na?", "b", "c?", "d")]
    assert read_turns(turns, images=1) == [("<image>Be brief.\na?", "b"), ("c?", "d")]
    turns = [{"from": "system", "value": "Be brief."}, *talk("is <image> red?", "b")]
    assert read_turns(turns, images=1) == [("Be brief.\nis<image>red?", "b")]
    turns = [{"from": "system", "value": "Be brief."}, *talk("<image>", "b")]
    assert read_turns(turns, images=1) == [("<image>Be brief.", "b")]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("    def f():\n        return 1\n\n", "    def f():\n        return 1"),
        ("\n\n\tx = 1\n", "\tx = 1"),
        ("\r\n  x", "  x"),
        ("  \n \n   x\ny", "   x\ny"),
        (" context\n-old\n+new", " context\n-old\n+new"),  # of a diff
        (" yes ", "yes"),  # a blank before a word is no indentation
        ("\ufeff    x", "    x"),
    ],
)
def test_answers_keep_their_indentation(answer: str, expected: str) -> None:
    assert read_turns(talk("a?", answer, " c? ", answer), images=0) == [("a?", expected), ("c?", expected)]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ("a?", "must be a list"),
        ([], "must be a list"),
        ({"from": "human", "value": "a?"}, "must be a list"),
        (["a?", "b"], "turn 1 must be an object, not str"),
        ([{"from": "human"}, {"from": "gpt", "value": "b"}], "value of turn 1 must be a string, not NoneType"),
        ([{"from": "human", "value": "a?"}, {"from": "gpt", "value": 3}], "value of turn 2 must be a string, not int"),
        ([{"from": "tool", "value": "a?"}, {"from": "gpt", "value": "b"}], "turn 1 is from 'tool'; choices: human"),
        ([{"from": ["human"], "value": "a?"}], "turn 1 is from"),
        ([{"value": "a?"}], "turn 1 is from None"),
        (talk("a?"), "alternate"),
        (talk("a?", "b", "c?"), "alternate"),
        (talk("b", "a?", roles=("gpt", "human")), "alternate"),
        (talk("a?", "b", "c?", roles=("human", "human", "gpt")), "alternate"),
        (talk("s", roles=("system",)), "alternate"),
        (talk("a?", "b", "s", "c?", roles=("human", "gpt", "system", "human")), "alternate"),
        (talk(" ", "b"), "empty prompt"),
        (talk("a?", " \n"), "empty answer"),
        (talk("a?", "half \ud800"), "half a surrogate pair at character 5"),
        (talk("<image>\na?", "b"), "<image> without an image"),
    ],
)
def test_broken(turns: object, reason: str) -> None:
    with pytest.raises(Reject) as caught:
        read_turns(turns, images=0)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (talk("<image><image>\na?", "b"), "2 times <image>"),
        (talk("<image>\na?", "b", "<image>\nc?", "d"), "outside the first human turn"),
        (talk("a?", "b", "<image>\nc?", "d"), "outside the first human turn"),
        (talk("a?", "<image> b"), "outside the first human turn"),
        ([{"from": "system", "value": "<image>"}, *talk("a?", "b")], "outside the first human turn"),
        (talk("<image>\na?", "b", "", "d"), "empty prompt"),
    ],
)
def test_broken_with_an_image(turns: object, reason: str) -> None:
    with pytest.raises(Reject) as caught:
        read_turns(turns, images=1)
    assert reason in str(caught.value)
