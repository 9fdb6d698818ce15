"""Official checkpoints: their tensors on disk, which model they are, and the configuration under which it is one of ours.

A checkpoint is a `.pt`, a `.safetensors`, or a folder of shards with their index, whoever wrote it. Nothing in it is executed
(``weights_only``), and nothing is guessed: what is not whole, or holds more than tensors, is refused.
"""

import math
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from tunalab.data.pretrained import LOAD_ERRORS
from tunalab.errors import UserError, one_line
from tunalab.files import below, listed
from tunalab.frontends.contract import RGB
from tunalab.frontends.loading import SHOWN, Held, Weight, read_all, read_json, stored_weights
from tunalab.settings.layers import Layer, laid, nested, over, settings_layers, typed_layer
from tunalab.settings.loading import from_plain
from tunalab.settings.schema import REVISION, RunConfig

WRAPPERS = ("state_dict", "model")  # keys under which a `.pt` may hold its tensors
PREFIXES = ("module.", "model.", "tuna_model.")  # what data-parallel and trainer classes put before every name
PICKLED = (".pt", ".pth", ".bin", ".ckpt")
INDEX = ".safetensors.index.json"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint at ``path``: a file, an index of shards, or a folder that holds one of these.

    Raises UserError, one line: nothing there or several candidates, unreadable file, shards that are missing or incomplete,
    entries that are no tensors, values that are no numbers.
    """
    return read_all(open_tensors(path))


def open_tensors(path: Path) -> dict[str, Weight]:
    """The same, none of them read yet where they are safetensors: what their values are like is seen when they are."""
    file, what = _choose(path), f"checkpoint {path}"
    if file.name.endswith(INDEX):
        return open_shards(file)
    if file.suffix == ".safetensors":
        return stored_weights(file, what)
    if file.suffix in PICKLED:
        return {name: Held(tensor, name, what) for name, tensor in _read_pickled(file).items()}
    raise UserError(f"{file} is no checkpoint (endings: .safetensors, {INDEX}, {', '.join(PICKLED)})")


def _choose(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"no checkpoint {path}")
    if path.is_file():
        return path
    files = [file for file in listed(path) if file.is_file()]
    indices = [file for file in files if file.name.endswith(INDEX)]
    whole = [file for file in files if file.suffix in (".safetensors", *PICKLED)]
    found = indices or whole
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:SHOWN]) or "none"
        raise UserError(f"{path} holds {len(found)} checkpoints ({names}): name the file")
    return found[0]


def open_shards(index: Path) -> dict[str, Weight]:
    """The tensors that an index names, in its shards. Raises UserError when a shard or a tensor of it is missing."""
    places = read_json(index, f"checkpoint {index.parent}").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"checkpoint {index.parent}: {index.name} is damaged (no weight_map)")
    files = sorted(set(places.values()))
    if strange := [file for file in files if below(index.parent, file) is None]:
        raise UserError(f"checkpoint {index.parent}: {index.name} names {strange[0]!r}, which leads out of the folder")
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise UserError(
            f"checkpoint {index.parent} is incomplete: {len(missing)} of {len(files)} files missing: {shorten(missing)}"
        )
    tensors: dict[str, Weight] = {}
    for file in files:
        tensors |= stored_weights(index.parent / file, f"checkpoint {index.parent}")
    absent = sorted(places.keys() - tensors.keys())
    if absent:
        raise UserError(f"checkpoint {index.parent} is incomplete: {len(absent)} tensors missing: {shorten(absent)}")
    return {name: tensors[name] for name in places}


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        # Where the format allows it, values stay in the file until they are used.
        loaded = torch.load(path, weights_only=True, map_location="cpu", mmap=is_zipfile(path))
    except pickle.UnpicklingError as error:
        # The library's own message advises loading it all the same.
        raise UserError(f"checkpoint {path} is damaged, or holds more than tensors and plain values: it is not loaded") from error
    except LOAD_ERRORS as error:
        raise UserError(f"checkpoint {path} cannot be read: {one_line(error)}") from error
    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(f"checkpoint {path} holds no tensors by name, but a {type(loaded).__name__}")
    others = sorted(str(name) for name, value in loaded.items() if not isinstance(value, Tensor))
    if others:
        raise UserError(f"checkpoint {path} holds {len(others)} entries that are no tensors: {shorten(others)}")
    return dict(loaded)


def without_prefix(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The names without a wrapper's prefix, where every one of them has it."""
    plain = dict(tensors)
    for prefix in PREFIXES:
        if plain and all(name.startswith(prefix) for name in plain):
            plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    return plain


