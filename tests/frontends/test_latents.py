"""The statistics of a latent codec."""

import pytest
import torch
from torch import nn

from tunalab.errors import UserError
from tunalab.frontends.latents import LatentCodec


def test_statistics_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="4 latent channels"):
        LatentCodec(nn.Identity(), 4, 8, [0.0] * 3, [1.0] * 4)
    with pytest.raises(UserError, match="deviations"):
        LatentCodec(nn.Identity(), 2, 8, [0.0] * 2, [1.0, 0.0])


def test_the_official_statistics_are_deviations_twice() -> None:
    codec = LatentCodec(nn.Identity(), 2, 8, [0.1, 0.2], [0.5, 2.0])
    for _ in range(2):
        codec.with_official_statistics()
        torch.testing.assert_close(codec.mean_C, torch.tensor([0.5, 2.0]))
        torch.testing.assert_close(codec.std_C, torch.tensor([0.5, 2.0]))
