"""Rotations of the flow head: they keep lengths, and dot products see relative positions only."""

import math

import pytest
import torch
from tests.tolerances import assert_sums_close

from tunalab.model.flow_head import RotaryTables, axis_sizes, image_frequencies, rotary_tables, text_frequencies

D = 64
TERMS = D + 300  # an angle of at most 300 is off by as many roundings


def text_tables(positions: list[int], d: int = D) -> RotaryTables:
    position = torch.tensor([positions])
    return rotary_tables(position, torch.zeros_like(position, dtype=torch.bool), torch.full_like(position, -1), 1, d)


def image_tables(patches: list[int], columns: int, positions: list[int] | None = None, d: int = D) -> RotaryTables:
    patch = torch.tensor([patches])
    position = torch.tensor([positions or list(range(5, 5 + len(patches)))])
    return rotary_tables(position, torch.ones_like(patch, dtype=torch.bool), patch, columns, d)


def vectors(count: int, seed: int, d: int = D) -> torch.Tensor:
    return torch.randn((1, 2, 1, d), generator=torch.Generator().manual_seed(seed)).expand(1, 2, count, d)


def dots(tables: RotaryTables, count: int, d: int = D) -> torch.Tensor:
    """Products of one rotated query and one rotated key at every pair of places, (heads, places, places)."""
    q, k = tables.rotate(vectors(count, 0, d)), tables.rotate(vectors(count, 1, d))
    return (q @ k.transpose(-1, -2))[0]


@pytest.mark.parametrize("d", [16, 32, 64])
def test_lengths_are_kept(d: int) -> None:
    for tables, count in ((text_tables([0, 1, 7, 300], d), 4), (image_tables([0, 5, 11], 4, d=d), 3)):
        x = vectors(count, 0, d)
        assert_sums_close(tables.rotate(x).norm(dim=-1), x.norm(dim=-1), TERMS)
        assert not torch.allclose(tables.rotate(x)[:, :, -1], x[:, :, -1])


def test_text_products_depend_on_the_distance() -> None:
    positions = [0, 3, 10, 13, 40, 43]
    products = dots(text_tables(positions), 6)
    for pair in ((2, 3), (4, 5)):
        assert_sums_close(products[:, pair[0], pair[1]], products[:, 0, 1], TERMS)
        assert_sums_close(products[:, pair[1], pair[0]], products[:, 1, 0], TERMS)
    assert (products[:, 0, 1] - products[:, 0, 2]).abs().min() > 1e-2
    assert (products[:, 0, 1] - products[:, 1, 0]).abs().min() > 1e-2, "and on its sign"


def test_image_products_depend_on_the_distance_in_rows_and_columns() -> None:
    columns = 5
    places = [(0, 0), (1, 2), (2, 1), (3, 3), (2, 1), (1, 3)]
    products = dots(image_tables([row * columns + column for row, column in places], columns), 6)
    assert_sums_close(products[:, 0, 1], products[:, 2, 3], TERMS)  # (1, 2) apart
    assert (products[:, 0, 1] - products[:, 0, 2]).abs().min() > 1e-2  # (2, 1) apart
    assert (products[:, 4, 5] - products[:, 0, 1]).abs().min() > 1e-2  # (-1, 2) apart


def test_each_axis_turns_dimensions_of_its_own() -> None:
    columns, (time, row, _) = 4, axis_sizes(D)
    assert axis_sizes(64) == (16, 24, 24) and sum(axis_sizes(32)) == 32
    rotated = image_tables([0, 1, columns], columns).rotate(vectors(3, 0))[0, 0]
    same = vectors(3, 0)[0, 0]
    torch.testing.assert_close(rotated[0], same[0])  # the first patch is the origin
    moved = (rotated - same).abs() > 1e-3
    assert not moved[1, : time + row].any() and moved[1, time + row :].any()  # a step to the right
    assert not moved[2, :time].any() and moved[2, time : time + row].any() and not moved[2, time + row :].any()  # one down


def test_image_positions_ignore_where_the_image_stands() -> None:
    """Source and target of an edit share their coordinates."""
    x = vectors(4, 0)
    a = image_tables([0, 1, 2, 3], 2, [5, 6, 7, 8]).rotate(x)
    assert torch.equal(a, image_tables([0, 1, 2, 3], 2, [70, 71, 72, 73]).rotate(x))


def test_time_slots_are_not_rotated_and_text_not_by_image_tables() -> None:
    position, is_image = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[False, True, True, False]])
    tables = rotary_tables(position, is_image, torch.tensor([[-1, -1, 1, -1]]), 2, D)
    x = vectors(4, 0)
    rotated = tables.rotate(x)
    assert torch.equal(rotated[:, :, 1], x[:, :, 1])
    torch.testing.assert_close(rotated[:, :, [0, 3]], text_tables([3, 6]).rotate(x[:, :, [0, 3]]))
    torch.testing.assert_close(rotated[:, :, [2]], image_tables([1], 2).rotate(x[:, :, [2]]))


def test_directions_and_pairs_in_numbers() -> None:
    x = torch.zeros((1, 1, 1, D))
    x[..., 0] = 1
    text = text_tables([1]).rotate(x)[0, 0, 0]
    assert text[0].item() == pytest.approx(math.cos(1)) and text[D // 2].item() == pytest.approx(math.sin(1))
    x = torch.zeros((1, 1, 1, D))
    x[..., 40] = 1  # the first dimension of the columns
    image = image_tables([1], 4).rotate(x)[0, 0, 0]
    assert image[40].item() == pytest.approx(math.cos(1)) and image[41].item() == pytest.approx(-math.sin(1))


def test_low_frequencies_of_text_are_stretched() -> None:
    scaled, plain = text_frequencies(D, torch.device("cpu")), 5e5 ** (-torch.arange(0, D, 2) / D)
    wavelength = 2 * math.pi / plain
    torch.testing.assert_close(scaled[wavelength < 8192 / 4], plain[wavelength < 8192 / 4])
    torch.testing.assert_close(scaled[wavelength > 8192], plain[wavelength > 8192] / 32)
    between = (wavelength > 8192 / 4) & (wavelength < 8192)
    assert between.any() and (scaled[between] < plain[between]).all() and (scaled[between] > plain[between] / 32).all()
    assert image_frequencies(24, torch.device("cpu"))[[0, -1]].tolist() == pytest.approx([1.0, 1e4 ** (-22 / 24)])


def test_low_precision_comes_back_in_its_type() -> None:
    assert text_tables([1, 2]).rotate(vectors(2, 0).bfloat16()).dtype == torch.bfloat16
