"""VAEs of diffusers by folder or name: what diffusers computes, their published normalisation, and what is refused.

Shapes: B images, C latent channels, h w latent cells.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins import WIDTH
from tests.checkpoints import edit_json, edit_weights, save_kl, save_wan, truncate

from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.frontends.registry import build_frontend
from tunalab.frontends.vae import PUBLISHED, LatentCodec, pretrained_vae
from tunalab.settings.schema import FrontEndConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
WAN_2_1 = {"z_dim": 16, "dim_mult": [1, 1, 1, 1], "temperal_downsample": [False, True, True]}
WAN_2_2 = {
    **WAN_2_1,
    "z_dim": 48,
    "in_channels": 12,
    "out_channels": 12,
    "is_residual": True,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.01 * c for c in range(48)],
    "latents_std": [0.5 + 0.01 * c for c in range(48)],
}
FLUX = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}
SD = {"scaling_factor": 0.18215}
# In float64, but for the statistics, which are kept in float32; decoding undoes them.
STORED, EXACT = {"rtol": 1e-6, "atol": 1e-6}, {"rtol": 1e-9, "atol": 1e-9}


def picture(width: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, 32, width, generator=torch.Generator().manual_seed(0)).double() * 2 - 1


SQUARE_AND_WIDE = pytest.mark.parametrize("width", [32, 48])


@pytest.mark.parametrize(("published", "shift", "scale"), [(FLUX, 0.1159, 0.3611), (SD, 0.0, 0.18215)], ids=["flux", "sd"])
@SQUARE_AND_WIDE
@torch.no_grad()
def test_autoencoder_kl(published: dict[str, Any], shift: float, scale: float, width: int, tmp_path: Path) -> None:
    vae = save_kl(tmp_path, **published).double()
    codec = pretrained_vae(str(tmp_path)).double()
    assert (codec.channels, codec.stride) == (4, 2)
    z_BChw = vae.encode(picture(width)).latent_dist.mode()
    x_BChw = codec.encode(picture(width))
    torch.testing.assert_close(x_BChw, (z_BChw - shift) * scale, **STORED)
    torch.testing.assert_close(codec.decode(x_BChw), vae.decode(z_BChw).sample, **EXACT)


@torch.no_grad()
def test_statistics_by_channel_come_before_the_scale(tmp_path: Path) -> None:
    mean, std = [-1.7, 1.9, -1.4, 2.5], [8.5, 5.9, 6.5, 5.2]
    vae = save_kl(tmp_path, scaling_factor=0.5, latents_mean=mean, latents_std=std).double()
    z_BChw = vae.encode(picture()).latent_dist.mode()
    expected = (z_BChw - torch.tensor(mean)[:, None, None]) * 0.5 / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(pretrained_vae(str(tmp_path)).double().encode(picture()), expected, **STORED)


@pytest.mark.parametrize(("sizes", "channels", "stride"), [(WAN_2_1, 16, 8), (WAN_2_2, 48, 16)], ids=["wan2.1", "wan2.2"])
@SQUARE_AND_WIDE
@torch.no_grad()
def test_wan_takes_an_image_as_a_video_of_one_frame(
    sizes: dict[str, Any], channels: int, stride: int, width: int, tmp_path: Path
) -> None:
    vae = save_wan(tmp_path, **sizes).double()
    codec = pretrained_vae(str(tmp_path)).double()
    assert (codec.channels, codec.stride) == (channels, stride)
    x_BChw = codec.encode(picture(width))
    assert x_BChw.shape == (2, channels, 32 // stride, width // stride)
    z_BChw = vae.encode(picture(width)[:, :, None]).latent_dist.mode()[:, :, 0]
    mean, std = (torch.tensor(getattr(vae.config, name))[:, None, None] for name in ("latents_mean", "latents_std"))
    torch.testing.assert_close(x_BChw, (z_BChw - mean) / std, **STORED)
    decoded = vae.decode(z_BChw[:, :, None]).sample[:, :, 0]
    torch.testing.assert_close(codec.decode(x_BChw), decoded, **EXACT)


def test_statistics_are_a_setting_of_the_front_end(tmp_path: Path) -> None:
    save_wan(tmp_path, **WAN_2_2)
    means = {}
    for statistics in ("published", "official"):
        config = FrontEndConfig(
            name="vae_siglip", patch=1, vae=str(tmp_path), vae_statistics=statistics, encoder="tiny", encoder_pretrained=False
        )
        codec = build_frontend(config, WIDTH, 32, Components()).get_submodule("vae")
        assert isinstance(codec, LatentCodec)
        means[statistics] = codec.mean_C
    torch.testing.assert_close(means["published"], torch.tensor(WAN_2_2["latents_mean"]))
    torch.testing.assert_close(means["official"], torch.tensor(WAN_2_2["latents_std"]))


# What the released files hold, in all.
@pytest.mark.parametrize(
    ("name", "channels", "stride", "parameters"),
    [
        ("Wan-AI/Wan2.2-TI2V-5B-Diffusers/vae", 48, 16, 704_688_668),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae", 16, 8, 126_892_531),
        ("black-forest-labs/FLUX.1-dev/vae", 16, 8, 83_819_683),
        ("stabilityai/sd-vae-ft-mse", 4, 8, 83_653_863),
    ],
)
def test_published_architectures_need_no_file(name: str, channels: int, stride: int, parameters: int) -> None:
    assert name in PUBLISHED
    with torch.device("meta"):
        codec = pretrained_vae(name)
        assert codec.encode(torch.empty(1, 3, 32, 32)).shape == (1, channels, 32 // stride, 32 // stride)
    assert (codec.channels, codec.stride) == (channels, stride)
    assert sum(p.numel() for p in codec.parameters()) == parameters


def refusal(given: Path | str) -> str:
    with pytest.raises(UserError) as raised:
        pretrained_vae(str(given))
    assert "\n" not in str(raised.value) and f"frontend.vae={given}" in str(raised.value)
    return str(raised.value)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    save_kl(tmp_path)
    edit_weights(tmp_path / WEIGHTS, **{"alien": torch.zeros(1), "decoder.conv_out.bias": None})
    assert "1 missing: decoder.conv_out.bias; 1 unexpected: alien" in refusal(tmp_path)
    save_kl(tmp_path)
    edit_json(tmp_path / "config.json", latent_channels=5)
    message = refusal(tmp_path)
    assert "of another shape: " in message and "(8, 4, 3, 3) for (8, 5, 3, 3)" in message


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    save_kl(tmp_path)
    edit_weights(tmp_path / WEIGHTS, **{"encoder.conv_in.bias": torch.full((8,), float("inf"))})
    assert "'encoder.conv_in.bias' holds values that are not finite" in refusal(tmp_path)
    truncate(tmp_path / WEIGHTS)
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save({}, tmp_path / "diffusion_pytorch_model.bin")
    assert "cannot be read" in refusal(tmp_path), "a pickle is no way round a missing file"
    (tmp_path / "config.json").write_text('{"_class_name"')
    assert "is damaged" in refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    assert "is a UNet2DModel (choices: AutoencoderKL, AutoencoderKLWan)" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "config.json is missing" in refusal(tmp_path)


def test_a_stride_that_the_layers_do_not_have_is_refused(tmp_path: Path) -> None:
    save_wan(tmp_path, scale_factor_spatial=8)
    assert "scale_factor_spatial=8, but its layers reduce by 2" in refusal(tmp_path)


def test_names_without_a_vae_are_refused() -> None:
    assert "not in the local cache" in refusal("some/where")
    assert "neither a folder nor OWNER/NAME on the Hub" in refusal("./nowhere")
