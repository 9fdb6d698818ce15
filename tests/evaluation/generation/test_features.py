"""The stated features, and what is measured in them, against formulas and hand-made sets."""

import numpy as np
import pytest
import torch
from tests.tolerances import assert_sums_close

from tunalab.data.scenes import Scene, caption, render, scene
from tunalab.evaluation.generation.diversity import mean_distance, vendi
from tunalab.evaluation.generation.fidelity import LABELS, NETWORKS, features, features_by_prompt, frechet, jackknife, kernel
from tunalab.evaluation.generation.following import displaced, displaced_renders
from tunalab.evaluation.generation.prompts import DENSE, prompts
from tunalab.evaluation.parts import FEATURES


def renders(count: int, size: int = 32, first: int = 0) -> np.ndarray:
    return np.stack([render(scene("test", 0, index, "objects", 1), size) for index in range(first, first + count)])


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_features_are_fixed_finite_and_as_many_as_stated(name: str) -> None:
    images_NHWC = renders(5)
    found_ND = features(name, images_NHWC)
    assert found_ND.shape == (5, NETWORKS[name].num_features) and found_ND.dtype == torch.float64 and found_ND.isfinite().all()
    torch.manual_seed(7)  # whatever torch's own generator has drawn
    assert torch.equal(features(name, images_NHWC), found_ND)
    assert features(name, renders(2, 64)).shape == (2, NETWORKS[name].num_features)
    by_prompt_PSD = features_by_prompt(name, images_NHWC[:4].reshape(2, 2, 32, 32, 3))
    # Computed in float32: three layers of 3 x 3 pixels, at most 64 channels each.
    assert_sums_close(by_prompt_PSD.reshape(4, -1).float(), found_ND[:4].float(), 3 * 9 * 64)
    assert tuple(NETWORKS) == tuple(LABELS) == FEATURES


def test_the_network_stays_what_it_was() -> None:
    grey_NHWC = np.full((1, 32, 32, 3), 128, dtype=np.uint8)
    assert features("network", grey_NHWC).sum().item() == pytest.approx(0.405354, rel=1e-4)


def test_vendi_is_one_for_the_same_and_n_for_nothing_in_common() -> None:
    assert vendi(torch.ones(4, 6, dtype=torch.float64)) == pytest.approx(1)
    assert vendi(torch.eye(4, dtype=torch.float64)) == pytest.approx(4)
    pairs = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 3]], dtype=torch.float64)
    assert vendi(pairs) == pytest.approx(2)
    # Two rows at an angle: eigenvalues (1 +- cos) / 2.
    angle = torch.tensor([[1.0, 0], [0.6, 0.8]], dtype=torch.float64)
    assert vendi(angle) == pytest.approx(np.exp(-(0.8 * np.log(0.8) + 0.2 * np.log(0.2))))
    with pytest.raises(ValueError, match="zeros"):
        vendi(torch.zeros(2, 3))


def test_mean_distance_is_over_pairs() -> None:
    assert mean_distance(torch.tensor([[0.0, 0], [3, 4], [3, 4]])) == pytest.approx((5 + 5 + 0) / 3)


def test_frechet_of_normal_sets_is_the_formula() -> None:
    draws = torch.from_numpy(np.random.default_rng(0).standard_normal((4000, 3)))
    scaled = 2 * draws + torch.tensor([1.0, 0, 0])
    # Of the very same draws: the means differ by 1 (nearly), the deviations by a factor of 2.
    mean_gap = float((scaled.mean(0) - draws.mean(0)).square().sum())
    assert frechet(draws, scaled) == pytest.approx(mean_gap + float(draws.T.cov().trace()), rel=1e-3)
    assert frechet(draws, draws) == pytest.approx(0, abs=1e-6)


def test_kernel_is_the_unbiased_estimate_with_the_cubic_kernel() -> None:
    one, other = (torch.from_numpy(np.random.default_rng(seed).standard_normal((6, 4))) for seed in (0, 1))
    k = lambda a, b: (a @ b.T / 4 + 1) ** 3  # noqa: E731
    inside = [(k(x, x).sum() - k(x, x).trace()) / 30 for x in (one, other)]
    assert kernel(one, other) == pytest.approx(float(inside[0] + inside[1] - 2 * k(one, other).mean()))
    with pytest.raises(ValueError, match="6 and 5"):
        kernel(one, other[:5])


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_distances_grow_with_what_is_wrong(name: str) -> None:
    real_NHWC = renders(60)
    shifted_NHWC, red_NHWC = np.roll(real_NHWC, 2, axis=2), real_NHWC[..., [0, 0, 0]]
    found = [frechet(features(name, real_NHWC), features(name, one)) for one in (real_NHWC, shifted_NHWC, red_NHWC)]
    assert found == sorted(found) and found[0] < 0.01 < found[1]


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    draws = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 1, 1)))
    value, low, high = jackknife(lambda _, other: float(other.mean()), draws, draws)
    error = float(draws.std()) / 200**0.5
    assert value == pytest.approx(float(draws.mean())) and low is not None and high is not None
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.5) and low < value < high
    assert jackknife(frechet, draws[:5], draws[:5])[1:] == (None, None)


def test_displaced_scenes_have_the_caption_and_their_levels_freedom() -> None:
    for prompt in prompts(DENSE, "test", 6):
        scenes: list[Scene] = displaced(prompt.scene, 4)
        assert {caption(one) for one in scenes} == {prompt.text}
        assert (len({one.content for one in scenes}) == 1) == (prompt.scene.level == 1)
        assert displaced(prompt.scene, 4) == scenes
        assert prompt.scene.level == 1 or displaced(prompt.scene, 4, series=1) != scenes
    assert displaced_renders(prompts(DENSE, "test", 2), 3, 32).shape == (2, 3, 32, 32, 3)
