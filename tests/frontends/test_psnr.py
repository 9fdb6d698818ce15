"""PSNR in closed form."""

import math

import pytest
import torch
from tests.tolerances import assert_sums_close

from tunalab.frontends.vae import psnr


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
