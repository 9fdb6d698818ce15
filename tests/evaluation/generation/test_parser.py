"""Clean renders of every kind of scene are read exactly, at several sizes; what is no scene is read as unclear."""

from collections import Counter

import numpy as np
import pytest

from tunalab.data.scenes import Item, Scene, render, scene
from tunalab.data.scenes.vocabulary import BACKGROUNDS, COLOURS, RADIUS, RGB, SHAPES
from tunalab.errors import UserError
from tunalab.evaluation.generation.accuracy import conditions, is_exact, things
from tunalab.evaluation.generation.parser import Parsed, parse, slot_of


def picture(*items: Item, background: str = "white", size: int = 32) -> np.ndarray:
    return render(Scene("objects", 1, background, tuple(sorted(items)), "", "", "", 1), size)


def item(shape: str, colour: str, x: int, y: int, size: str = "small") -> Item:
    return Item(shape, colour, x, y, RADIUS[size], RADIUS[size], "", size, "")


def places(parsed: Parsed) -> Counter[tuple[str, str, int, int, str]]:
    return Counter((one.shape, one.colour, one.x, one.y, one.size) for one in parsed.items)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("kind", ["objects", "relations", "pairs", "search", "count", "pattern"])
def test_clean_renders_are_read_exactly_to_the_unit(kind: str, size: int) -> None:
    scenes = [scene("test", 0, index, kind, level) for level in (1, 2, 3) for index in range(4)]
    for truth, parsed in zip(scenes, parse([render(truth, size) for truth in scenes]), strict=True):
        assert parsed.background == truth.background
        assert places(parsed) == Counter((one.shape, one.colour, one.x, one.y, one.size) for one in truth.items)
        assert Counter(one.slot for one in parsed.items) == Counter(one.slot for one in truth.items)
        assert all(found.match > 0.97 for found in parsed.found)


@pytest.mark.parametrize("size", [16, 48, 128])
def test_other_sizes_are_read_too(size: int) -> None:
    scenes = [scene("test", 0, index, "objects", 1) for index in range(6)]
    parsed = parse([render(truth, size) for truth in scenes])
    assert all(is_exact(one, truth) for one, truth in zip(parsed, scenes, strict=True))


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_colour_and_shape_on_every_background(background: str) -> None:
    for number, colour in enumerate(COLOURS):
        shape = SHAPES[number % len(SHAPES)]
        (parsed,) = parse([picture(item(shape, colour, 21, 37), background=background)])
        assert places(parsed) == {(shape, colour, 21, 37, "small"): 1} and parsed.background == background


def test_an_image_that_was_read_is_not_read_again() -> None:
    one, other = picture(item("ring", "blue", 21, 37)), picture(item("ring", "blue", 22, 37))
    first, second, third = parse([one, other, one.copy()])
    assert first is third is not second


def test_things_that_hide_one_another_are_read() -> None:
    over = [item("circle", "red", 20, 20), item("cross", "blue", 30, 20), item("square", "red", 21, 31)]
    (parsed,) = parse([picture(*over)])
    assert places(parsed) == Counter((one.shape, one.colour, one.x, one.y, one.size) for one in over)


def test_four_small_ones_are_not_a_large_one_nor_the_other_way_round() -> None:
    cells = [(8, 8), (24, 8), (8, 24), (24, 24)]
    for shape in SHAPES:
        (small,), (large,) = (
            parse([picture(*(item(shape, "green", x, y) for x, y in cells))]),
            parse([picture(item(shape, "green", 16, 16, "large"))]),
        )
        assert [one.size for one in small.items] == ["small"] * 4 and {one.shape for one in small.items} == {shape}
        assert places(large) == {(shape, "green", 16, 16, "large"): 1}


