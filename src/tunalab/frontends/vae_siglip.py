"""Tuna's front-end: frozen VAE -> new patch embedding on its latents -> pretrained encoder blocks -> connector.

Shapes: B images, C latent channels, h w latent cells, N visual tokens, V encoder width, D decoder width.
"""

from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

from tunalab.frontends.encoder import FEATURE_LAYER, RepresentationEncoder, connector
from tunalab.frontends.vae import LatentCodec, LatentFrontEnd
from tunalab.settings.schema import FrontEndConfig

if TYPE_CHECKING:
    from tunalab.frontends.components.store import Components
    from tunalab.frontends.encoder import TimmViT


class VaeSiglip(LatentFrontEnd):
    """Generates in normalised VAE latents. The patch embedding is new, so it is trained with the connector."""

    connector_parts = ("patch_embedding", "connector")
    block_parts = ("encoder.blocks",)

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
        self.connector = connector(self.encoder.width, width)
        self.fixed_parts = () if encoder_trained else ("encoder",)
        self.freeze()

    @classmethod
    def build(cls, config: FrontEndConfig, width: int, components: "Components") -> Self:
        # The VAE first: parts that are drawn at random are drawn in this order.
        vae = cls.codec(config, components)
        vit = components.encoder(config.encoder, config.encoder_pretrained)
        return cls(vae, vit, width, config.patch, config.encoder_layer, config.encoder_antialias, config.encoder_trained)

    def forward(self, x_BChw: Tensor) -> Tensor:
        tokens_BVhw = self.patch_embedding(x_BChw)
        grid = (tokens_BVhw.shape[2], tokens_BVhw.shape[3])
        return self.connector(self.encoder(tokens_BVhw.flatten(2).transpose(1, 2), grid))
