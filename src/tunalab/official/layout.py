"""Which official model a set of tensors is, and the sizes that its shapes tell."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from tunalab.errors import UserError
from tunalab.frontends.contract import RGB
from tunalab.official.files import shorten
from tunalab.settings.layers import Layer, replaced_mappings, settings_layers, typed_layer
from tunalab.settings.schema import REVISION, RunConfig, from_plain

EMBED, LM_HEAD = "tuna.model.embed_tokens.weight", "tuna.lm_head.weight"
PATCHES, ENCODER_PATCHES = "vision_encoder.patch_embedding.weight", "vision_model.embeddings.patch_embedding.weight"
POSITIONS = "vision_model.embeddings.position_embedding.weight"
FROZEN_VAE = re.compile(r"(.+\.)?vae\..+")

# Heads of the published decoders by width: shapes give heads times head dimension only.
DECODER_HEADS = {1536: 12, 3584: 28}  # Qwen2.5-1.5B, Qwen2.5-7B
ENCODER_WIDTH = 1152  # SigLIP 2 So400M


@dataclass(frozen=True)
class OfficialModel:
    """``name`` as published; ``variant`` and ``frontend`` as here; ``masks``: whether its class knows a mask token.

    ``computes``: settings (dotted keys) without which the weights would mean something else. ``usual``: how it is published to
    be used, which may be changed.
    """

    name: str
    variant: str
    frontend: str
    masks: bool
    computes: dict[str, Any]
    usual: dict[str, Any]


_COMMON = {"decoder.image_positions": "none", "decoder.rope_theta": 1e6}
_PLAIN_GRID = {"sampling.steps": 50, "sampling.grid": "steps", "sampling.shift": 1.0}
_PIXELS = {"objective.noise_scale": 2.0, **_PLAIN_GRID, "sampling.clamp": "official"}
_LATENTS = {"sampling.steps": 50, "sampling.grid": "points", "sampling.shift": 3.0, "sampling.clamp": "none"}
TUNA_2 = OfficialModel(
    name="Tuna-2",
    variant="tuna2",
    frontend="patch_embed",
    masks=True,
    computes={**_COMMON, "objective.prediction": "x"},
    usual={**_PIXELS, "sampling.method": "euler", "sampling.guidance": 3.0, "sampling.edit_guidance": 2.0},
)
TUNA_R = replace(
    TUNA_2,
    name="Tuna-R",
    variant="tuna_r",
    frontend="siglip",
    usual={**_PIXELS, "sampling.method": "heun", "sampling.guidance": 4.0, "sampling.edit_guidance": 5.0},
)
TUNA = OfficialModel(
    name="Tuna",
    variant="tuna",
    frontend="vae_siglip",
    masks=False,
    computes={**_COMMON, "objective.prediction": "v", "frontend.vae_statistics": "official"},
    usual={**_LATENTS, "sampling.method": "euler", "sampling.guidance": 7.5, "sampling.edit_guidance": 7.5},
)
MODELS = (TUNA_2, TUNA_R, TUNA)
# Where nothing else is said: the published image size and the law by which Qwen2.5 starts weights that a checkpoint lacks.
USUAL = {"data.image_size": 512, "data.bucket_rule": "official", "decoder.init_std": 0.02}
# And the shapes of images that are asked about, where no other size is given; whatever must be cropped or enlarged.
USUAL_SHAPES = {
    "data.buckets": ["512x512", "448x576", "576x448", "384x672", "672x384"],
    "data.max_crop": 1.0,
    "data.max_upscale": 1000.0,
}


def target_layout(patch: int) -> str:
    """Official targets are runs of raster cells, which are the patches themselves only where a patch is one cell."""
    return "raster" if patch > 1 else "patch"


def detect(tensors: Mapping[str, Tensor]) -> OfficialModel:
    """Told by the names of the visual part; Tuna-R and Tuna by the channels they patch. Raises UserError, one line."""
    if any(name.startswith("vision_encoder.") for name in tensors):
        return TUNA_2
    if not any(name.startswith("vision_model.") for name in tensors):
        raise UserError(
            "no official layout: neither vision_encoder.* (Tuna-2) nor vision_model.* (Tuna-R, Tuna) among "
            f"{len(tensors)} names: {shorten(sorted(tensors))}"
        )
    if ENCODER_PATCHES not in tensors:
        raise UserError(f"half a checkpoint: without {ENCODER_PATCHES} Tuna-R cannot be told from Tuna")
    return TUNA_R if tensors[ENCODER_PATCHES].shape[1] == RGB else TUNA


def without_vae(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that are learnt, and the names of a frozen VAE's, which some checkpoints carry along."""
    frozen = sorted(name for name in tensors if FROZEN_VAE.fullmatch(name))
    return {name: tensor for name, tensor in tensors.items() if name not in frozen}, frozen


