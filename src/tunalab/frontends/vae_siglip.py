"""Tuna's front-end: frozen VAE -> new patch embedding on its latents -> pretrained encoder blocks -> connector.

Shapes: B images, C latent channels, h w latent cells, N visual tokens, V encoder width, D decoder width.
"""

from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

from tunalab.frontends.encoder import FEATURE_LAYER, EncoderFrontEnd, RepresentationEncoder
from tunalab.frontends.vae import LatentCodec, LatentFrontEnd
from tunalab.settings.schema import FrontEndConfig

if TYPE_CHECKING:
    from tunalab.frontends.components.store import Components
    from tunalab.frontends.encoder import TimmViT


class VaeSiglip(LatentFrontEnd, EncoderFrontEnd):
    """Generates in normalised VAE latents. The patch embedding is new, so it is trained with the connector."""

    connector_parts = ("patch_embedding", "connector")

    def __init__(
        self,
        vae: LatentCodec,
        vit: "TimmViT",
        width: int,
        patch: int,
        feature_layer: int = FEATURE_LAYER,
        antialias: bool = False,
        encoder_trained: bool = True,
    ) -> None:
        super().__init__(vae, width, patch)
        self.encoder = RepresentationEncoder(vit, feature_layer, antialias)
        self.patch_embedding = nn.Conv2d(vae.channels, self.encoder.width, kernel_size=patch, stride=patch)
        # Xavier on the flattened kernel: a convolution without overlap is a linear map of the patch.
        nn.init.xavier_uniform_(self.patch_embedding.weight.view(self.encoder.width, -1))
        nn.init.zeros_(self.patch_embedding.bias)  # type: ignore[arg-type]
        self.connect(() if encoder_trained else ("encoder",))

    @classmethod
    def build(cls, config: FrontEndConfig, width: int, components: "Components") -> Self:
        # The VAE first: parts that are drawn at random are drawn in this order.
        vae = cls.codec(config, components)
        vit = components.encoder(config.encoder, config.encoder_pretrained)
        return cls(vae, vit, width, config.patch, config.encoder_layer, config.encoder_antialias, config.encoder_trained)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.connected(x_BChw)
