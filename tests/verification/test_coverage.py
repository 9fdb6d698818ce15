"""What intervals say they cover, they cover: the same simulation as `tunalab verify coverage`, of fewer worlds."""

import numpy as np
import pytest

from tunalab.verification.coverage import (
    COVERED,
    OVER,
    SEEDS,
    SHAPES,
    SHARES,
    coverage,
    covered_encoders,
    crossing_sets,
    equivalence_errors,
    family_errors,
    laws_printed,
    tables,
)

WORLDS = 400
LEAST = 0.93 - 2 * np.sqrt(0.93 * 0.07 / WORLDS)  # .93 itself is below it in one of forty simulations


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("world", SHAPES, ids=lambda world: world.name)
def test_every_interval_covers_in_every_world(world, seeds):
    for kind in COVERED:
        assert coverage(kind, world, seeds, WORLDS) >= LEAST, kind


def test_seeds_alone_do_not_cover_where_arms_are_good_at_different_questions():
    """Why the error over questions is added: Student's t by itself is too narrow there."""
    world = next(one for one in SHAPES if one.arms > 1)
    generator, truth, inside = np.random.default_rng(0), np.subtract(*world.truth()), []
    for _ in range(WORLDS):
        gap_S = np.subtract(*world.answers(generator, 9).astype(float)).mean(axis=1)
        half = 2.306004 * gap_S.std(ddof=1) / 3
        inside.append(abs(gap_S.mean() - truth) <= half)
    assert np.mean(inside) < 0.88


@pytest.mark.parametrize("seeds", OVER)
@pytest.mark.parametrize("share", SHARES)
def test_seeds_that_share_encoders_speak_about_others_only_by_the_means_of_encoders(share, seeds):
    over_seeds, over_encoders = covered_encoders(share, seeds, WORLDS)
    assert over_encoders >= LEAST
    assert over_seeds >= LEAST if share == 0 else over_seeds < 0.95


@pytest.mark.parametrize("common", [False, True], ids=["each its own luck", "luck in common"])
def test_families_of_nothing_are_rarely_decided(common):
    worst = next(world for world in SHAPES if world.second > 1)
    holm, benjamini = family_errors(worst, 5, WORLDS, common)
    assert holm <= benjamini <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / WORLDS)
    assert equivalence_errors(5, WORLDS) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / WORLDS)


def test_the_page_names_every_interval_and_world():
    covers, encoders, decisions, close, passes, laws = tables(worlds=2)
    assert {(row[0], row[1]) for row in covers.rows} == {(kind, world.name) for kind in COVERED for world in SHAPES}
    assert len(encoders.rows) == len(OVER) * len(SHARES)
    assert len(decisions.rows) == 2 * (len(SHAPES) - 1) * len(SEEDS) and len(close.rows) == len(SEEDS)
    assert len(passes.rows) == len(laws.rows) == len(SEEDS)


def test_crossings_and_laws_are_rarely_seen_where_there_are_none():
    holds, _, wrong = crossing_sets(5, 100)
    assert holds >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / 100) and wrong <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 100)
    of_laws, of_logistic = laws_printed(5, 20)
    assert of_logistic <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 20) and of_laws > of_logistic
