"""Rendering: geometry in unit coordinates, exact colours, masks that agree with the pixels."""

import numpy as np
import pytest

from tunalab.data.scenes import SCENE_KINDS, Item, Scene, masks, render, scene
from tunalab.data.scenes.vocabulary import RGB, SHAPES


def one_item(item, background="black"):
    return Scene("objects", 1, background, (item,), "", "", "", 1)


def supersampled(drawn, size, factor=16):
    """Slow reference: a large image averaged down."""
    large = render(drawn, size * factor).astype(np.float64)
    return large.reshape(size, factor, size, factor, 3).mean((1, 3))


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_small_images_equal_averaged_large_ones(kind):
    for index in range(4):
        drawn = scene("train", 0, index, kind)
        for size in (32, 64):
            difference = np.abs(render(drawn, size) - supersampled(drawn, size))
            assert difference.mean() < 2.5 and difference.max() < 110, (kind, size)


def test_letters_are_covered_exactly():
    drawn = one_item(Item("word", "white", 30, 31, 23, 7, "QR?"))
    assert np.abs(render(drawn, 32) - supersampled(drawn, 32)).max() <= 1


def test_sizes_and_determinism():
    drawn = scene("train", 0, 0)
    for size in (16, 32, 48, 64):
        image_HWC = render(drawn, size)
        assert image_HWC.shape == (size, size, 3) and image_HWC.dtype == np.uint8
        assert (image_HWC == render(drawn, size)).all()


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_masks_lie_in_boxes_and_show_the_colour(kind):
    for level in (1, 3):
        for index in range(10):
            drawn = scene("train", 0, index, kind, level)
            image_HWC, masks_NHW = render(drawn, 64), masks(drawn, 64)
            assert (masks_NHW.sum(0) <= 1).all()
            for item, mask_HW in zip(drawn.items, masks_NHW, strict=True):
                rows, columns = np.nonzero(mask_HW)
                assert len(rows) > 10
                left, top, right, bottom = (64 * edge for edge in item.box)
                assert columns.min() >= left - 1 and columns.max() <= right and rows.min() >= top - 1
                assert rows.max() <= bottom
                median = np.median(image_HWC[mask_HW], axis=0)
                if not item.text:
                    assert np.abs(median - RGB[item.colour]).max() <= 12


def test_shapes_and_colours_can_be_told_apart_at_32_pixels():
    for size, radius in (("large", 14), ("small", 7)):
        centre = 16 if size == "large" else 8
        rendered = [render(one_item(Item(s, "white", centre, centre, radius, radius)), 32).astype(float) - 12 for s in SHAPES]
        ink = rendered[0].sum()
        for i, one in enumerate(rendered):
            for two in rendered[:i]:
                assert np.abs(one - two).sum() > 0.12 * ink
    values = np.array(list(RGB.values()), dtype=float)
    distance = np.linalg.norm(values[:, None] - values[None], axis=-1) + 1e3 * np.eye(len(values))
    assert distance.min() > 60
