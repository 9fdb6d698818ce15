"""A pretrained representation encoder in front of the decoder: its trunk, and the connector behind it.

Shapes: B images, N patch tokens, V encoder width, D decoder width.
"""

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tunalab.errors import UserError

if TYPE_CHECKING:
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    # Learnt positions, or rotary ones (DINOv3): timm's two families of plain vision transformers.
    TimmViT = VisionTransformer | Eva

FEATURE_LAYER = -2


class RepresentationEncoder(nn.Module):
    """Positions and blocks of a timm ViT, up to the feature layer: no patch embedding, post-norm or head.

    What comes after the feature layer is dropped, not skipped, so that every parameter held here is used and trained.
    Class and register tokens, where the model has them, are fed to the blocks and left out of the output.
    """

    def __init__(self, vit: "TimmViT", feature_layer: int = FEATURE_LAYER, antialias: bool = False) -> None:
        """``feature_layer``: -1 is the last block. ``antialias``: how a position grid is resized (:func:`interpolate_positions`).

        Raises UserError when the model's parts are not those of a plain ViT with positions, or are too few, or draw at random.
        """
        super().__init__()
        kept = len(vit.blocks) + feature_layer + 1
        if kept < 1:
            raise UserError(f"encoder of {len(vit.blocks)} blocks has no feature layer {feature_layer}")
        self.rope = getattr(vit, "rope", None)
        if vit.pos_embed is None and self.rope is None:
            raise UserError("encoder has neither a learnt position grid nor rotary positions")
        if getattr(vit, "rope_mixed", False):
            raise UserError("encoder has rotary positions of its own in every block, which is not supported")
        if getattr(self.rope, "feat_shape", None) is not None:
            raise UserError("encoder has the rotary positions of one grid only: build it with dynamic_img_size=True")
        tokens = sum(token.shape[1] for token in (vit.cls_token, vit.reg_token) if token is not None)
        if tokens != vit.num_prefix_tokens:
            raise UserError(
                f"encoder has {vit.num_prefix_tokens} tokens before its patches, of which {tokens} are class or register"
            )
        self.antialias = antialias
        self.width: int = vit.embed_dim
        self.position_grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)
        self.prefix_tokens: int = vit.num_prefix_tokens
        self.prefix_positions: int = 0 if vit.no_embed_class or vit.pos_embed is None else vit.num_prefix_tokens
        self.pos_embed = vit.pos_embed
        self.cls_token = vit.cls_token
        self.reg_token = vit.reg_token
        self.norm_pre = vit.norm_pre
        self.blocks = nn.ModuleList(list(vit.blocks)[:kept])
        inputs = [part for part in (vit.pos_drop, vit.patch_drop) if part is not None]
        if any(_draws(part) for module in (self.blocks, *inputs) for part in module.modules()):
            # What is drawn must be a function of (seed, place in the stream), and the same when a block is computed again.
            raise UserError("encoder drops features at random: set its drop rates to 0")

    def forward(self, tokens_BNV: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch embeddings (B, N, V) of a grid of (rows, columns), row-major, to features (B, N, V)."""
        h_BNV, positions = tokens_BNV, self.pos_embed
        if positions is not None:
            patches_BNV = positions[:, self.prefix_positions :]
            h_BNV = h_BNV + interpolate_positions(patches_BNV, self.position_grid, grid, self.antialias)
        prefix: list[Tensor] = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if prefix:
            prefix_BKV = torch.cat(prefix, dim=1)
            if positions is not None and self.prefix_positions:
                prefix_BKV = prefix_BKV + positions[:, : self.prefix_positions]
            h_BNV = torch.cat([prefix_BKV.expand(len(h_BNV), -1, -1), h_BNV], dim=1)
        h_BNV = self.norm_pre(h_BNV)
        rotary = {} if self.rope is None else {"rope": self.rope.get_embed(shape=list(grid))}
        for block in self.blocks:
            h_BNV = block(h_BNV, **rotary)
        return h_BNV[:, self.prefix_tokens :]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.rope is not None:
            self.rope.eval()  # in training mode some models move their coordinates at random
        return self


def _draws(part: nn.Module) -> bool:
    from timm.layers.drop import DropPath
    from timm.layers.patch_dropout import PatchDropout, PatchDropoutWithIndices

    if isinstance(part, nn.Dropout):
        return part.p > 0
    if isinstance(part, DropPath):
        return part.drop_prob > 0
    return isinstance(part, PatchDropout | PatchDropoutWithIndices)


def interpolate_positions(
    positions_BNV: Tensor, source: tuple[int, int], target: tuple[int, int], antialias: bool = False
) -> Tensor:
    """A row-major grid of learnt positions (1, N, V) resampled from (rows, columns) ``source`` to ``target``, bicubic.

    With ``antialias`` as timm does (its cubic kernel is another one too, so enlarged grids differ as well), without as transformers
    and the official models do.
    """
    if source == target:
        return positions_BNV
    B, N, V = positions_BNV.shape
    grid_BVhw = positions_BNV.reshape(B, *source, V).permute(0, 3, 1, 2)
    resized_BVhw = F.interpolate(grid_BVhw, size=target, mode="bicubic", align_corners=False, antialias=antialias)
    return resized_BVhw.flatten(2).transpose(1, 2)


def connector(encoder_width: int, width: int) -> nn.Sequential:
    """Encoder features to decoder width: RMSNorm -> Linear -> GELU (erf) -> Linear."""
    layers = nn.Sequential(
        nn.RMSNorm(encoder_width, eps=1e-6),
        nn.Linear(encoder_width, width),
        nn.GELU(),
        nn.Linear(width, width),
    )
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return layers
