"""Masking: a learnable token takes the place of some visual tokens before the decoder. The time token is never masked.

The mask is drawn in objective.py (`draw`) and put in by `UnifiedModel.visual`; a stage masks in its last part only
(training/optimisation.py).

Generation: the clean patch is predicted at masked and unmasked positions, with equal weight. Understanding: only the text loss
applies, so the mask is a regulariser.

Shapes: N images, T visual tokens, D width.
"""

import torch
from torch import Tensor, nn

from tunalab.settings.schema import MaskingConfig


class MaskToken(nn.Module):
    """The learnable token, initialised N(0, 1) / sqrt(width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_D = nn.Parameter(torch.randn(width) / width**0.5)

    def forward(self, h_NTD: Tensor, mask_NT: Tensor) -> Tensor:
        return torch.where(mask_NT[:, :, None], self.token_D.to(h_NTD.dtype), h_NTD)


def choose_mask(uniform_N2: Tensor, scores_NT: Tensor, generate_N: Tensor, source_N: Tensor, config: MaskingConfig) -> Tensor:
    """Which tokens are masked, (N, T) bool: a pure function of uniform draws.

    ``uniform_N2`` decides whether an image is masked and at what ratio; the tokens of lowest ``scores_NT`` are masked, exactly
    round(ratio * T) of them. ``source_N``: source images of edits, which are never masked.
    """
    T = scores_NT.shape[1]
    applies = torch.where(generate_N, config.generation, config.understanding) & ~source_N
    masked = applies & (uniform_N2[:, 0] < config.probability)
    ratio = config.ratio * (uniform_N2[:, 1] if config.law == "uniform" else torch.ones_like(uniform_N2[:, 1]))
    count_N1 = torch.where(masked, (ratio * T).round(), torch.zeros_like(ratio))[:, None]
    rank_NT = scores_NT.argsort(dim=1).argsort(dim=1)
    return rank_NT < count_N1
