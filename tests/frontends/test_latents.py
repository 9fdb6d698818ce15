"""The statistics of a latent codec."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from tests.tolerances import assert_sums_close
from torch import nn

from tunalab.errors import UserError
from tunalab.frontends.vae import LatentCodec, psnr


def test_statistics_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="4 latent channels"):
        LatentCodec(nn.Identity(), 4, 8, [0.0] * 3, [1.0] * 4)
    with pytest.raises(UserError, match="deviations"):
        LatentCodec(nn.Identity(), 2, 8, [0.0] * 2, [1.0, 0.0])


@pytest.mark.parametrize("video", [False, True])
def test_a_draw_of_the_posterior_is_normalised_as_its_mean(video: bool) -> None:
    """x = (mean + deviation * noise - channel's mean) / channel's deviation."""
    mean, log_variance, noise = torch.randn(3, 1, 2, 4, 4)

    class Encoder(nn.Module):
        config = SimpleNamespace(temperal_downsample=[True]) if video else None

        def encode(self, image: torch.Tensor) -> SimpleNamespace:
            assert image.ndim == 4 + video
            parameters = torch.cat([mean, log_variance], dim=1)
            return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(parameters[:, :, None] if video else parameters))

    codec = LatentCodec(Encoder(), 2, 8, [0.1, 0.2], [0.5, 2.0])
    shift, scale = torch.tensor([0.1, 0.2])[:, None, None], torch.tensor([0.5, 2.0])[:, None, None]
    image_BCHW = torch.zeros(1, 3, 32, 32)
    torch.testing.assert_close(codec.encode(image_BCHW), (mean - shift) / scale)
    drawn = mean + (log_variance / 2).exp() * noise
    torch.testing.assert_close(codec.encode(image_BCHW, noise), (drawn - shift) / scale)


def test_the_official_statistics_are_deviations_twice() -> None:
    codec = LatentCodec(nn.Identity(), 2, 8, [0.1, 0.2], [0.5, 2.0])
    for _ in range(2):
        codec.with_official_statistics()
        torch.testing.assert_close(codec.mean_C, torch.tensor([0.5, 2.0]))
        torch.testing.assert_close(codec.std_C, torch.tensor([0.5, 2.0]))


def test_psnr_in_closed_form() -> None:
    target_BCHW = torch.zeros(3, 3, 4, 4)
    output_BCHW = target_BCHW + torch.tensor([0.1, 5.0, 0.0])[:, None, None, None]  # the second is clamped to 1
    expected = [10 * math.log10(4 / 0.01), 10 * math.log10(4), 10 * math.log10(4 / 1e-10)]
    assert psnr(output_BCHW, target_BCHW).tolist() == pytest.approx(
        expected, abs=1e-4
    )  # 48 squares: 5e-5 dB; a logarithm of 106 dB: 1e-5


def test_one_value_an_image() -> None:
    output_BCHW, target_BCHW = torch.rand(2, 5, 3, 8, 8) * 2 - 1
    together = psnr(output_BCHW, target_BCHW)
    assert together.shape == (5,)
    assert_sums_close(psnr(output_BCHW[1:2], target_BCHW[1:2])[0], together[1], 3 * 8 * 8)