def told_by_shapes(tensors: Mapping[str, Tensor], model: OfficialModel, heads: int | None) -> dict[str, Any]:
    """Settings (dotted keys) that the shapes, and whether the two tables are equal, leave no choice about.

    ``heads`` of the decoder, where the user gave them; the shapes only tell heads times head dimension.

    Raises UserError: a tensor that is needed is missing, or the decoder's heads are neither given nor known.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(f"half a checkpoint: {name} is missing, and with it the sizes of the {model.name} model")
        return tuple(tensors[name].shape)

    vocabulary, width = shape(EMBED)
    layers, blocks = numbers(tensors, "tuna.model.layers"), numbers(tensors, "diffusion_head_a")
    if not layers or not blocks:
        raise UserError(
            f"half a checkpoint: no {'tuna.model.layers' if not layers else 'diffusion_head_a'}.* of the {model.name} model"
        )
    layer, block = f"tuna.model.layers.{layers[0]}", f"diffusion_head_a.{blocks[0]}"
    heads = heads or DECODER_HEADS.get(width)
    if heads is None:
        raise UserError(f"decoder.heads cannot be told from shapes (width {width}): give decoder.heads=N, or --experiment NAME")
    key_rows = shape(f"{layer}.self_attn.k_proj.weight")[0]
    (head_dim,) = shape(f"{block}.self_attn.q_norm.weight")
    patches = shape(PATCHES if model is TUNA_2 else ENCODER_PATCHES)
    return {
        "decoder.vocabulary": vocabulary,
        "decoder.width": width,
        "decoder.layers": layers[-1] + 1,
        "decoder.heads": heads,
        "decoder.kv_heads": heads * key_rows // width,
        "decoder.mlp": shape(f"{layer}.mlp.gate_proj.weight")[0],
        "decoder.tie_embeddings": LM_HEAD not in tensors or torch.equal(tensors[LM_HEAD], tensors[EMBED]),
        "head.blocks": blocks[-1] + 1,
        "head.head_dim": head_dim,
        "head.heads": shape(f"{block}.self_attn.q_proj.weight")[0] // head_dim,
        "head.kv_heads": shape(f"{block}.self_attn.k_proj.weight")[0] // head_dim,
        "head.mlp": shape(f"{block}.mlp.gate_proj.weight")[0],
        "frontend.name": model.frontend,
        "frontend.patch": patches[-1],
        "objective.target_layout": target_layout(patches[-1]),
    }


def known_encoder(tensors: Mapping[str, Tensor]) -> str | None:
    """timm's name of the published encoder, when it is that one: So400M at the image size of the position grid."""
    if POSITIONS not in tensors:
        return None
    positions, width = tensors[POSITIONS].shape
    side = math.isqrt(positions)
    if width != ENCODER_WIDTH or side * side != positions:
        return None
    return f"vit_so400m_patch16_siglip_{16 * side}.v2_webli"


def numbers(names: Iterable[str], prefix: str) -> list[int]:
    """The numbers n of names ``prefix.n.*``, in order."""
    found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in names)
    return sorted({int(match[1]) for match in found if match})


# The configuration under which an official checkpoint is a model of ours.

# A configuration names at least one stage. What the checkpoint was trained with is not in it: nothing is claimed.
NO_STAGE = {"none": {"tokens": 1, "mix": {"scenes/text": 1.0}}}
MORE_ALLOWED = ("decoder.layers", "head.blocks")  # of these a checkpoint may lack some (start.allow_missing)


def official_config(
    tensors: Mapping[str, Tensor], model: OfficialModel, experiment: Path | None, variant: Path | None, settings: Sequence[str]
) -> RunConfig:
    """What the shapes tell, laid under experiment, variant and settings; how the model is usually used lies below it all.

    Raises UserError: a file or a setting is wrong, or contradicts the shapes or what the weights mean (both sides named).
    """
    layers = [typed_layer(layer, RunConfig) for layer in settings_layers(experiment, variant, settings)]
    heads = next((heads for layer in reversed(layers) if (heads := _heads(layer)) is not None), None)
    told = {**told_by_shapes(tensors, model, heads), **model.computes}
    sized = any({"image_size", "buckets"} & dict(layer.settings.get("data") or {}).keys() for layer in layers)
    usual = {**USUAL, **({} if sized else USUAL_SHAPES), **model.usual, "variant": model.variant, "experiment": "official"}
    encoder = known_encoder(tensors)
    merged = _nested({**usual, **told, **({} if encoder is None else {"frontend.encoder": encoder})})
    for layer in layers:
        for place in replaced_mappings(layer, RunConfig):
            OmegaConf.update(merged, ".".join(place), {}, merge=False)
        laid = OmegaConf.merge(merged, layer.settings)
        assert isinstance(laid, DictConfig)
        merged = laid
    plain = OmegaConf.to_container(merged)
    assert isinstance(plain, dict)
    config = from_plain({"revision": REVISION, "stages": NO_STAGE, **plain}, references=True)
    refuse_contradictions(told, config)
    return config


def refuse_contradictions(told: Mapping[str, Any], config: RunConfig) -> None:
    """Raises UserError, one line with both sides, where a configuration differs from what is known (dotted keys) of weights."""
    wrong = [
        f"{key} is {value} in the checkpoint, {setting(config, key)} in the configuration"
        for key, value in told.items()
        if contradicts(key, value, setting(config, key))
    ]
    if wrong:
        raise UserError(f"the checkpoint does not fit: {'; '.join(wrong)}")


def contradicts(key: str, told: Any, here: Any) -> bool:
    if key in MORE_ALLOWED:
        return bool(here < told)
    if key == "decoder.vocabulary":  # 0: as many as the tokenizer has
        return bool(here not in (0, told))
    if key == "decoder.tie_embeddings":  # two equal tables may be two
        return bool(here and not told)
    return bool(here != told)


def setting(config: Any, key: str) -> Any:
    """A value by its dotted key."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _heads(layer: Layer) -> int | None:
    decoder = layer.settings.get("decoder")
    heads = decoder.get("heads") if isinstance(decoder, dict) else None
    return heads if isinstance(heads, int) and heads > 0 else None


def _nested(dotted: Mapping[str, Any]) -> DictConfig:
    config = OmegaConf.create()
    for key, value in dotted.items():
        OmegaConf.update(config, key, value)
    return config
