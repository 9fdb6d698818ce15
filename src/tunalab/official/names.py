"""Our parameter names and the official ones, parameter by parameter, with the change of form where there is one.

Shapes: D decoder width, C channels, p patch, V encoder width, N positions.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunalab.frontends.contract import RGB
from tunalab.frontends.siglip_transformers import BLOCK


@dataclass(frozen=True)
class Form:
    """How one of our tensors stands in the official layout: as one tensor or, in order, as several. Bits are only moved."""

    to_ours: Callable[[Sequence[Tensor]], Tensor]
    to_official: Callable[[Tensor], list[Tensor]]


def _kernel(matrix_DP: Tensor) -> Tensor:
    """(D, p * p * 3), a patch flattened as (row, column, channel), as a strided convolution (D, 3, p, p)."""
    patch = math.isqrt(matrix_DP.shape[1] // RGB)
    return matrix_DP.unflatten(1, (patch, patch, RGB)).permute(0, 3, 1, 2).contiguous()


SAME = Form(lambda parts: parts[0], lambda ours: [ours])
PATCHES = Form(lambda parts: parts[0].permute(0, 2, 3, 1).flatten(1), lambda ours: [_kernel(ours)])
STACKED = Form(lambda parts: torch.cat(list(parts)), lambda ours: [part.clone() for part in ours.chunk(3)])
GRID = Form(lambda parts: parts[0][None], lambda ours: [ours[0]])  # (N, V) and (1, N, V)
TOKEN = Form(lambda parts: parts[0].flatten(), lambda ours: [ours[None, None]])  # (1, 1, D) and (D,)

HEAD_BLOCK = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "modulation": "adaLN_modulation.1",
}
HEAD_END = {"final_norm": "norm_final", "output": "linear", "final_modulation": "adaLN_modulation.1"}
EMBEDDINGS, LAYER = "vision_model.embeddings", r"vision_model.encoder.layers.\1"
KIND = r"(weight|bias)"

# Our names, the official ones they stand for, the form. A name is looked for from above.
RULES: list[tuple[str, tuple[str, ...], Form]] = [
    (r"decoder\.(.+)", (r"tuna.\1",), SAME),
    (r"time\.(.+)", (r"time_embed.\1",), SAME),
    (r"mask_token\.token_D", ("mask_token",), TOKEN),
    *((rf"head\.blocks\.(\d+)\.{a}\.{KIND}", (rf"diffusion_head_a.\1.{b}.\2",), SAME) for a, b in HEAD_BLOCK.items()),
    *((rf"head\.{a}\.{KIND}", (rf"diffusion_head_b.{b}.\1",), SAME) for a, b in HEAD_END.items()),
    # Tuna-2
    (r"frontend\.projection\.weight", ("vision_encoder.patch_embedding.weight",), PATCHES),
    (r"frontend\.projection\.bias", ("vision_encoder.patch_embedding.bias",), SAME),
    (r"frontend\.norm\.weight", ("vision_encoder.norm.weight",), SAME),
    # Tuna-R and Tuna
    (rf"frontend\.patch_embedding\.{KIND}", (rf"{EMBEDDINGS}.patch_embedding.\1",), SAME),
    (r"frontend\.encoder\.pos_embed", (f"{EMBEDDINGS}.position_embedding.weight",), GRID),
    (
        rf"frontend\.encoder\.blocks\.(\d+)\.attn\.qkv\.{KIND}",
        tuple(rf"{LAYER}.self_attn.{part}_proj.\2" for part in "qkv"),
        STACKED,
    ),
    *((rf"frontend\.encoder\.blocks\.(\d+)\.{re.escape(a)}\.{KIND}", (rf"{LAYER}.{b}.\2",), SAME) for a, b in BLOCK.items()),
    (rf"frontend\.connector\.(\d)\.{KIND}", (r"siglip_proj.\1.\2",), SAME),
]


@dataclass(frozen=True)
class Counterpart:
    """The official tensors that one of ours is made of."""

    names: tuple[str, ...]
    form: Form


def counterpart(ours: str) -> Counterpart | None:
    """Of a parameter by our name; None where the official models have nothing like it."""
    for pattern, templates, form in RULES:
        match = re.fullmatch(pattern, ours)
        if match:
            return Counterpart(tuple(match.expand(template) for template in templates), form)
    return None
