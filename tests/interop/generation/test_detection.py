"""GenEval's rules over hand-made detections: right, wrong, and what must not sway them."""

import numpy as np
import pytest

from tunalab.interop.geneval import MOST, Clause, Detection, GenEvalPrompt, judge, relations, strongest

PIXELS = np.zeros((100, 100, 3), np.uint8)
LEFT, RIGHT, MIDDLE = (0.0, 40.0, 20.0, 60.0), (80.0, 40.0, 100.0, 60.0), (40.0, 40.0, 60.0, 60.0)


def detection(thing: str, score: float = 0.95, box: tuple[float, float, float, float] = MIDDLE) -> Detection:
    return Detection(thing, score, box)


class Colours:
    """Tells the colour that the box's left side stands for."""

    name = "by place"

    def colours(self, pixels_HWC, detections):
        return ["red" if one.box[0] < 50 else "blue" for one in detections]


def right(tag: str, include: list[Clause], detections: list[Detection], exclude: tuple[Clause, ...] = ()) -> bool:
    verdict = judge(GenEvalPrompt(tag, "", tuple(include), exclude, {}), detections, PIXELS, Colours())
    assert verdict.right == (not verdict.reasons)
    return verdict.right


def test_things_are_seen_above_the_threshold():
    dog = [Clause("dog", 1)]
    assert right("single_object", dog, [detection("dog"), detection("cat")])
    assert not right("single_object", dog, []) and not right("single_object", dog, [detection("cat")])
    assert right("single_object", dog, [detection("dog", 0.31)]) and not right("single_object", dog, [detection("dog", 0.3)])
    both = [Clause("dog", 1), Clause("cat", 1)]
    assert right("two_object", both, [detection("cat"), detection("dog")]) and not right(
        "two_object", both, [detection("dog"), detection("dog")]
    )
    verdict = judge(GenEvalPrompt("two_object", "", tuple(both), (), {}), [detection("dog")], PIXELS, None)
    assert verdict.reasons == ("cat: 0 found, 1 expected",)


def test_counting_wants_the_number_and_is_stricter():
    two, three = [Clause("clock", 2)], (Clause("clock", 3),)
    assert right("counting", two, [detection("clock"), detection("clock")], three)
    assert not right("counting", two, [detection("clock")], three)
    assert not right("counting", two, [detection("clock")] * 3, three)
    assert right("counting", two, [*[detection("clock")] * 2, detection("clock", 0.9)], three), "0.9 does not count as seen"
    assert not right("counting", two, [detection("clock"), detection("clock", 0.8)], three)
    assert right("two_object", [Clause("clock", 2)], [detection("clock"), detection("clock", 0.8)]), "elsewhere 0.3 does"


def test_colours_are_those_of_the_surest():
    car = [Clause("car", 1, "red")]
    assert right("colors", car, [detection("car", box=LEFT)]) and not right("colors", car, [detection("car", box=RIGHT)])
    assert not right("colors", car, [detection("car", 0.8, LEFT), detection("car", 0.9, RIGHT)]), "only the surest is looked at"
    assert right("colors", car, [detection("car", 0.9, LEFT), detection("car", 0.8, RIGHT)])
    swapped = [detection("car", box=RIGHT), detection("cup", box=LEFT)]
    both = [Clause("car", 1, "red"), Clause("cup", 1, "blue")]
    assert not right("color_attr", both, swapped)
    assert right("color_attr", both, [detection("car", box=LEFT), detection("cup", box=RIGHT)])
    with pytest.raises(ValueError, match="car is to be red, and there is no colour classifier"):
        judge(GenEvalPrompt("colors", "", tuple(car), (), {}), [detection("car")], PIXELS, None)


def test_position_is_relative_to_the_earlier_thing():
    clauses = [Clause("dog", 1), Clause("tie", 1, relation="right of", target=0)]
    assert right("position", clauses, [detection("dog", box=LEFT), detection("tie", box=RIGHT)])
    assert not right("position", clauses, [detection("dog", box=RIGHT), detection("tie", box=LEFT)])
    assert not right("position", clauses, [detection("tie", box=RIGHT)]), "nothing there to be right of"
    assert not right("position", clauses, [detection("dog"), detection("tie")])


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 40, 20, 60), {"left of"}),
        ((80, 40, 100, 60), {"right of"}),
        ((40, 0, 60, 20), {"above"}),
        ((40, 80, 60, 100), {"below"}),
        ((80, 80, 100, 100), {"right of", "below"}),
        ((44, 40, 64, 60), set()),  # the offset of 4 is 0.1 of both widths
        ((80, 60, 100, 80), {"right of"}),  # 40 to the right, 20 down: mostly to the right
        ((40, 40, 60, 60), set()),
    ],
)
def test_relations(box, expected):
    one = Detection("a", 1.0, box)
    assert relations(one, detection("b")) == expected
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert relations(detection("b"), one) == {opposite[name] for name in expected}


def test_of_a_crowd_the_surest_are_looked_at():
    crowd = [detection("bird", score) for score in np.linspace(0.4, 0.9, MOST + 4)]
    kept = strongest(crowd, 0.3)["bird"]
    assert len(kept) == MOST and kept[0].score == 0.9 and min(one.score for one in kept) == crowd[4].score
    assert not right("single_object", [Clause("cat", 1)], crowd)
