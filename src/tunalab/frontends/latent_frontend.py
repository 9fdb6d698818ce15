"""What the front-ends that generate in VAE latents share: the frozen VAE on both ends.

Shapes: B images, C latent channels, h w latent cells.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from tunalab.config import FrontEndConfig
from tunalab.frontends.contract import TargetSpace, VisualFrontEnd
from tunalab.frontends.latents import LatentCodec

if TYPE_CHECKING:
    from tunalab.frontends.components.handle import Components


class LatentFrontEnd(VisualFrontEnd):
    """The target space is that of normalised latents, cut into ``patch`` x ``patch`` cells a token."""

    frozen_parts = ("vae",)

    def __init__(self, vae: LatentCodec, width: int, patch: int) -> None:
        super().__init__(TargetSpace(channels=vae.channels, stride=vae.stride, patch=patch), width)
        self.vae = vae

    @staticmethod
    def codec(config: FrontEndConfig, components: "Components") -> LatentCodec:
        """The VAE that a variant names, with the statistics it asks for."""
        vae = components.vae(config.vae)
        vae.sampled = config.vae_posterior == "sample"
        return vae.with_official_statistics() if config.vae_statistics == "official" else vae

    @property
    def sampled(self) -> bool:
        return self.vae.sampled

    def encode(self, image_BCHW: Tensor) -> Tensor:
        return self.vae.encode(image_BCHW)

    def draw(self, image_BCHW: Tensor, noise_BChw: Tensor) -> Tensor:
        return self.vae.encode(image_BCHW, noise_BChw)

    def decode(self, x_BChw: Tensor) -> Tensor:
        return self.vae.decode(x_BChw)
