"""Pretrained representation encoders by name or path.

    vit_so400m_patch16_siglip_512.v2_webli            a timm model, with its published weights
    timm:vit_so400m_patch16_siglip_512@PATH           timm's architecture, weights of a .safetensors file or of a folder with one
    transformers:google/siglip2-so400m-patch16-512    a SigLIP of transformers, by its name on the Hub or by folder
    PATH                                              a folder that timm or transformers saved: its config.json says which

`timm:` may stand before a timm name as well. All of them become a timm ViT, so that one trunk serves every source;
with a connector behind it that is an :class:`EncoderFrontEnd`.

Shapes: B images, N patch tokens, V encoder width, D decoder width.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tunalab.data.pretrained import LOAD_ERRORS, from_hub, locate
from tunalab.errors import UserError, one_line
from tunalab.frontends.contract import RGB, VisualFrontEnd
from tunalab.frontends.loading import check_finite, load_strictly, read_json, read_safetensors
from tunalab.settings.schema import FrontEndConfig

if TYPE_CHECKING:
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    # Learnt positions, or rotary ones (DINOv3): timm's two families of plain vision transformers.
    TimmViT = VisionTransformer | Eva

from functools import partial
from typing import TYPE_CHECKING

from tunalab.data.pretrained import Source, reading
from tunalab.frontends.loading import check_fit, read_transformers, refuse_quantized

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from transformers import SiglipVisionConfig


SETTING = "frontend.encoder"
TIMM, TRANSFORMERS, HUB = "timm:", "transformers:", "hf-hub:"
TIMM_WEIGHTS = "model.safetensors"
CLASSIFIER = ("head.", "fc.", "head_dist.")  # a classifier's own layer is no part of an encoder
# What the trunk computes itself, so that a model which computes it otherwise is none.
FORWARD = ("_pos_embed", "forward_features", "forward_intermediates")
# Why, where a class of timm is often taken for a plain transformer.
OTHERS = {
    "Beit": " (positions relative to each other, in every block)",
    "VisionTransformerRelPos": " (positions relative to each other, in every block)",
    "VisionTransformerSAM": " (attention in local windows)",
    "NaFlexVit": " (its tokens come with coordinates and a mask)",
    **dict.fromkeys(("Hiera", "HieraDet"), " (tokens are merged on the way)"),
    **dict.fromkeys(("SwinTransformer", "SwinTransformerV2"), " (local windows, and tokens are merged on the way)"),
    **dict.fromkeys(("ConvNeXt", "ResNet", "ResNetV2"), " (convolutions, no tokens of one size)"),
}
FORMS = "a timm model name, timm:NAME@PATH, transformers:NAME, or a folder"


def pretrained_encoder(given: str, pretrained: bool) -> "TimmViT":
    """The encoder that ``given`` names, in float32; with ``pretrained`` False its architecture with random weights.

    Under ``torch.device("meta")`` an architecture without weights: names are enough, of a folder config.json is read.
    Raises UserError, one line: nothing of that name, not a plain ViT, missing or damaged files, weights that do not fit.
    """
    read = pretrained and torch.get_default_device().type != "meta"
    if not read:
        return _build(given, read)
    # A fork of the generator: what is drawn for weights that are then replaced must not shift what is drawn after them.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        vit = _build(given, read)
    check_finite(vit.state_dict(), f"{SETTING}={given}")
    return vit


def _build(given: str, read: bool) -> "TimmViT":
    if given.startswith(TRANSFORMERS):
        source = locate(given.removeprefix(TRANSFORMERS), SETTING, TRANSFORMERS)
        return load_siglip(source) if read else siglip_architecture(source)
    if Path(given).is_dir():
        return _from_folder(Path(given), read)
    name, at, path = given.removeprefix(TIMM).partition("@")
    if at:
        # The file first: an architecture of this size takes its time, and a path may be misspelt.
        weights = _read_weights(Path(path), f"{SETTING}={given}") if read else None
        return _with_weights(_create(given, name), weights, f"{SETTING}={given}")
    if "/" in name and not name.startswith(HUB):
        raise UserError(f"{SETTING}={given} is no folder (choices: {FORMS})")
    return _create(given, name, pretrained=read)


def _from_folder(folder: Path, read: bool) -> "TimmViT":
    what = f"{SETTING}={folder}"
    config = read_json(folder / "config.json", what)
    if "architecture" in config:
        weights = _read_weights(folder, what) if read else None
        vit = _create(str(folder), config["architecture"], **(config.get("model_args") or {}))
        record: Any = vit.pretrained_cfg
        vit.pretrained_cfg = {**record, **(config.get("pretrained_cfg") or {})}  # type: ignore[assignment]
        return _with_weights(vit, weights, what)
    if "model_type" in config:
        source = locate(str(folder), SETTING)
        return load_siglip(source) if read else siglip_architecture(source)
    raise UserError(f"{what}: config.json is neither timm's (architecture) nor transformers' (model_type)")


def _create(given: str, name: str, **arguments: Any) -> "TimmViT":
    import timm
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    what = f"{SETTING}={given}"
    # Without a classifier, whatever the checkpoint was trained for; with dynamic_img_size rotary positions are those of
    # the image's own grid: timm would else keep the ones of its first grid, and use them for any other of as many patches.
    options = {**arguments, "num_classes": 0, "dynamic_img_size": True}
    try:
        repository = timm_repository(name) if arguments.get("pretrained") else None
        with nullcontext() if repository is None else from_hub(what, repository):
            model: Any = timm.create_model(name, **options)
    except LOAD_ERRORS as error:
        if not isinstance(error, TypeError) or "dynamic_img_size" not in str(error):
            raise UserError(f"{what}: timm cannot build it ({one_line(error)}; choices: {FORMS}, or tiny)") from error
        model = str(error).partition(".")[0]  # ResNet.__init__() got an unexpected keyword argument
    kind: type[nn.Module] | None = next((each for each in (VisionTransformer, Eva) if isinstance(model, each)), None)
    if kind is None:
        own = model if isinstance(model, str) else type(model).__name__
        raise UserError(f"{what} is a {own}, not a plain VisionTransformer or Eva{OTHERS.get(own, '')}")
    changed = [method for method in FORWARD if getattr(type(model), method) is not getattr(kind, method)]
    if changed:
        raise UserError(f"{what} is a {type(model).__name__} with a {changed[0]} of its own, not a plain {kind.__name__}")
    patches = model.patch_embed
    if not isinstance(patches.proj, nn.Conv2d) or not isinstance(getattr(patches, "norm", None), nn.Identity):
        raise UserError(f"{what}: its patch embedding is more than one convolution")
    if patches.proj.in_channels != RGB:
        raise UserError(f"{what} takes images of {patches.proj.in_channels} channels, not of {RGB}")
    vit: TimmViT = model
    return vit


def timm_repository(name: str) -> str | None:
    """On the Hub, of a timm model; None where timm knows of none."""
    import timm

    if name.startswith(HUB):
        return name.removeprefix(HUB).partition("@")[0]
    published = timm.models.get_pretrained_cfg(name) if timm.models.is_model(name) else None
    return published.hf_hub_id if published is not None and published.hf_hub_id else None


def _read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """Of a file, or of the one that timm writes into a folder."""
    return read_safetensors(path / TIMM_WEIGHTS if path.is_dir() else path, what)


def _with_weights(vit: "TimmViT", weights: dict[str, Tensor] | None, what: str) -> "TimmViT":
    if weights is not None:
        own = vit.state_dict()
        kept = {name: tensor.float() for name, tensor in weights.items() if name in own or not name.startswith(CLASSIFIER)}
        load_strictly(vit, kept, what)
    return vit


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


class EncoderFrontEnd(VisualFrontEnd):
    """A ``patch_embedding`` feeds the blocks of a pretrained ``encoder``, with a connector behind them.

    The patch embedding is the encoder's own, or new and then one of ``connector_parts``. Without
    ``encoder_trained`` all that is pretrained stays as it starts.
    """

    block_parts = ("encoder.blocks",)
    patch_embedding: nn.Conv2d

    def attach(self, vit: "TimmViT", config: FrontEndConfig) -> None:
        self.encoder = RepresentationEncoder(vit, config.encoder_layer, config.encoder_antialias)

    def connect(self, config: FrontEndConfig) -> None:
        """Ends a constructor: the connector, which is new."""
        self.connector = connector(self.encoder.width, self.width)
        pretrained = tuple(part for part in ("patch_embedding", "encoder") if part not in self.connector_parts)
        self.fixed_parts = () if config.encoder_trained else pretrained
        self.freeze()

    def connected(self, x_BChw: Tensor) -> Tensor:
        """Visual tokens (B, N, D) of x in the encoder's own range."""
        tokens_BVhw = self.patch_embedding(x_BChw)
        grid = (tokens_BVhw.shape[2], tokens_BVhw.shape[3])
        h_BND: Tensor = self.connector(self.encoder(tokens_BVhw.flatten(2).transpose(1, 2), grid))
        return h_BND
