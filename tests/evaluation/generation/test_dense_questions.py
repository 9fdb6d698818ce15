"""Dense prompts: hand-made answers, and that a question counts nothing where what it depends on fails."""

from dataclasses import replace

import numpy as np

from tunalab.data.scenes import Item, Scene
from tunalab.data.scenes.vocabulary import RADIUS, SLOTS
from tunalab.evaluation.generation.parser import Found, Parsed
from tunalab.evaluation.generation.prompts import DENSE, KINDS, answers, prompts, questions


def thing(shape: str, colour: str, slot: str, size: str = "small") -> Item:
    x, y = SLOTS[slot]
    return Item(shape, colour, x, y, RADIUS[size], RADIUS[size], "", size, slot)


ITEMS = (thing("circle", "red", "a1"), thing("circle", "red", "c3"), thing("ring", "blue", "d2"), thing("cross", "pink", "a4"))
SCENE = Scene("count", 2, "white", ITEMS, "", "", "", 1)


def shown(*items: Item, background: str = "white") -> Parsed:
    return Parsed(background, tuple(Found(item, 1.0) for item in items))


def given(parsed: Parsed) -> dict[str, list[bool]]:
    requests = questions(SCENE)
    found: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for question, answer in zip(requests, answers(requests, parsed), strict=True):
        found[question.kind].append(answer)
    return found


def test_every_kind_is_asked_and_a_perfect_image_answers_all() -> None:
    found = given(shown(*ITEMS))
    assert {kind: len(answered) for kind, answered in found.items()} == {
        "global": 1,
        "entity": 3,
        "colour": 3,
        "size": 3,
        "number": 1,
        "place": 4,
        "relation": 1,
    }
    assert all(all(answered) for answered in found.values())
    for prompt in prompts(DENSE, "test", 12):
        requests = questions(prompt.scene)
        assert all(answers(requests, shown(*prompt.scene.items, background=prompt.scene.background)))
        assert all(parent < number for number, question in enumerate(requests) for parent in question.parents)


def test_an_empty_image_has_only_its_background() -> None:
    found = given(shown())
    assert found["global"] == [True] and not any(any(answered) for kind, answered in found.items() if kind != "global")
    assert not any(answers(questions(SCENE), shown(background="unclear")))


def test_children_of_what_is_not_there_count_nothing() -> None:
    blue_circles = [item._replace(colour="blue") if item.shape == "circle" else item for item in ITEMS]
    found = given(shown(*blue_circles))
    assert found["entity"] == [True] * 3
    # Circle, cross, ring in turn: right place, size and number do not help a wrong colour.
    assert found["colour"] == found["size"] == [False, True, True]
    assert found["number"] == [False] and found["place"] == [False, False, True, True]
    requests = questions(SCENE)
    orphan = [replace(question, parents=()) for question in requests]
    squares = shown(*(item._replace(shape="square") if item.shape == "cross" else item for item in ITEMS))
    assert answers(requests, squares) == answers(orphan, squares)
    relation = next(number for number, question in enumerate(requests) if question.kind == "relation")
    assert requests[relation].parents and all(requests[parent].kind == "colour" for parent in requests[relation].parents)
    lie = [replace(question, holds=lambda parsed: True) if question.kind == "relation" else question for question in requests]
    assert not answers(lie, squares)[relation], "the cross is missing, whatever is seen of the relation"


def test_one_wrong_detail_costs_its_question_alone() -> None:
    moved = [ITEMS[0], ITEMS[1]._replace(slot="c4", y=56), *ITEMS[2:]]
    tiny = [*ITEMS[:2], ITEMS[2]._replace(size="tiny", rx=5, ry=5), ITEMS[3]]
    more = [*ITEMS, thing("circle", "red", "b2")]
    total = len(questions(SCENE))
    for items in (moved, tiny, more):
        assert np.sum(answers(questions(SCENE), shown(*items))) == total - 1
    swapped = [*ITEMS[:2], ITEMS[2]._replace(x=8), ITEMS[3]._replace(x=56)]
    assert given(shown(*swapped))["relation"] == [False] and all(given(shown(*swapped))["place"]), "slots are as named"
