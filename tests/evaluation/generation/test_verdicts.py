"""GenEval's verdicts on hand-made images: right ones, wrong ones, and ones in which hardly anything can be seen."""

import pytest

from tunalab.analysis.evaluations import GENEVAL, counterpart
from tunalab.data.scenes import Item, Scene
from tunalab.data.scenes.vocabulary import COLOURS, RADIUS, SHAPES, SLOTS
from tunalab.errors import UserError
from tunalab.evaluation.generation.following import DENSE_PROMPTS, OVERALL, PROMPTS
from tunalab.evaluation.generation.parser import Found, Parsed
from tunalab.evaluation.generation.prompts import CATEGORIES, DENSE, direction, prompts, right, stands


def thing(shape: str, colour: str, slot: str, size: str = "large") -> Item:
    x, y = SLOTS[slot]
    return Item(shape, colour, x, y, RADIUS[size], RADIUS[size], "", size, slot)


def shown(*items: Item) -> Parsed:
    return Parsed("white", tuple(Found(item, 1.0) for item in items))


def asked(*items: Item) -> Scene:
    return Scene("objects", 1, "white", items, "", "", "", 1)


CIRCLE, RING = thing("circle", "red", "top left"), thing("ring", "blue", "top right")
NOTHING = shown()
UNCLEAR = shown(thing("unclear", "red", "top left"), thing("unclear", "blue", "top right"))


@pytest.mark.parametrize("category", CATEGORIES)
def test_nothing_and_unclear_things_are_wrong_in_every_category(category: str) -> None:
    for prompt in prompts(category, "test", 3):
        assert not right(category, prompt.scene, NOTHING) and not right(category, prompt.scene, UNCLEAR)
        assert right(category, prompt.scene, shown(*prompt.scene.items))


def test_single_object_asks_for_the_shape_alone() -> None:
    scene = asked(CIRCLE)
    assert right("single_object", scene, shown(thing("circle", "green", "bottom right", "small")))
    assert not right("single_object", scene, shown(CIRCLE, thing("unclear", "red", "bottom left"))), "what is unclear is there too"
    assert not right("single_object", scene, shown(RING)) and not right("single_object", scene, shown(CIRCLE, RING))


def test_two_object_asks_for_both_shapes() -> None:
    scene = asked(CIRCLE, RING)
    assert right("two_object", scene, shown(RING._replace(colour="pink"), CIRCLE))
    assert not right("two_object", scene, shown(RING, RING))


def test_counting_asks_for_the_number_whatever_the_colours() -> None:
    scene = asked(*(thing("cross", "red", slot, "small") for slot in ("a1", "b2", "c3")))
    others = [thing("cross", "blue", slot, "small") for slot in ("a4", "b4", "d4", "c4")]
    assert right("counting", scene, shown(*others[:3])) and not right("counting", scene, shown(*others[:3], RING))
    assert not right("counting", scene, shown(*others[:2])) and not right("counting", scene, shown(*others))


def test_colors_and_color_attr_ask_for_shapes_in_their_colours() -> None:
    assert right("colors", asked(CIRCLE), shown(CIRCLE._replace(slot="b1")))
    assert not right("colors", asked(CIRCLE), shown(CIRCLE._replace(colour="pink"), RING._replace(colour="red")))
    swapped = shown(CIRCLE._replace(colour="blue"), RING._replace(colour="red"))
    assert not right("color_attr", asked(CIRCLE, RING), swapped)
    assert right("color_attr", asked(CIRCLE, RING), shown(RING, CIRCLE))


def test_position_asks_for_the_relation_whatever_the_colours() -> None:
    scene = asked(CIRCLE, RING)
    assert direction(CIRCLE, RING) == "left" and direction(thing("ring", "red", "bottom left"), CIRCLE) == "below"
    assert right("position", scene, shown(thing("circle", "pink", "a3", "small"), thing("ring", "red", "c4", "small")))
    assert not right("position", scene, shown(thing("circle", "red", "top right"), thing("ring", "blue", "top left")))
    assert not right("position", scene, shown(thing("circle", "red", "top left"), thing("ring", "blue", "bottom left")))
    assert not right("position", scene, shown(CIRCLE))


def test_an_image_that_shows_everything_is_right_for_hardly_any_prompt() -> None:
    """The best answer to no prompt in particular must not be a good one."""
    places = [slot for slot in SLOTS if slot[0] in "abcd" and slot[1:].isdecimal()]
    everything = shown(
        *(thing(shape, COLOURS[n % len(COLOURS)], slot, "small") for n, (shape, slot) in enumerate(zip(SHAPES, places)))
    )
    for category in CATEGORIES:
        assert not any(right(category, prompt.scene, everything) for prompt in prompts(category, "test", 12))


def test_what_is_hardly_apart_stands_nowhere() -> None:
    one, other = CIRCLE._replace(x=20), CIRCLE._replace(x=27)
    assert not any(stands(one, towards, other) for towards in ("left", "right", "above", "below"))
    assert stands(one, "left", other._replace(x=40)) and not stands(one, "right", other._replace(x=40))
    both = other._replace(x=40, y=40)
    assert stands(one, "left", both) and stands(one, "above", both), "GenEval lets both be true of a diagonal"


@pytest.mark.parametrize("category", [*CATEGORIES, DENSE])
def test_prompts_are_different_captions_of_the_split_and_isolate_their_skill(category: str) -> None:
    found = prompts(category, "test", 12)
    texts = [prompt.text for prompt in found]
    assert len(set(texts)) == 12 and prompts(category, "test", 5) == found[:5]
    assert not set(texts) & {prompt.text for prompt in prompts(category, "composition", 6)}
    assert texts != [prompt.text for prompt in prompts(category, "test", 12, series=1)]
    numbers = {len(prompt.scene.items) for prompt in found}
    requested = {"single_object": {1}, "colors": {1}, "counting": {2, 3, 4}, DENSE: set(range(3, 17))}
    assert numbers <= requested.get(category, {2})


def test_too_many_prompts_are_refused_with_the_number_there_is() -> None:
    with pytest.raises(UserError, match="only [0-9]+ prompts of category 'single_object', 5000 are asked for"):
        prompts("single_object", "test", 5000)


def test_categories_are_those_of_the_published_results() -> None:
    assert (OVERALL, *CATEGORIES) == GENEVAL
    assert counterpart("generation", PROMPTS, "test", "counting") == ("GenEval", "counting")
    assert counterpart("generation", DENSE_PROMPTS, "test", OVERALL) == ("DPG-Bench", "overall")
    assert counterpart("generation", "DPG-Bench, official rule", "", OVERALL) == ("DPG-Bench", "overall")
    assert counterpart("generation", "DPG-Bench, all items", "", OVERALL) is None, "no official script prints that"
    assert counterpart("generation", PROMPTS, "round trip", OVERALL) is None