def test_nothing_is_found_on_an_empty_background_or_in_faint_noise() -> None:
    empty = np.full((32, 32, 3), RGB["navy"], dtype=np.uint8)
    draws = np.random.default_rng(0)
    noisy = np.clip(RGB["grey"] + draws.normal(0, 25, (32, 32, 3)), 0, 255).astype(np.uint8)
    assert parse([empty, noisy]) == [Parsed("navy", ()), Parsed("grey", ())]
    assert parse([]) == []


def test_what_no_scene_has_is_unclear() -> None:
    image_HWC = picture(item("square", "red", 16, 16, "large"))
    image_HWC[:] = np.where(image_HWC.std(axis=2, keepdims=True) > 20, np.array([105, 110, 60]), image_HWC)  # olive
    olive = parse([image_HWC])[0].found
    assert [(one.item.shape, one.item.colour) for one in olive] == [("square", "unclear")]
    stripes = np.full((32, 32, 3), 250, dtype=np.uint8)
    stripes[4:16:4, 4:28] = RGB["red"]
    assert all(one.item.shape == "unclear" and one.match < 0.8 for one in parse([stripes])[0].found)
    violet = np.full((32, 32, 3), (120, 90, 160), dtype=np.uint8)
    assert parse([violet]) == [Parsed("unclear", ())]


def test_a_pale_or_dark_shape_keeps_its_name() -> None:
    image_HWC = picture(item("circle", "green", 48, 16, "large")).astype(np.float64)
    for factor in (0.7, 1.3):
        (parsed,) = parse([np.clip(250 + factor * (image_HWC - 250), 0, 255).astype(np.uint8)])
        assert [(one.shape, one.colour, one.slot) for one in parsed.items] == [("circle", "green", "top right")]


def test_accuracy_falls_with_noise_and_counts_what_is_missing_and_what_is_too_much() -> None:
    scenes = [scene("test", 0, index, "objects", 2) for index in range(8)]
    clean_NHWC = np.stack([render(one, 32) for one in scenes])
    exact = {
        split: np.mean([is_exact(one, truth) for one, truth in zip(parse(images), scenes, strict=True)])
        for split, images in conditions(clean_NHWC)
    }
    assert exact["clean"] == exact["noise 0.05"] == 1 > exact["noise 0.2"]
    assert exact["blur 0.5"] >= exact["blur 1"]
    truth = scenes[0]
    (parsed,) = parse([render(truth, 32)])
    number = len(truth.items)
    fewer = Parsed(parsed.background, parsed.found[1:])
    more = Parsed(parsed.background, (*parsed.found, parsed.found[0]))
    assert [things(one, truth) for one in (parsed, fewer, more)] == [(number, number), (number - 1, number), (number, number + 1)]
    assert not is_exact(fewer, truth) and not is_exact(more, truth)
    assert not is_exact(Parsed("unclear", parsed.found), truth)


def test_a_place_between_slots_has_no_name() -> None:
    assert slot_of(8, 8, "small") == "a1" and slot_of(12, 5, "small") == "a1"
    assert slot_of(16, 16, "small") == slot_of(13, 19, "large") == "top left"
    assert slot_of(16, 9, "small") == "" == slot_of(8, 8, "large")


@pytest.mark.parametrize(("shape", "what"), [((32, 48, 3), "48x32"), ((40, 40, 3), "40 pixels"), ((100, 100, 3), "100 pixels")])
def test_a_size_that_cannot_be_parsed_is_told(shape: tuple[int, int, int], what: str) -> None:
    with pytest.raises(UserError, match=what):
        parse([np.zeros(shape, dtype=np.uint8)])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_between_two_places_is_read(shape: str) -> None:
    """Half a pixel off both ways, as no scene stands and a model may draw."""
    fine = picture(item(shape, "blue", 30, 34, "large"), background="white", size=256)
    fine = np.roll(fine.astype(np.float64), (2, 2), (0, 1))
    (parsed,) = parse([np.round(fine.reshape(64, 4, 64, 4, 3).mean((1, 3))).astype(np.uint8)])
    assert [(one.shape, one.colour) for one in parsed.items] == [(shape, "blue")] and parsed.residual < 1
