"""The tiny VAE's linear start, its statistics, and its quality measure.

Shapes: B images, C latent channels, H W pixels, h w latent cells, F channels of folded pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tunalab.errors import UserError
from tunalab.frontends.components.training import to_tensor
from tunalab.frontends.components.vae import VaeConfig, architecture, codec, start_at_principal_components, train_vae
from tunalab.frontends.vae import LatentCodec

CONFIG = VaeConfig(latent_channels=4, width=16, steps=2, batch=4, start_images=256, held_out=16)


def gradients(
    split: str, seed: int, count: int, image_size: int, kinds: Sequence[str] = (), short: float = 0
) -> tuple[np.ndarray, list[str]]:
    """Smooth images: linear in row and column per colour, so cells of 8x8 pixels have few principal components."""
    rng = np.random.default_rng([seed, *split.encode()])
    ramp = np.linspace(-1, 1, image_size)
    slopes = rng.uniform(-40, 40, (count, 2, 1, 1, 3))
    level = rng.uniform(100, 150, (count, 1, 1, 3))
    images = level + slopes[:, 0] * ramp[:, None, None] + slopes[:, 1] * ramp[None, :, None]
    return images.astype(np.uint8), [str(i) for i in range(count)]


def test_the_start_is_the_best_linear_codec() -> None:
    torch.manual_seed(0)
    image_BCHW = to_tensor(gradients("components", 0, 64, 32)[0])
    folded_BFhw = F.pixel_unshuffle(image_BCHW, 8)
    vae = architecture(CONFIG)
    start_at_principal_components(vae, folded_BFhw)
    samples_SF = folded_BFhw.permute(0, 2, 3, 1).flatten(0, 2)
    mean_F = samples_SF.mean(dim=0)
    components_CF = torch.linalg.svd(samples_SF - mean_F, full_matrices=False)[2][:4]
    expected_SF = (samples_SF - mean_F) @ components_CF.T @ components_CF + mean_F
    start = codec(CONFIG, vae, [0.0] * 4, [1.0] * 4)
    with torch.no_grad():
        z_BChw = start.encode(image_BCHW)
        decoded_SF = F.pixel_unshuffle(start.decode(z_BChw), 8).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(decoded_SF, expected_SF, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(z_BChw.square().mean(dim=(0, 2, 3)), torch.ones(4), rtol=1e-3, atol=1e-3)


def trained_vae(folder: Path) -> tuple[LatentCodec, dict[str, Any]]:
    kept: list[tuple[LatentCodec, dict[str, Any]]] = []
    train_vae(CONFIG, gradients, lambda codec, record: kept.append((codec, record)), folder / "state", lambda steps: steps)
    return kept[0][0], kept[0][1]["quality"]


def test_latents_have_unit_variance_and_training_starts_above_nothing(tmp_path: Path) -> None:
    trained, quality = trained_vae(tmp_path)
    with torch.no_grad():
        x_BChw = trained.encode(to_tensor(gradients("components", 5, 256, 32)[0]))
    torch.testing.assert_close(x_BChw.std(dim=(0, 2, 3)), torch.ones(4), rtol=0.2, atol=0)
    assert x_BChw.mean(dim=(0, 2, 3)).abs().max() < 0.3
    assert quality["psnr_db"] > 25 and quality["n"] == 16
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_training_does_not_touch_the_global_random_state_and_repeats(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, _ = trained_vae(tmp_path)
    assert torch.equal(torch.rand(1), expected)
    second, _ = trained_vae(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_too_narrow_a_network_is_refused() -> None:
    with pytest.raises(UserError, match="width=16"):
        VaeConfig(width=16, latent_channels=16)