def shorten(names: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = f", ... ({len(names) - SHOWN} more)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


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
# By default: the published image size and the law by which Qwen2.5 starts weights that a checkpoint lacks.
USUAL = {"data.image_size": 512, "data.bucket_rule": "official", "decoder.init_std": 0.02}
# And the shapes of images in questions, where no other size is given, whatever is cropped or enlarged.
USUAL_SHAPES = {
    "data.buckets": ["512x512", "448x576", "576x448", "384x672", "672x384"],
    "data.max_crop": 1.0,
    "data.max_upscale": 1000.0,
}


def target_layout(patch: int) -> str:
    """Official targets are runs of raster cells, which are the patches themselves only where a patch is one cell."""
    return "raster" if patch > 1 else "patch"


def detect(tensors: Mapping[str, Tensor | Weight]) -> OfficialModel:
    """By the names of the visual part; Tuna-R and Tuna by the channels they patch. Raises UserError, one line."""
    if any(name.startswith("vision_encoder.") for name in tensors):
        return TUNA_2
    if not any(name.startswith("vision_model.") for name in tensors):
        raise UserError(
            "no official layout: neither vision_encoder.* (Tuna-2) nor vision_model.* (Tuna-R, Tuna) among "
            f"{len(tensors)} names: {shorten(sorted(tensors))}"
        )
    if ENCODER_PATCHES not in tensors:
        raise UserError(f"half a checkpoint: without {ENCODER_PATCHES} Tuna-R looks like Tuna")
    return TUNA_R if tensors[ENCODER_PATCHES].shape[1] == RGB else TUNA


def without_vae(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The tensors that are learnt, and the names of a frozen VAE's, which some checkpoints carry along."""
    frozen = sorted(name for name in tensors if FROZEN_VAE.fullmatch(name))
    return {name: tensor for name, tensor in tensors.items() if name not in frozen}, frozen


def settings_of_shapes(tensors: Mapping[str, Tensor | Weight], model: OfficialModel, heads: int | None) -> dict[str, Any]:
    """Settings (dotted keys) that the shapes, and whether the two tables are equal, leave no choice about.

    ``heads`` of the decoder, where the user gave them: shapes hold heads times head dimension.

    Raises UserError: a tensor that is needed is missing, or the decoder's heads are neither given nor published.
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
        raise UserError(f"decoder.heads does not follow from shapes (width {width}): give decoder.heads=N, or --experiment NAME")
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
        "decoder.tie_embeddings": LM_HEAD not in tensors or torch.equal(*map(_values, (tensors[LM_HEAD], tensors[EMBED]))),
        "head.blocks": blocks[-1] + 1,
        "head.head_dim": head_dim,
        "head.heads": shape(f"{block}.self_attn.q_proj.weight")[0] // head_dim,
        "head.kv_heads": shape(f"{block}.self_attn.k_proj.weight")[0] // head_dim,
        "head.mlp": shape(f"{block}.mlp.gate_proj.weight")[0],
        "frontend.name": model.frontend,
        "frontend.patch": patches[-1],
        "objective.target_layout": target_layout(patches[-1]),
    }


def _values(tensor: Tensor | Weight) -> Tensor:
    return tensor if isinstance(tensor, Tensor) else tensor()


def published_encoder(tensors: Mapping[str, Tensor | Weight]) -> str | None:
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


# A configuration names at least one stage. What the checkpoint was trained with is not in it: nothing is claimed.
NO_STAGE = {"none": {"tokens": 1, "mix": {"scenes/text": 1.0}}}
MORE_ALLOWED = ("decoder.layers", "head.blocks")  # of these a checkpoint may lack some (start.allow_missing)


def official_config(
    tensors: Mapping[str, Tensor | Weight],
    model: OfficialModel,
    experiment: Path | None,
    variant: Path | None,
    settings: Sequence[str],
) -> RunConfig:
    """The settings of the shapes under those of experiment, variant and command line; how the model is usually used lies below all.

    Raises UserError: a file or a setting is wrong, or contradicts the shapes or what the weights mean (both sides named).
    """
    layers = [typed_layer(layer, RunConfig) for layer in settings_layers(experiment, variant, settings)]
    heads = next((heads for layer in reversed(layers) if (heads := _heads(layer)) is not None), None)
    fixed = {**settings_of_shapes(tensors, model, heads), **model.computes}
    sized = any({"image_size", "buckets"} & dict(layer.settings.get("data") or {}).keys() for layer in layers)
    usual = {**USUAL, **({} if sized else USUAL_SHAPES), **model.usual, "variant": model.variant, "experiment": "official"}
    encoder = published_encoder(tensors)
    below: dict[str, Any] = {}
    for key, value in {**usual, **fixed, **({} if encoder is None else {"frontend.encoder": encoder})}.items():
        below = over(below, nested(key.split("."), value))
    plain = laid(layers, RunConfig, below)
    config = from_plain({"revision": REVISION, "stages": NO_STAGE, **plain}, references=True)
    refuse_contradictions(fixed, config)
    return config


def refuse_contradictions(fixed: Mapping[str, Any], config: RunConfig) -> None:
    """Raises UserError, one line with both sides, where a configuration differs from what weights determine (dotted keys)."""
    wrong = [
        f"{key} is {value} in the checkpoint, {setting(config, key)} in the configuration"
        for key, value in fixed.items()
        if contradicts(key, value, setting(config, key))
    ]
    if wrong:
        raise UserError(f"the checkpoint does not fit: {'; '.join(wrong)}")


def contradicts(key: str, there: Any, here: Any) -> bool:
    if key in MORE_ALLOWED:
        return bool(here < there)
    if key == "decoder.vocabulary":  # 0: as many as the tokenizer has
        return bool(here not in (0, there))
    if key == "decoder.tie_embeddings":  # two equal tables may be two
        return bool(here and not there)
    return bool(here != there)


def setting(config: Any, key: str) -> Any:
    """A value by its dotted key."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _heads(layer: Layer) -> int | None:
    decoder = layer.settings.get("decoder")
    heads = decoder.get("heads") if isinstance(decoder, dict) else None
    return heads if isinstance(heads, int) and heads > 0 else None
