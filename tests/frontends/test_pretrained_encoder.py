"""Encoders of timm by name, file and folder: DINOv2, DINOv3 and MAE as timm computes them, and what is refused.

Shapes: B images, N patch tokens, V encoder width.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins import WIDTH
from tests.checkpoints import edit_json, edit_weights, randomised, save_siglip, save_timm, truncate
from tests.tolerances import assert_sums_close, block_terms
from torch import Tensor

from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.encoder import RepresentationEncoder, pretrained_encoder
from tunalab.frontends.registry import build_frontend
from tunalab.settings.schema import FrontEndConfig
from tunalab.verification.encoders import of_timm

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2}
# The published forms at a tiny width: patches, class and register tokens, positions, normalisation of pixels.
DINOV2 = ("vit_small_patch14_reg4_dinov2", 14, {**SMALL, "img_size": 56})
DINOV3 = ("vit_small_patch16_dinov3", 16, {**SMALL, "img_size": 64})
MAE = ("vit_base_patch16_224.mae", 16, {**SMALL, "img_size": 64})
FORMS = pytest.mark.parametrize(("name", "patch", "arguments"), [DINOV2, DINOV3, MAE], ids=["dinov2", "dinov3", "mae"])


def front_end(encoder: str, patch: int, **settings: Any) -> VisualFrontEnd:
    config = FrontEndConfig(name="siglip", patch=patch, encoder=encoder, **settings)
    return build_frontend(config, WIDTH, 4 * patch, Components())


def features(frontend: VisualFrontEnd, image_BCHW: Tensor) -> Tensor:
    frontend.connector = torch.nn.Identity()
    with torch.no_grad():
        return frontend(image_BCHW)


def terms(patch: int) -> int:
    """The sums one after the other: patches, and three blocks over at most 16 patches and five other tokens."""
    return 3 * patch**2 + 3 * block_terms(width=24, mlp=4 * 24, length=21)


@FORMS
@pytest.mark.parametrize("grid", [(4, 4), (2, 5)])
def test_features_are_those_of_timm_without_class_and_register_tokens(
    name: str, patch: int, arguments: dict[str, Any], grid: tuple[int, int], tmp_path: Path
) -> None:
    library = save_timm(tmp_path, name, **arguments)
    height, width = grid[0] * patch, grid[1] * patch
    image_BCHW = torch.rand(2, 3, height, width) * 2 - 1
    frontend = front_end(str(tmp_path), patch, encoder_antialias=True)
    library.set_input_size((height, width))
    expected = of_timm(library, image_BCHW, block=1)
    assert expected.shape == (2, grid[0] * grid[1], 24)
    assert_sums_close(features(frontend.train(), image_BCHW), expected, terms(patch))


@FORMS
def test_architecture_by_name_and_weights_by_path(name: str, patch: int, arguments: dict[str, Any], tmp_path: Path) -> None:
    """The published name builds on the meta device; its weights come from where the setting says."""
    with torch.device("meta"):
        for given in (name, f"timm:{name}", f"timm:{name}@{tmp_path / 'nothing'}"):
            vit = pretrained_encoder(given, pretrained=True)
            assert all(parameter.is_meta for parameter in vit.parameters())
    RepresentationEncoder(vit)
    with pytest.raises(UserError, match="nothing is missing"):
        pretrained_encoder(f"timm:{name}@{tmp_path / 'nothing'}", pretrained=True)


def test_weights_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    import timm

    name = "vit_tiny_patch16_224"
    library = randomised(timm.create_model(name, num_classes=5))
    from safetensors.torch import save_file

    save_file({key: tensor.contiguous() for key, tensor in library.state_dict().items()}, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded = pretrained_encoder(f"timm:{name}@{path}", pretrained=True).state_dict()
        own = {key: tensor for key, tensor in library.state_dict().items() if not key.startswith("head.")}
        assert loaded.keys() == own.keys()
        assert all(torch.equal(loaded[key], own[key]) for key in own)


def test_random_weights_come_from_the_run_seed_only_on_request(tmp_path: Path) -> None:
    name, patch, arguments = MAE
    save_timm(tmp_path, name, **arguments)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(front_end(str(tmp_path), patch, encoder_pretrained=False).state_dict()["encoder.blocks.0.attn.qkv.weight"])
    stored = front_end(str(tmp_path), patch).state_dict()["encoder.blocks.0.attn.qkv.weight"]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], stored)


@pytest.mark.parametrize(("layer", "kept"), [(-1, 3), (-2, 2), (-3, 1)])
def test_blocks_behind_the_feature_layer_are_dropped(layer: int, kept: int, tmp_path: Path) -> None:
    name, patch, arguments = MAE
    library = save_timm(tmp_path, name, **arguments)
    frontend = front_end(str(tmp_path), patch, encoder_layer=layer)
    assert len(frontend.get_submodule("encoder.blocks")) == kept
    image_BCHW = torch.rand(1, 3, 64, 64)
    assert_sums_close(features(frontend, image_BCHW), of_timm(library, image_BCHW, 3 + layer), terms(patch))


def refusal(given: str, patch: int = 16, **settings: Any) -> str:
    with pytest.raises(UserError) as raised:
        front_end(given, patch, **settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_patch_size_is_the_models_own(tmp_path: Path) -> None:
    name, patch, arguments = DINOV2
    save_timm(tmp_path, name, **arguments)
    assert "frontend.patch=16 is not the encoder's patch size 14 (set frontend.patch=14)" in refusal(str(tmp_path))
    with pytest.raises(UserError, match="64.* is not cut exactly"):
        build_frontend(FrontEndConfig(name="siglip", patch=14, encoder=str(tmp_path)), WIDTH, 64, Components())
    assert "no feature layer -4" in refusal(str(tmp_path), 14, encoder_layer=-4)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    name, _, arguments = MAE
    weights = tmp_path / "model.safetensors"
    save_timm(tmp_path, name, **arguments)
    edit_weights(weights, **{"alien": torch.zeros(1), "cls_token": None})
    assert "1 missing: cls_token; 1 unexpected: alien" in refusal(str(tmp_path))
    save_timm(tmp_path, name, **arguments)
    edit_weights(weights, cls_token=torch.zeros(1, 1, 25))
    assert "cls_token (1, 1, 25) for (1, 1, 24)" in refusal(str(tmp_path))
    edit_weights(weights, cls_token=torch.full((1, 1, 24), float("nan")))
    assert "'cls_token' holds values that are not finite" in refusal(str(tmp_path))
    truncate(weights)
    assert "is damaged" in refusal(str(tmp_path))
    weights.unlink()
    assert f"frontend.encoder={tmp_path}: {weights} is missing" in refusal(str(tmp_path))
    save_timm(tmp_path, name, **arguments)
    edit_json(tmp_path / "config.json", architecture="vit_of_nobody")
    assert "timm cannot build it" in refusal(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert "neither timm's (architecture) nor transformers' (model_type)" in refusal(str(tmp_path))
    (tmp_path / "config.json").unlink()
    assert "config.json is missing" in refusal(str(tmp_path))


def test_the_folder_says_which_library_it_is_of(tmp_path: Path) -> None:
    save_siglip(tmp_path)
    assert type(pretrained_encoder(str(tmp_path), pretrained=True)).__name__ == "VisionTransformer"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"in_chans": 1}, "takes images of 1 channels, not of 3"),
        ({"patch_size": [16, 8]}, "the encoder's patches are of 16x8 pixels, but only square ones are supported"),
        ({"patch_drop_rate": 0.5}, "encoder drops features at random: set its drop rates to 0"),
        ({"pos_drop_rate": 0.5}, "encoder drops features at random: set its drop rates to 0"),
        ({"no_such_argument": 1}, "timm cannot build it"),
    ],
)
def test_a_folder_whose_arguments_make_another_encoder_is_refused(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    name, _, arguments = MAE
    save_timm(tmp_path, name, **arguments)
    edit_json(tmp_path / "config.json", model_args={**arguments, **changes})
    assert line in refusal(str(tmp_path), encoder_pretrained=False)


def test_rotary_positions_follow_the_image_whatever_the_folder_says(tmp_path: Path) -> None:
    """timm keeps those of one grid where it is not built for any size, and of a grid of as many patches they would pass unseen."""
    arguments = {**SMALL, "img_size": 64, "patch_size": 16, "dynamic_img_size": False}
    library = save_timm(tmp_path, "eva02_tiny_patch14_224", **arguments)
    with pytest.raises(UserError, match="the rotary positions of one grid only"):
        RepresentationEncoder(library)
    frontend = front_end(str(tmp_path), 16, encoder_antialias=True)
    image_BCHW = torch.rand(1, 3, 32, 128) * 2 - 1
    library.set_input_size((32, 128))
    assert_sums_close(features(frontend, image_BCHW), of_timm(library, image_BCHW, block=1), terms(16))


def test_names_without_an_encoder_are_refused() -> None:
    assert "timm cannot build it" in refusal("vit_of_nobody", encoder_pretrained=False)
    # Published weights are out of reach in tests; nothing else takes their place.
    assert "the Hub cannot be reached" in refusal("vit_base_patch16_224.mae")
    assert "is a ResNet, not a plain VisionTransformer or Eva" in refusal("resnet18", encoder_pretrained=False)
    assert "is no folder" in refusal("no/folder")
    assert "not in the local cache" in refusal("transformers:google/siglip2-so400m-patch16-512")
    distilled = refusal("deit_tiny_distilled_patch16_224", encoder_pretrained=False)
    assert "is a VisionTransformerDistilled with a _pos_embed of its own" in distilled
