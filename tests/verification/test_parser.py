"""The parser of scenes calls no wrong image right, whatever is wrong with it, and right ones even where they lost something."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tunalab.data.scenes import Item, Scene
from tunalab.data.scenes.vocabulary import COLOURS, RADIUS, RGB, SLOTS
from tunalab.evaluation.generation.accuracy import is_exact
from tunalab.evaluation.generation.bank import UNCLEAR, nearest
from tunalab.evaluation.generation.parser import parse
from tunalab.evaluation.generation.prompts import right
from tunalab.verification import parser as check

CASE = Path(__file__).parents[1] / "data" / "cases" / "evaluation" / "small_on_large.png"


def large(shape: str, colour: str, slot: str) -> Item:
    return Item(shape, colour, *SLOTS[slot], RADIUS["large"], RADIUS["large"], "", "large", slot)


def test_a_small_thing_on_a_large_one_is_a_third_thing() -> None:
    items = (large("cross", "orange", "top left"), large("square", "green", "bottom left"))
    (parsed,) = parse([np.asarray(Image.open(CASE).convert("RGB"))])
    requests = Scene("objects", 1, parsed.background, items, "", "", "", 1)
    assert parsed.background != UNCLEAR and not is_exact(parsed, requests)
    assert not any(right(category, requests, parsed) for category in ("two_object", "color_attr", "position"))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("change", check.CHANGES)
def test_hardly_any_wrong_image_is_called_right(change: str, size: int) -> None:
    called, _ = check.accepted(change, size, 5, seed="test")
    assert len(called) == 5 and sum(called) == 0


def test_right_images_are_called_right_even_where_they_lost_something() -> None:
    for name, found in check.recalled(32, 12, seed="test").items():
        called = [right_one for right_one, _ in found]
        assert len(called) == 12 and sum(called) >= (11 if name == "clean" else 10), name
        assert all(residual <= 1 for right_one, residual in found if right_one)


def test_a_colour_between_two_names_has_none() -> None:
    for name in COLOURS:
        assert nearest(np.array(RGB[name]) / 255, COLOURS) == name
    between = (np.array(RGB["red"]) + RGB["orange"]) / 2 / 255
    assert nearest(between, COLOURS) == UNCLEAR


def test_the_truth_of_an_image_is_what_was_drawn() -> None:
    pictures, near = check.wrong("extra blob", 32, 4, "test")
    assert near >= 0 and all(not any(check.truth(picture)) for picture in pictures)
    assert all(check.energy(picture) >= check.LEAST_ENERGY for picture in pictures)
    assert all(all(check.truth(picture)) for picture in check.unchanged(32, 6, "test"))


@pytest.mark.parametrize("form", ["hexagon", "astroid"])
def test_forms_that_are_not_scored_lie_near_to_right_drawings_and_scored_ones_do_not(form: str) -> None:
    shape = {"hexagon": "circle", "astroid": "diamond"}[form]
    most_of_right = {radius: check.limits(shape, 2, radius, count=4)[1] for radius in (3.5, 5.0)}
    typical = {radius: check.limits(form, 8, radius, count=4)[0] for radius in (3.5, 5.0)}
    assert 3.5 < check.LEAST_RADIUS[form] < 5
    assert typical[3.5] < 1.5 * most_of_right[3.5] and typical[5.0] > 1.5 * most_of_right[5.0]
    pictures, near = check.wrong(f"{form} for a {shape}", 32, 4, "test")
    assert near > 0 and all(item.rx >= RADIUS["large"] for one in pictures for item in one.drawn.items if item.shape == form)


def test_the_committed_page_keeps_what_is_promised() -> None:
    page = (Path(__file__).parents[2] / "results" / "verification" / "parser.md").read_text(encoding="utf-8")
    assert page.count(f"Share of {check.COUNT} images") == 2, "made with fewer images than `tunalab verify parser` takes"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "% [" in line and line[0] == "|"]
    shares = {row[0]: [float(cell.split("%")[0]) for cell in row[1:] if "% [" in cell] for row in rows}
    assert list(shares)[: len(check.CHANGES)] == list(check.CHANGES)
    for name, of_sizes in shares.items():
        assert len(of_sizes) == len(check.SIZES)
        if name in check.CHANGES:
            assert max(of_sizes) <= 2, name
        else:
            assert min(of_sizes) >= (97 if name == "clean" else 90), name
