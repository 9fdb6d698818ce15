"""Splits share no image, and what is held out appears in one split only."""

from functools import cache

import pytest

from tunalab.data.scenes import SPLITS, render, scene
from tunalab.data.scenes.graph import held_out
from tunalab.data.scenes.vocabulary import HELD_BARS, HELD_COUNTS, HELD_PAIRS, held_word


@cache
def sample(split):
    """Scenes of every kind, most of level 1, where the fewest different images exist."""
    drawn = [scene(split, 0, index, levels=(0.8, 0.1, 0.1)) for index in range(1500)]
    return drawn + [one.twin for one in drawn if one.twin is not None]


@cache
def images(split):
    return {render(one, 32).tobytes() for one in sample(split)}


@pytest.mark.slow
@pytest.mark.parametrize("one", SPLITS)
def test_no_image_is_in_two_splits(one):
    for two in SPLITS:
        if one != two:
            assert not images(one) & images(two), (one, two)


def test_the_check_would_see_shared_images():
    twice = {render(scene("train", 7, index, "pattern", 1), 32).tobytes() for index in range(3000)}
    assert twice & {render(scene("train", 8, index, "pattern", 1), 32).tobytes() for index in range(3000)}


def test_different_content_looks_different():
    drawn = {one.content: one for one in sample("train")}
    assert len({render(one, 32).tobytes() for one in drawn.values()}) == len(drawn)


def test_held_out_combinations_appear_in_composition_only():
    for split in ("train", "components", "test"):
        for one in sample(split):
            assert not any((item.colour, item.shape) in HELD_PAIRS for item in one.items)
            assert not any((item.colour, item.ry * 2 // 8) in HELD_BARS for item in one.items if item.shape == "bar")
            assert not any(held_word(item.text) for item in one.items if item.shape == "word")
            shapes = [item.shape for item in one.items]
            assert not any((s, shapes.count(s)) in HELD_COUNTS for s in shapes)
    for index in range(1000):
        one = scene("composition", 0, index)
        assert held_out(one) and (one.twin is None or held_out(one.twin))


def test_every_single_value_is_seen_in_training():
    observed = {value for one in sample("train") for item in one.items for value in (item.colour, item.shape, *item.text)}
    observed |= {one.answer for one in sample("train")}
    requested = {value for pair in HELD_PAIRS for value in pair} | {str(n) for _, n in HELD_COUNTS | HELD_BARS}
    assert requested <= observed


def test_a_scene_depends_on_its_key_alone():
    assert scene("train", 0, 5) == scene("train", 0, 5)
    assert len({scene("train", seed, index).content for seed in range(3) for index in range(20)}) > 55
