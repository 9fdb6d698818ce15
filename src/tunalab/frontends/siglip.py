"""Tuna-R's front-end: pixels -> pretrained encoder -> connector. It generates in pixels and sees the noisy image.

Shapes: B images, C channels, H W pixels, N visual tokens, V encoder width, D decoder width.
"""

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from tunalab.errors import UserError
from tunalab.frontends.contract import TargetSpace
from tunalab.frontends.encoder import EncoderFrontEnd
from tunalab.settings.schema import FrontEndConfig

if TYPE_CHECKING:
    from tunalab.frontends.components.store import Components
    from tunalab.frontends.encoder import TimmViT

# Without a record of its own a model is taken to expect RGB in [-1, 1], as SigLIP does.
DEFAULT_MEAN = DEFAULT_STD = (0.5, 0.5, 0.5)


class Siglip(EncoderFrontEnd):
    """The encoder keeps its patch embedding; all of it is trained, or with ``encoder_trained`` False none."""

    connector_parts = ("connector",)
    mean_C: Tensor
    std_C: Tensor

    def __init__(self, vit: "TimmViT", width: int, config: FrontEndConfig) -> None:
        """Raises UserError when ``config.patch`` is not the encoder's own patch size."""
        super().__init__(TargetSpace(channels=3, stride=1, patch=config.patch), width)
        own, other = vit.patch_embed.patch_size
        if own != other:
            raise UserError(f"the encoder's patches are of {own}x{other} pixels, but only square ones are supported")
        if own != config.patch:
            raise UserError(f"frontend.patch={config.patch} is not the encoder's patch size {own} (set frontend.patch={own})")
        record = getattr(vit, "pretrained_cfg", None) or {}
        # From our [-1, 1] to the statistics the encoder was pretrained with: (x/2 + 1/2 - mean) / std.
        mean, std = record.get("mean", DEFAULT_MEAN), record.get("std", DEFAULT_STD)
        self.register_buffer("mean_C", 2 * torch.tensor(mean) - 1, persistent=False)
        self.register_buffer("std_C", 2 * torch.tensor(std), persistent=False)
        self.patch_embedding = vit.patch_embed.proj
        self.attach(vit, config)
        self.connect(config)

    @classmethod
    def build(cls, config: FrontEndConfig, width: int, components: "Components") -> Self:
        return cls(components.encoder(config.encoder, config.encoder_pretrained), width, config)

    def forward(self, x_BChw: Tensor) -> Tensor:
        normalised_BChw = (x_BChw - self.mean_C[:, None, None]) / self.std_C[:, None, None]
        return self.connected(normalised_BChw)
