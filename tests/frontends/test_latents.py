"""Real VAEs by folder: statistics of their configuration, video VAEs on single images, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from torch import nn

from tunalab.errors import UserError
from tunalab.frontends.latents import LatentCodec, load_diffusers_vae


def small_kl() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    )


def test_autoencoder_kl(tmp_path: Path) -> None:
    vae = small_kl().eval()
    vae.save_pretrained(tmp_path)
    codec = load_diffusers_vae(tmp_path)
    assert (codec.channels, codec.stride) == (4, 2)
    image_BCHW = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        z_BChw = vae.encode(image_BCHW).latent_dist.mode()
        torch.testing.assert_close(codec.encode(image_BCHW), (z_BChw - 0.25) * 0.5)
        torch.testing.assert_close(codec.decode((z_BChw - 0.25) * 0.5), vae.decode(z_BChw).sample)


def test_wan_takes_an_image_as_a_video_of_one_frame(tmp_path: Path) -> None:
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, 0.2, 0.3, 0.4],
        latents_std=[1.0, 2.0, 3.0, 4.0],
        scale_factor_spatial=2,
    ).eval()
    vae.save_pretrained(tmp_path)
    codec = load_diffusers_vae(tmp_path)
    image_BCHW = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        x_BChw = codec.encode(image_BCHW)
        assert x_BChw.shape == (1, 4, 8, 8)
        z = vae.encode(image_BCHW[:, :, None]).latent_dist.mode()[:, :, 0]
        torch.testing.assert_close(x_BChw[:, 2], (z[:, 2] - 0.3) / 3)
        assert codec.decode(x_BChw).shape == image_BCHW.shape


def test_incomplete_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    small_kl().save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["alien"] = weights.pop("decoder.conv_out.bias")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing_keys.*decoder.conv_out.bias.*unexpected_keys.*alien"):
        load_diffusers_vae(tmp_path)


def test_folders_that_hold_no_vae_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.json is missing"):
        load_diffusers_vae(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name"')
    with pytest.raises(UserError, match="is damaged"):
        load_diffusers_vae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match="is a UNet2DModel .choices: AutoencoderKL, AutoencoderKLWan"):
        load_diffusers_vae(tmp_path)


def test_statistics_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="4 latent channels"):
        LatentCodec(nn.Identity(), 4, 8, [0.0] * 3, [1.0] * 4)
    with pytest.raises(UserError, match="deviations"):
        LatentCodec(nn.Identity(), 2, 8, [0.0] * 2, [1.0, 0.0])
