"""Verdicts on edits made by hand: done, not done, done with damage elsewhere; and noise."""

import numpy as np
import pytest

from tunalab.data.scenes.corpus import EDITS
from tunalab.evaluation.editing import MOST_DB, changed, edits, judged, outside_db

COUNT = 6


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("size", [32, 64])
def test_the_target_is_a_success_and_the_source_is_none(name, size):
    requests = edits(name, [1, 2], COUNT, size)
    done = judged(requests, np.stack([edit.target_HWC for edit in requests]))
    assert all(verdict.success for verdict in done) and {verdict.outside_db for verdict in done} == {MOST_DB}
    untouched = judged(requests, np.stack([edit.source_HWC for edit in requests]))
    assert not any(verdict.happened for verdict in untouched)
    assert all(verdict.kept for verdict in untouched) and {verdict.outside_db for verdict in untouched} == {MOST_DB}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_another_scene_and_noise_are_no_success(name):
    requests = edits(name, [1], COUNT, 32)
    others = judged(requests, np.roll(np.stack([edit.target_HWC for edit in requests]), 1, axis=0))
    noise = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    for verdicts in (others, judged(requests, noise)):
        assert not any(verdict.success for verdict in verdicts)
        assert all(verdict.outside_db < 30 for verdict in verdicts)


def test_damage_elsewhere_is_seen_where_it_is():
    """The edit is done, and a corner that it does not touch is painted over."""
    for edit in edits("recolour", [1], COUNT, 32):
        damaged_HWC = edit.target_HWC.copy()
        corner = next(
            (rows, columns)
            for rows in (slice(0, 12), slice(20, 32))
            for columns in (slice(0, 12), slice(20, 32))
            if not changed(edit.source_HWC, edit.target_HWC)[rows, columns].any()
        )
        damaged_HWC[corner] = (250, 0, 250)
        (verdict,) = judged([edit], damaged_HWC[None])
        assert not verdict.kept and not verdict.success and verdict.outside_db < 25


def test_what_goes_wrong_in_the_edited_place_does_not_count_as_damage_elsewhere():
    """The thing that should change becomes something else than asked for: not happened, but the rest is kept."""
    requests = edits("recolour", [1], 2 * COUNT, 32)
    wrong_NHWC = np.stack([edit.target_HWC for edit in requests])
    for edit, wrong_HWC in zip(requests, wrong_NHWC, strict=True):
        wrong_HWC[changed(edit.source_HWC, edit.target_HWC)] = edit.source_HWC[0, 0]  # gone instead of recoloured, nearly
    verdicts = judged(requests, wrong_NHWC)
    assert not any(verdict.happened or verdict.success for verdict in verdicts)
    assert sum(verdict.kept for verdict in verdicts) >= len(requests) - 2  # a corner pixel may be part of another thing


def test_psnr_outside_counts_nothing_inside():
    (edit,) = edits("recolour", [1], 1, 32)
    region_HW = changed(edit.source_HWC, edit.target_HWC)
    assert 0 < region_HW.sum() < region_HW.size
    inside_HWC = np.where(region_HW[:, :, None], 0, edit.target_HWC).astype(np.uint8)
    assert outside_db(inside_HWC, edit.source_HWC, edit.target_HWC) == MOST_DB
    off_HWC = np.where(region_HW[:, :, None], edit.target_HWC, edit.target_HWC ^ 16).astype(np.uint8)
    assert outside_db(off_HWC, edit.source_HWC, edit.target_HWC) == pytest.approx(20 * np.log10(255 / 16), abs=1e-6)


def test_edits_are_the_same_every_time_and_of_one_type():
    for name, words in {"remove": "remove the", "add": "add a", "move": "move the"}.items():
        made = edits(name, [1], 3, 32)
        assert all(edit.instruction.startswith(words) for edit in made)
        assert [edit.instruction for edit in made] == [edit.instruction for edit in edits(name, [1], 3, 32)]
