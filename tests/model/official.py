"""The official models' parameters under our names. Every official tensor is used exactly once, or the call fails."""

import zlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

Weights = dict[str, Tensor]
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
ENCODER_BLOCK = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def golden_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value that the golden tensors were computed with: a function of the parameter's name."""
    draw = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
    if len(shape) > 1 and "embed_tokens" not in name and "position_embedding" not in name:
        return torch.from_numpy(draw * np.float32(0.7 / np.sqrt(np.prod(shape[1:]))))
    if "norm" in name and name.endswith("weight"):
        return torch.from_numpy(1 + 0.1 * draw)
    return torch.from_numpy(0.1 * draw)


def convert(official: Mapping[str, Tensor]) -> Weights:
    """Official weights of Tuna, Tuna-R or Tuna-2 by our names. Raises ValueError when one of them finds no place."""
    rest = dict(official)
    ours: Weights = {}

    def move(mine: str, theirs: str, change: Callable[[Tensor], Tensor] = lambda x: x, kinds: str = "weight bias") -> None:
        for kind in kinds.split():
            if f"{theirs}.{kind}" in rest:
                ours[f"{mine}.{kind}"] = change(rest.pop(f"{theirs}.{kind}"))

    for name in [name for name in rest if name.startswith("tuna.")]:
        ours["decoder." + name.removeprefix("tuna.")] = rest.pop(name)
    for layer in (0, 2):
        move(f"time.mlp.{layer}", f"time_embed.mlp.{layer}")
    for block in _numbered(rest, "diffusion_head_a"):
        for mine, theirs in HEAD_BLOCK.items():
            move(f"head.blocks.{block}.{mine}", f"diffusion_head_a.{block}.{theirs}")
    for mine, theirs in (("final_norm", "norm_final"), ("output", "linear"), ("final_modulation", "adaLN_modulation.1")):
        move(f"head.{mine}", f"diffusion_head_b.{theirs}")
    if "mask_token" in rest:
        ours["mask_token.token_D"] = rest.pop("mask_token").flatten()

    # Tuna-2: a strided convolution is a linear map of patches flattened as (row, column, channel).
    move("frontend.projection", "vision_encoder.patch_embedding", lambda x: x.permute(0, 2, 3, 1).flatten(1), "weight")
    move("frontend.projection", "vision_encoder.patch_embedding", kinds="bias")
    move("frontend.norm", "vision_encoder.norm")

    # Tuna-R and Tuna: SigLIP and connector.
    move("frontend.patch_embedding", "vision_model.embeddings.patch_embedding")
    if "vision_model.embeddings.position_embedding.weight" in rest:
        ours["frontend.encoder.pos_embed"] = rest.pop("vision_model.embeddings.position_embedding.weight")[None]
    for block in _numbered(rest, "vision_model.encoder.layers"):
        theirs_block, mine_block = f"vision_model.encoder.layers.{block}", f"frontend.encoder.blocks.{block}"
        for mine, theirs in ENCODER_BLOCK.items():
            move(f"{mine_block}.{mine}", f"{theirs_block}.{theirs}")
        for kind in ("weight", "bias"):
            parts = [rest.pop(f"{theirs_block}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            ours[f"{mine_block}.attn.qkv.{kind}"] = torch.cat(parts)
    for layer in (0, 1, 3):
        move(f"frontend.connector.{layer}", f"siglip_proj.{layer}")
    if rest:
        raise ValueError(f"official weights without a place: {', '.join(sorted(rest))}")
    return ours


def _numbered(names: Mapping[str, Tensor], prefix: str) -> list[int]:
    """The numbers n of names ``prefix.n.*``."""
    depth = prefix.count(".") + 1
    return sorted({int(name.split(".")[depth]) for name in names if name.startswith(f"{prefix}.")})
