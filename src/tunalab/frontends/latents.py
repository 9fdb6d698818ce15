"""A frozen VAE as a map between RGB images and latents of about unit variance.

Shapes: B images, H W pixels, C latent channels, h w latent cells, F fold * fold * 3 channels of a folded image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tunalab.errors import UserError


class LatentCodec(nn.Module):
    """Encodes to the posterior's mean, normalised per channel by stored statistics; decoding undoes both.

    ``sampled``: whether training sees a draw from the posterior instead, for which it gives :meth:`encode` the noise.
    ``fold`` > 1 folds blocks of fold x fold pixels into channels before the VAE (Wan 2.2 does so inside its own).
    """

    mean_C: Tensor
    std_C: Tensor
    sampled = False

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

    def encode(self, image_BCHW: Tensor, noise_BChw: Tensor | None = None) -> Tensor:
        """RGB in [-1, 1], (B, 3, H, W), to normalised latents (B, C, H / stride, W / stride).

        ``noise_BChw``, standard normal: the posterior's draw mean + deviation * noise takes the place of its mean.
        """
        folded_BFHW = F.pixel_unshuffle(image_BCHW, self.fold) if self.fold > 1 else image_BCHW
        posterior = self.vae.encode(folded_BFHW[:, :, None] if self.video else folded_BFHW).latent_dist  # type: ignore[operator]
        z_BChw = posterior.mode()[:, :, 0] if self.video else posterior.mode()
        if noise_BChw is not None:
            z_BChw = z_BChw + (posterior.std[:, :, 0] if self.video else posterior.std) * noise_BChw
        return (z_BChw - self.mean_C[:, None, None]) / self.std_C[:, None, None]

    def decode(self, x_BChw: Tensor) -> Tensor:
        """Normalised latents to RGB (B, 3, H, W), not clamped."""
        z_BChw = x_BChw * self.std_C[:, None, None] + self.mean_C[:, None, None]
        decoded = self.vae.decode(z_BChw[:, :, None] if self.video else z_BChw).sample  # type: ignore[operator]
        folded_BFHW = decoded[:, :, 0] if self.video else decoded
        return F.pixel_shuffle(folded_BFHW, self.fold) if self.fold > 1 else folded_BFHW

    def with_official_statistics(self) -> "LatentCodec":
        """The normalisation that the released Tuna checkpoint was trained with: its means are the deviations (its code says so).

        Doing it twice changes nothing.
        """
        self.mean_C.copy_(self.std_C)
        return self
