import numpy as np
import pytest
from matplotlib import colormaps

from tunalab.inference.attention import draw_map, enlarged, outlined, overlay


def test_half_of_an_overlay_is_the_image_and_half_the_colour_of_the_map():
    image = np.full((8, 8, 3), (200, 100, 50), dtype=np.uint8)
    for value in (0.0, 0.5, 1.0):
        expected = 0.5 * np.array([200, 100, 50]) + 0.5 * 255 * np.array(colormaps["jet"](value)[:3])
        np.testing.assert_allclose(overlay(image, np.full((2, 2), value)), np.broadcast_to(expected, (8, 8, 3)), atol=0.5)


def test_the_map_is_enlarged_bilinearly():
    black = np.zeros((4, 8, 3), dtype=np.uint8)
    red = overlay(black, np.array([[0.0, 1.0]]))
    assert (red == red[:1]).all(), "rows are alike"
    between = 0.5 * 255 * np.array(colormaps["jet"](np.array([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]))[:, :3])
    np.testing.assert_allclose(red[0], between, atol=0.5)


@pytest.mark.parametrize(("height", "width", "grid"), [(32, 32, (4, 4)), (16, 32, (2, 4)), (400, 300, (4, 3))])
def test_the_greatest_weight_is_where_its_token_is(height, width, grid):
    rows, columns = grid
    for token in range(rows * columns):
        map_T = np.full(rows * columns, 0.1)
        map_T[token] = 0.2
        drawn = draw_map(np.zeros((height, width, 3), dtype=np.uint8), map_T, grid)
        scale = drawn.shape[0] / height
        assert drawn.shape == (height * scale, width * scale, 3)
        row, column = divmod(token, columns)
        cells = drawn.reshape(rows, drawn.shape[0] // rows, columns, drawn.shape[1] // columns, 3).mean(axis=(1, 3))
        warm = cells[..., 0] - cells[..., 2]
        assert np.unravel_index(warm.argmax(), warm.shape) == (row, column)


def test_a_constant_map_prefers_no_place():
    drawn = draw_map(np.zeros((32, 32, 3), dtype=np.uint8), np.full(16, 0.3), (4, 4))
    assert (drawn == drawn[0, 0]).all()


def test_small_images_are_enlarged_and_large_ones_left():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (enlarged(image)[::96, ::96] == image).all() and enlarged(image).shape == (192, 192, 3)
    assert enlarged(np.zeros((32, 32), dtype=bool)).shape == (192, 192)
    assert enlarged(np.zeros((500, 300, 3), dtype=np.uint8)).shape == (500, 300, 3)


def test_an_outline_leaves_what_is_in_and_around_it():
    image = np.full((20, 20, 3), 77, dtype=np.uint8)
    mask = np.zeros((20, 20), dtype=bool)
    mask[4:16, 4:16] = True
    drawn = outlined(image, mask)
    assert (drawn[~mask] == 77).all() and (drawn[8:12, 8:12] == 77).all()
    assert (drawn[4, 4:16] == 255).all() and (drawn[6, 6:14] == 0).all()
    assert (image == 77).all()
