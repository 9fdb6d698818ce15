"""The timestep as a token and as the flow head's condition."""

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sinusoid(256, cosines then sines, max period 1e4, t in [0, 1] unscaled) -> Linear -> SiLU -> Linear. (N,) -> (N, width)."""

    features = 256
    max_period = 10_000.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t_N: Tensor) -> Tensor:
        half = self.features // 2
        k = torch.arange(half, device=t_N.device, dtype=torch.float32)
        angle = t_N.float()[:, None] * self.max_period ** (-k / half)
        table = torch.cat([angle.cos(), angle.sin()], dim=1)
        return self.mlp(table.to(next(self.mlp.parameters()).dtype))
