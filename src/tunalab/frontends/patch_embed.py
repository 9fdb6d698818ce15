"""Tuna-2's front-end: pixels -> patchify -> linear -> RMSNorm. No encoder, no position embedding.

Shapes: B images, C channels, H W pixels, N visual tokens, P numbers a patch, D decoder width.
"""

from torch import Tensor, nn

from tunalab.frontends.contract import TargetSpace, VisualFrontEnd, patchify


class PatchEmbed(VisualFrontEnd):
    """A linear map of each patch, normalised: what a strided convolution computes, in the layout of the flow head's targets."""

    def __init__(self, width: int, patch: int, channels: int = 3) -> None:
        super().__init__(TargetSpace(channels=channels, stride=1, patch=patch), width)
        self.projection = nn.Linear(self.space.token_dim, width)
        # eps None is float32's epsilon, as in the official models.
        self.norm = nn.RMSNorm(width)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.norm(self.projection(patchify(x_BChw, self.space.patch)))
