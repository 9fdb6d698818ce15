"""Pretrained encoders of timm: the features of our trunk beside those that timm computes from the same weights.

Shapes: B images, H W pixels, N patch tokens, V encoder width.
"""

from copy import deepcopy
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.frontends.encoder import FEATURE_LAYER, RepresentationEncoder, pretrained_encoder
from tunalab.frontends.registry import build_frontend
from tunalab.settings.schema import FrontEndConfig
from tunalab.verification import Table

# The published architectures, but for depth and width: three blocks show what any number does.
SMALL: dict[str, Any] = {"embed_dim": 96, "depth": 3, "num_heads": 2}
LARGEST = 1e-4  # difference of features of about unit size

WORKS = (
    "vit_so400m_patch16_siglip_512.v2_webli",
    "vit_base_patch16_siglip_224.v2_webli",
    "vit_so400m_patch14_siglip_378.webli",
    "vit_base_patch16_224.augreg_in21k",
    "vit_base_patch16_224.mae",
    "deit3_small_patch16_224.fb_in22k_ft_in1k",
    "vit_base_patch16_clip_224.openai",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch16_dinov3.lvd1689m",
    "eva_giant_patch14_224.clip_ft_in1k",
    "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k",
    "eva02_base_patch16_clip_224.merged2b",
    "vit_pe_core_base_patch16_224.fb",
    "vit_pe_spatial_base_patch16_512.fb",
    "vit_base_patch16_rope_reg1_gap_256.sbb_in1k",
    "beit3_base_patch16_224.in22k_ft_in1k",
)
REFUSED = (
    "vit_base_patch16_rope_mixed_224.naver_in1k",
    "beit_base_patch16_224.in22k_ft_in22k",
    "deit_base_distilled_patch16_224.fb_in1k",
    "samvit_base_patch16.sa1b",
    "naflexvit_base_patch16_siglip.v2_webli",
    "hiera_tiny_224.mae",
    "aimv2_large_patch14_224.apple_pt",
    "vit_tiny_r_s16_p8_224.augreg_in21k",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "convnext_tiny.dinov3_lvd1689m",
)


@dataclass(frozen=True)
class Compared:
    """``positions`` and ``tokens`` of the encoder in words; the largest difference of a feature by image size (H, W)."""

    positions: str
    tokens: str
    differences: dict[tuple[int, int], float]


def tables() -> list[Table]:
    rows = []
    for name in WORKS:
        found = compare(name)
        works = all(difference <= LARGEST for difference in found.differences.values())
        cells = [f"{_shown(difference)} at {height}x{width}" for (height, width), difference in found.differences.items()]
        rows.append([f"`{name}`", found.positions, found.tokens, "works" if works else "differs", *cells])
    rows += [[f"`{name}`", "", "", f"refused: {refusal(name)}", "", ""] for name in REFUSED]
    about = (
        f"Architectures of timm with random weights, at width {SMALL['embed_dim']} and {SMALL['depth']} blocks. What "
        "the front-end `siglip` computes before its connector, with `frontend.encoder_antialias=true`, is compared with "
        f"`forward_intermediates` of timm at the feature layer {FEATURE_LAYER}: the patch tokens, row by row, of a square "
        "image and of one half as high and twice as wide as the published size. The last two columns hold the largest "
        f"difference of a feature; it works where that is at most {LARGEST:g}."
    )
    columns = ["encoder", "positions", "tokens besides patches", "result", "square", "wide"]
    return [Table("Encoders of timm", about, columns, rows)]


def compare(name: str, sizes: dict[str, Any] | None = None) -> Compared:
    """Our features of ``name``, as a folder that timm saved, against timm's. ``sizes``: of the small model."""
    import timm
    from timm.models import save_for_hf

    arguments = SMALL | (sizes or {})
    library = _randomised(timm.create_model(name, pretrained=False, **arguments))
    patch, grid = library.patch_embed.patch_size[0], library.patch_embed.grid_size[0]
    differences = {}
    with TemporaryDirectory() as folder:
        save_for_hf(library, folder, model_args=arguments, safe_serialization=True)
        settings = FrontEndConfig(name="siglip", patch=patch, encoder=folder, encoder_antialias=True)
        frontend = build_frontend(settings, 8, grid * patch, Components())
    frontend.connector = torch.nn.Identity()
    for rows, columns in ((3 * grid // 4, 3 * grid // 4), (grid // 2, 2 * grid)):
        size = (rows * patch, columns * patch)
        theirs = deepcopy(library)  # whose positions are replaced by those of this size
        theirs.set_input_size(size)
        image_BCHW = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            difference_BNV = frontend(image_BCHW) - of_timm(theirs, image_BCHW, arguments["depth"] + FEATURE_LAYER)
        differences[size] = difference_BNV.abs().max().item()
    return Compared(_positions(library), _tokens(library), differences)


def of_timm(model: Any, image_BCHW: Tensor, block: int) -> Tensor:
    """The block's patch tokens (B, N, V) as timm computes them, for RGB in [-1, 1]."""
    mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    normalised_BCHW = (image_BCHW / 2 + 0.5 - mean) / std
    features: list[Tensor] = model.forward_intermediates(
        normalised_BCHW, indices=[block], output_fmt="NLC", intermediates_only=True
    )
    return features[0]


def refusal(name: str) -> str:
    """The line that a user reads. Raises AssertionError when the encoder is taken."""
    try:
        with torch.device("meta"):
            RepresentationEncoder(pretrained_encoder(name, pretrained=False))
    except UserError as error:
        return str(error).removeprefix(f"frontend.encoder={name} ").removeprefix(f"frontend.encoder={name}: ")
    raise AssertionError(f"{name} is not refused")


def _randomised(model: Any) -> Any:
    """Every parameter moved: many start at 0 or 1, where a wrong place would not show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) / 10
    return model.eval()


def _shown(difference: float) -> str:
    """Not the digits of one machine: what counts is on which side of the limit it lies."""
    return f"below {LARGEST:g}" if difference <= LARGEST else f"{difference:.1e}"


def _positions(model: Any) -> str:
    rotary = getattr(model, "rope", None) is not None
    return " and ".join(kind for kind, has in (("learnt grid", model.pos_embed is not None), ("rotary", rotary)) if has)


def _tokens(model: Any) -> str:
    registers = 0 if model.reg_token is None else model.reg_token.shape[1]
    counted = ("class", model.cls_token is not None), (f"{registers} register{'s' * (registers > 1)}", registers)
    return ", ".join(name for name, has in counted if has) or "none"
