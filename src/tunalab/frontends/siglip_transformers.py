"""SigLIP as transformers stores it, as the timm VisionTransformer that every front-end is built on: one trunk, two sources.

Shapes: V encoder width, N positions.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tunalab.data.pretrained import Source, reading
from tunalab.errors import UserError
from tunalab.frontends.loading import check_fit, read_transformers, refuse_quantized

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from transformers import SiglipVisionConfig

MODEL_TYPES = ("siglip", "siglip_vision_model")
# A checkpoint of the whole model holds the other tower and the scalars of its loss.
OTHER_TOWER = ("text_model.", "logit_scale", "logit_bias")
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
# timm's names -> transformers' names, within a block; queries, keys and values are one matrix in timm.
BLOCK = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
# Names and sizes that are published, so that a plan needs no file. Fixed resolution; patch and image size are in the name.
SO400M: dict[str, Any] = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
PUBLISHED = {
    f"google/siglip2-so400m-patch{patch}-{size}": {**SO400M, "patch_size": patch, "image_size": size}
    for patch, size in ((14, 224), (14, 384), (16, 256), (16, 384), (16, 512))
}


def siglip_architecture(source: Source) -> "VisionTransformer":
    """The image tower with random weights. Raises UserError when it is no SigLIP or its config cannot be read."""
    return timm_vit(read_siglip_config(source, published=True), source.what)


def load_siglip(source: Source) -> "VisionTransformer":
    """The image tower with the weights that transformers reads from a folder or the Hub, in float32.

    Raises UserError, one line: no SigLIP, missing or damaged files, weights that do not fit (both sides listed).
    """
    from transformers import SiglipVisionModel

    config = read_siglip_config(source)
    model = read_transformers(SiglipVisionModel, source, config, ignored=OTHER_TOWER)
    with torch.device("meta"):
        vit = timm_vit(config, source.what)
    weights = to_timm(model.state_dict(), config.num_hidden_layers)
    check_fit(vit.state_dict(), weights, source.what)
    vit.load_state_dict(weights, assign=True)
    return vit


def read_siglip_config(source: Source, published: bool = False) -> "SiglipVisionConfig":
    """``published``: take sizes that are known by name as they are, without reading anything."""
    from transformers import AutoConfig, SiglipVisionConfig

    if published and source.name in PUBLISHED and source.folder is None:
        return SiglipVisionConfig(**PUBLISHED[source.name])
    with reading(source):
        config: Any = AutoConfig.from_pretrained(source.name, subfolder=source.subfolder, trust_remote_code=False)
    if config.model_type not in MODEL_TYPES:
        raise UserError(f"{source.what} is a {config.model_type} (choices: {', '.join(MODEL_TYPES)})")
    refuse_quantized(config, source.what)
    return config.vision_config if config.model_type == "siglip" else config


def timm_vit(config: Any, what: str) -> "VisionTransformer":
    """A VisionTransformer of these sizes, without pooling and head, which no feature layer needs."""
    from timm.models.vision_transformer import VisionTransformer

    if config.hidden_act not in ACTIVATIONS:
        raise UserError(f"{what} has the activation {config.hidden_act} (choices: {', '.join(ACTIVATIONS)})")
    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.num_channels,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        # timm rounds ratio * width down: the half keeps the product on the right side of the integer.
        mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,
        class_token=False,
        global_pool="",
        num_classes=0,
        act_layer=ACTIVATIONS[config.hidden_act],
        norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
    )


def to_timm(tower: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """The weights of a SiglipVisionModel under timm's names. Its pooling head stands behind every feature layer: left out."""
    weights = {
        "patch_embed.proj.weight": tower["embeddings.patch_embedding.weight"],
        "patch_embed.proj.bias": tower["embeddings.patch_embedding.bias"],
        "pos_embed": tower["embeddings.position_embedding.weight"][None],  # (1, N, V)
        "norm.weight": tower["post_layernorm.weight"],
        "norm.bias": tower["post_layernorm.bias"],
    }
    for block in range(blocks):
        theirs = f"encoder.layers.{block}"
        for kind in ("weight", "bias"):
            parts = [tower[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            weights[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
            for mine, name in BLOCK.items():
                weights[f"blocks.{block}.{mine}.{kind}"] = tower[f"{theirs}.{name}.{kind}"]
    return weights
