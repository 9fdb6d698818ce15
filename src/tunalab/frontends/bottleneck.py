"""JiT's patch embedding (arXiv 2511.13720, section 4): pixels -> patchify -> linear to few dimensions -> linear -> RMSNorm."""

from torch import Tensor, nn

from tunalab.frontends.contract import TargetSpace, VisualFrontEnd, patchify


class Bottleneck(VisualFrontEnd):
    """Tuna-2's embedding of lower rank: noise fills a patch, images hardly do, and the bottleneck keeps what they fill."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__(TargetSpace(channels=3, stride=1, patch=patch), width)
        rank = max(1, self.space.token_dim // 6)  # as JiT-B/16 and JiT-L/16: 128 of a patch's 768 numbers
        self.down = nn.Linear(self.space.token_dim, rank, bias=False)
        self.up = nn.Linear(rank, width)
        self.norm = nn.RMSNorm(width)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.norm(self.up(self.down(patchify(x_BChw, self.space.patch))))
