"""A frozen VAE as a map between RGB images and latents of about unit variance.

Shapes: B images, H W pixels, C latent channels, h w latent cells, F fold * fold * 3 channels of a folded image.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tunalab.errors import UserError
from tunalab.frontends.loading import read_json


class LatentCodec(nn.Module):
    """Deterministic: encodes to the posterior's mean, normalised per channel by stored statistics; decoding undoes both.

    ``fold`` > 1 folds blocks of fold x fold pixels into channels before the VAE (Wan 2.2 does so inside its own).
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(
        self, vae: nn.Module, channels: int, stride: int, mean: Sequence[float], std: Sequence[float], fold: int = 1
    ) -> None:
        """``stride``: image pixels per latent cell along a side. Raises UserError when the statistics do not fit."""
        super().__init__()
        if len(mean) != channels or len(std) != channels or not all(s > 0 for s in std):
            raise UserError(f"vae has {channels} latent channels, but statistics of {len(mean)} means and {len(std)} deviations")
        self.vae = vae
        self.channels = channels
        self.stride = stride
        self.fold = fold
        self.register_buffer("mean_C", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std_C", torch.tensor(std, dtype=torch.float32))
        # A video VAE takes a time axis; an image is a video of one frame.
        self.video = hasattr(getattr(vae, "config", None), "temperal_downsample")

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """RGB in [-1, 1], (B, 3, H, W), to normalised latents (B, C, H / stride, W / stride)."""
        folded_BFHW = F.pixel_unshuffle(image_BCHW, self.fold) if self.fold > 1 else image_BCHW
        posterior = self.vae.encode(folded_BFHW[:, :, None] if self.video else folded_BFHW).latent_dist  # type: ignore[operator]
        z_BChw = posterior.mode()[:, :, 0] if self.video else posterior.mode()
        return (z_BChw - self.mean_C[:, None, None]) / self.std_C[:, None, None]

    def decode(self, x_BChw: Tensor) -> Tensor:
        """Normalised latents to RGB (B, 3, H, W), not clamped."""
        z_BChw = x_BChw * self.std_C[:, None, None] + self.mean_C[:, None, None]
        decoded = self.vae.decode(z_BChw[:, :, None] if self.video else z_BChw).sample  # type: ignore[operator]
        folded_BFHW = decoded[:, :, 0] if self.video else decoded
        return F.pixel_shuffle(folded_BFHW, self.fold) if self.fold > 1 else folded_BFHW


def load_diffusers_vae(folder: Path) -> LatentCodec:
    """A VAE saved by diffusers (AutoencoderKL or AutoencoderKLWan), with the statistics of its config.

    Raises UserError: no such folder, another class, or weights that do not match the architecture (both sides listed).
    """
    import diffusers

    plain = read_json(folder / "config.json", f"vae folder {folder}")
    classes = {"AutoencoderKL": diffusers.AutoencoderKL, "AutoencoderKLWan": diffusers.AutoencoderKLWan}
    name = plain.get("_class_name")
    if name not in classes:
        raise UserError(f"vae in {folder} is a {name} (choices: {', '.join(classes)})")
    meta = torch.get_default_device().type == "meta"
    try:
        if meta:
            vae, report = classes[name].from_config(plain), {}
        else:
            vae, report = classes[name].from_pretrained(str(folder), output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"vae in {folder} does not load: {str(error).splitlines()[0]}") from error
    unmatched = {side: names for side, names in report.items() if names}
    if unmatched:
        raise UserError(f"vae in {folder} does not load: " + "; ".join(f"{k}: {list(v)[:8]}" for k, v in unmatched.items()))
    config = vae.config
    if name == "AutoencoderKLWan":
        channels, stride = config.z_dim, config.scale_factor_spatial
    else:
        channels, stride = config.latent_channels, 2 ** (len(config.block_out_channels) - 1)
    # A plain AutoencoderKL states one scale and shift for all channels.
    mean = config.latents_mean or [config.get("shift_factor") or 0.0] * channels
    std = config.latents_std or [1.0 / config.get("scaling_factor", 1.0)] * channels
    return LatentCodec(vae, channels, stride, mean, std)
