"""Tuna's front-end: frozen VAE -> new patch embedding on its latents -> pretrained encoder blocks -> connector.

Shapes: B images, C latent channels, h w latent cells, N visual tokens, V encoder width, D decoder width.
"""

from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

from tunalab.frontends.encoder import EncoderFrontEnd
from tunalab.frontends.vae import LatentCodec, LatentFrontEnd
from tunalab.settings.schema import FrontEndConfig

if TYPE_CHECKING:
    from tunalab.frontends.components.store import Components
    from tunalab.frontends.encoder import TimmViT


class VaeSiglip(LatentFrontEnd, EncoderFrontEnd):
    """Generates in normalised VAE latents. The patch embedding is new, so it is trained with the connector."""

    connector_parts = ("patch_embedding", "connector")

    def __init__(self, vae: LatentCodec, vit: "TimmViT", width: int, config: FrontEndConfig) -> None:
        super().__init__(vae, width, config.patch)
        self.attach(vit, config)
        size, encoder_width = config.patch, self.encoder.width
        self.patch_embedding = nn.Conv2d(vae.channels, encoder_width, kernel_size=size, stride=size)
        # Xavier on the flattened kernel: a convolution without overlap is a linear map of the patch.
        nn.init.xavier_uniform_(self.patch_embedding.weight.view(encoder_width, -1))
        nn.init.zeros_(self.patch_embedding.bias)  # type: ignore[arg-type]
        self.connect(config)

    @classmethod
    def build(cls, config: FrontEndConfig, width: int, components: "Components") -> Self:
        # The VAE first: parts that are drawn at random are drawn in this order.
        vae = cls.codec(config, components)
        return cls(vae, components.encoder(config.encoder, config.encoder_pretrained), width, config)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.connected(x_BChw)
