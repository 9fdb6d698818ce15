"""Parity with the official models: the visual tokens that each front-end puts into the decoder's input.

Weights are functions of the official parameter names (see tests/data/golden's origin, the project's golden tensors).
"""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.latents import LatentCodec
from tunalab.frontends.loading import load_strictly
from tunalab.frontends.patch_embed import PatchEmbed
from tunalab.frontends.siglip import Siglip
from tunalab.frontends.vae_siglip import VaeSiglip

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
WIDTH, ENCODER_WIDTH = 256, 96
BLOCKS = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def official(name: str, *shape: int) -> Tensor:
    """The value of an official parameter."""
    draw = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
    if len(shape) > 1 and "embed_tokens" not in name and "position_embedding" not in name:
        return torch.from_numpy(draw * np.float32(0.7 / np.sqrt(np.prod(shape[1:]))))
    if "norm" in name and name.endswith("weight"):
        return torch.from_numpy(1 + 0.1 * draw)
    return torch.from_numpy(0.1 * draw)


def encoder_weights(patch_shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Our names, with the official values of a SigLIP of two kept blocks and its connector."""
    V = ENCODER_WIDTH
    vision = "vision_model.embeddings"
    weights = {
        "patch_embedding.weight": official(f"{vision}.patch_embedding.weight", *patch_shape),
        "patch_embedding.bias": official(f"{vision}.patch_embedding.bias", V),
        "encoder.pos_embed": official(f"{vision}.position_embedding.weight", 16, V)[None],
        "connector.0.weight": official("siglip_proj.0.weight", V),
        "connector.1.weight": official("siglip_proj.1.weight", WIDTH, V),
        "connector.1.bias": official("siglip_proj.1.bias", WIDTH),
        "connector.3.weight": official("siglip_proj.3.weight", WIDTH, WIDTH),
        "connector.3.bias": official("siglip_proj.3.bias", WIDTH),
    }
    shapes = {"norm1": (V,), "norm2": (V,), "attn.proj": (V, V), "mlp.fc1": (2 * V, V), "mlp.fc2": (V, 2 * V)}
    for block in range(2):
        theirs = f"vision_model.encoder.layers.{block}"
        for name, shape in shapes.items():
            weights[f"encoder.blocks.{block}.{name}.weight"] = official(f"{theirs}.{BLOCKS[name]}.weight", *shape)
            weights[f"encoder.blocks.{block}.{name}.bias"] = official(f"{theirs}.{BLOCKS[name]}.bias", shape[0])
        for kind, shape in (("weight", (V, V)), ("bias", (V,))):
            parts = [official(f"{theirs}.self_attn.{part}_proj.{kind}", *shape) for part in "qkv"]
            weights[f"encoder.blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    return weights


def siglip_tower() -> VisionTransformer:
    return VisionTransformer(
        img_size=64,
        patch_size=16,
        embed_dim=ENCODER_WIDTH,
        depth=3,
        num_heads=2,
        mlp_ratio=2,
        class_token=False,
        global_pool="",
        num_classes=0,
        act_layer="gelu_tanh",
    )


def tuna2() -> VisualFrontEnd:
    frontend = PatchEmbed(WIDTH, patch=16)
    kernel = official("vision_encoder.patch_embedding.weight", WIDTH, 3, 16, 16)
    weights = {
        # A patch is flattened as (row, column, channel) here.
        "projection.weight": kernel.permute(0, 2, 3, 1).reshape(WIDTH, -1),
        "projection.bias": official("vision_encoder.patch_embedding.bias", WIDTH),
        "norm.weight": official("vision_encoder.norm.weight", WIDTH),
    }
    load_strictly(frontend, weights, "tuna2")
    return frontend


def tuna_r() -> VisualFrontEnd:
    frontend = Siglip(siglip_tower(), WIDTH, patch=16)
    load_strictly(frontend, encoder_weights((ENCODER_WIDTH, 3, 16, 16)), "tuna_r")
    return frontend


def tuna() -> VisualFrontEnd:
    codec = LatentCodec(nn.Identity(), 48, 16, [0.0] * 48, [1.0] * 48)
    frontend = VaeSiglip(codec, siglip_tower(), WIDTH, patch=1)
    statistics = {"vae.mean_C": codec.mean_C, "vae.std_C": codec.std_C}
    load_strictly(frontend, encoder_weights((ENCODER_WIDTH, 48, 1, 1)) | statistics, "tuna")
    return frontend


@pytest.mark.parametrize("build", [tuna2, tuna_r, tuna])
@pytest.mark.parametrize("task", ["t2i", "mmu"])
def test_visual_tokens_are_those_of_the_official_model(build, task: str) -> None:  # type: ignore[no-untyped-def]
    golden = np.load(GOLDEN / f"{build.__name__}.npz")
    offset, length = golden[f"{task}/span"].tolist()
    # The first slot of a span holds the time token.
    expected_BND = torch.from_numpy(golden[f"{task}/input_embeds"])[:, offset + 1 : offset + length]
    with torch.no_grad():
        h_BND = build().eval().embed(torch.from_numpy(golden[f"{task}/x_t"]))
    torch.testing.assert_close(h_BND, expected_BND, rtol=0, atol=1e-5)
