"""Frozen VAE -> patch embedding on its latents: Tuna without the representation encoder, or Tuna-2 on latents.

With Tuna, Tuna-R and Tuna-2 it completes the 2 x 2 of VAE and encoder.

Shapes: B images, C latent channels, h w latent cells, N visual tokens, D decoder width.
"""

from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

from tunalab.frontends.contract import patchify
from tunalab.frontends.vae import LatentCodec, LatentFrontEnd
from tunalab.settings.schema import FrontEndConfig

if TYPE_CHECKING:
    from tunalab.frontends.components.store import Components


class VaePatchEmbed(LatentFrontEnd):
    """Generates in latents; what is trained is Tuna-2's linear map and norm, of a patch of latents instead of pixels."""

    def __init__(self, vae: LatentCodec, width: int, patch: int) -> None:
        super().__init__(vae, width, patch)
        self.projection = nn.Linear(self.space.token_dim, width)
        self.norm = nn.RMSNorm(width)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.freeze()

    @classmethod
    def build(cls, config: FrontEndConfig, width: int, components: "Components") -> Self:
        return cls(cls.codec(config, components), width, config.patch)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.norm(self.projection(patchify(x_BChw, self.space.patch)))
