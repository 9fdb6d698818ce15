import numpy as np
import pytest

from tunalab.data.scenes import Item, Scene, render
from tunalab.data.scenes.questions import benchmark_scenes
from tunalab.data.scenes.vocabulary import COLOURS, RGB
from tunalab.errors import UserError
from tunalab.evaluation.attention import KINDS, ROWS, cover, named_thing, row_prompt, thing_questions
from tunalab.frontends.contract import TargetSpace

RING, CROSS = Item("ring", "red", 16, 16, 14, 14), Item("cross", "blue", 48, 48, 14, 14)
SMALL = Item("ring", "green", 56, 8, 7, 7)


def scene(prompt: str, *items: Item) -> Scene:
    return Scene("objects", 1, "white", items, prompt, "", "", 2)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("what colour is the cross?", (1, "cross")),
        ("what shape is blue?", (1, "blue")),
        ("where is the red ring from the blue cross?", (0, "ring")),
        ("where is the cross from the green ring?", (1, "cross")),
        ("what is left of the green ring?", (2, "ring")),
        ("is the blue one ring or cross?", (1, "blue")),
        ("what colour is the ring?", None),  # two of them
        ("what colour is the diamond?", None),  # none
        ("what colour is the red cross?", None),
        ("how many crosses?", None),
        ("describe the image", None),
    ],
)
def test_the_thing_that_is_named(prompt, expected):
    assert named_thing(scene(prompt, RING, CROSS, SMALL)) == expected


def test_of_bars_the_one_of_its_colour():
    bars = [Item("bar", colour, x, 48, 7, 16) for colour, x in (("red", 8), ("pink", 24))]
    assert named_thing(scene("how tall is the pink bar?", *bars)) == (1, "bar")
    assert named_thing(scene("which bar is tallest?", *bars)) is None


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_names_things_at_every_level(kind, level):
    scenes = benchmark_scenes(kind, level, "test", 0, 24)
    named = [named_thing(one) for one in scenes]
    assert all(named) or kind == "charts" and sum(one is not None for one in named) > 4


def test_a_token_is_covered_by_its_share_of_pixels():
    mask = np.zeros((16, 32), dtype=bool)
    mask[:8, 8:16] = True
    mask[8:10, 24:28] = True
    assert cover(mask, 8).tolist() == [0, 1, 0, 0, 0, 0, 0, 8 / 64]


def test_questions_with_their_things():
    found = thing_questions((1, 3), 6, 32, 8)
    assert [one.benchmark for one in found[::6]] == [f"{kind}{level}" for level in ("", "@3") for kind in KINDS]
    assert thing_questions((1, 3), 6, 32, 8) is found
    for one in found:
        assert one.word in one.question.replace("?", "").split()
        assert one.cover_T.shape == (16,) and one.thing_HW.any()
        assert one.area == pytest.approx(one.thing_HW.mean())
        on = one.on_T.reshape(4, 4).repeat(8, axis=0).repeat(8, axis=1)
        assert on[one.thing_HW].mean() > 0.4 and one.on_T[one.cover_T.argmax()] and not one.on_T.all()
        if one.word in COLOURS:
            middle = np.median(one.image_HWC[one.thing_HW], axis=0)
            assert min(COLOURS, key=lambda name: np.abs(middle - RGB[name]).sum()) == one.word
    assert any(one.others_T for one in found)


def test_others_are_of_the_same_size():
    for one in thing_questions((1,), 6, 32, 8):
        if one.benchmark != "charts":
            assert one.others_T
        for cover_T in one.others_T:
            assert 0.4 < cover_T.mean() / one.area < 2.5, "shapes of one radius differ in area by no more"


def test_tokens_on_a_thing():
    (one,) = [one for one in thing_questions((1,), 8, 64, 8) if one.benchmark == "search"][:1]
    assert np.array_equal(one.on_T, one.cover_T >= one.cover_T.max() / 2) and one.on_T.sum() >= 4


def test_images_are_those_of_the_benchmark():
    scenes = benchmark_scenes("search", 1, "test", 0, 3)
    found = [one for one in thing_questions((1,), 3, 32, 8) if one.benchmark == "search"]
    assert all(np.array_equal(render(scene, 32), one.image_HWC) for scene, one in zip(scenes, found, strict=True))


def test_rows_of_a_question(tokenizer):
    one = thing_questions((1,), 1, 32, 8)[3]
    ends = [row_prompt(tokenizer, TargetSpace(3, 1, 8), one, row).ids_L[-1] for row in ROWS]
    assert [tokenizer.decode([end]) for end in ends] == ["what", one.word, "?"]


def test_wrong_levels_and_sizes():
    with pytest.raises(UserError, match="level"):
        thing_questions((4,), 2, 32, 8)
    with pytest.raises(UserError, match="image_size"):
        thing_questions((1,), 2, 30, 8)
