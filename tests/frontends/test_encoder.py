"""The encoder trunk against timm's own forward pass, the position grid, and what a build refuses."""

import pytest
import torch
from stand_ins import WIDTH
from tests.variants import settings_of
from timm.models.vision_transformer import VisionTransformer

from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.frontends.encoder import RepresentationEncoder, interpolate_positions
from tunalab.frontends.registry import build_frontend
from tunalab.frontends.siglip import Siglip
from tunalab.settings.schema import FrontEndConfig

PLAIN = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 0}


@pytest.mark.parametrize(
    "options",
    [
        {"class_token": False, "global_pool": "map"},
        {"class_token": True, "global_pool": "token", "reg_tokens": 2},
        {"class_token": True, "global_pool": "token", "reg_tokens": 2, "no_embed_class": True},
        {"class_token": True, "global_pool": "token", "pre_norm": True},
    ],
)
def test_features_are_those_of_timm(options: dict[str, object]) -> None:
    vit = VisionTransformer(**PLAIN, **options).double().eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.3)
    image_BCHW = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    (expected_BNV,) = vit.get_intermediate_layers(image_BCHW, n=[1], norm=False)
    tokens_BNV = vit.patch_embed(image_BCHW)
    torch.testing.assert_close(RepresentationEncoder(vit)(tokens_BNV, (4, 4)), expected_BNV)


def test_positions_follow_the_picture() -> None:
    rows, columns = torch.meshgrid(torch.arange(4.0).double(), torch.arange(4.0).double(), indexing="ij")
    positions = torch.stack([rows.flatten(), columns.flatten()], dim=1)[None]
    larger = interpolate_positions(positions, (4, 4), (8, 6)).reshape(8, 6, 2)
    assert (larger[1:, :, 0] > larger[:-1, :, 0]).all() and (larger[:, 1:, 1] > larger[:, :-1, 1]).all()
    assert larger[:, 0, 1].std() < 1e-12 and larger[0, :, 0].std() < 1e-12
    assert interpolate_positions(positions, (4, 4), (4, 4)) is positions


def test_statistics_of_the_pretrained_model_are_respected() -> None:
    vit = VisionTransformer(**PLAIN, class_token=False, global_pool="avg")
    vit.pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    frontend = Siglip(vit, WIDTH, FrontEndConfig(name="siglip", patch=8)).double()
    image_BCHW = torch.rand(1, 3, 32, 32, dtype=torch.float64) * 2 - 1
    mean, std = torch.tensor([[0.4, 0.5, 0.6], [0.2, 0.25, 0.3]])[:, :, None, None]  # kept in float32
    expected_BNV = vit.patch_embed((image_BCHW * 0.5 + 0.5 - mean) / std)
    features_BND = frontend.connector(frontend.encoder(expected_BNV, (4, 4)))
    torch.testing.assert_close(frontend.embed(image_BCHW), features_BND)


def test_pretrained_weights_arrive_and_random_ones_only_on_request(components: Components) -> None:
    loaded = build_frontend(settings_of("siglip"), WIDTH, 32, components).get_submodule("encoder").state_dict()
    stored = components.encoder().state_dict()
    assert all(torch.equal(loaded[name], stored[name]) for name in loaded)
    fresh = FrontEndConfig(name="siglip", patch=8, encoder="tiny", encoder_pretrained=False)
    other = build_frontend(fresh, WIDTH, 32, components).get_submodule("encoder").state_dict()
    assert not torch.equal(other["blocks.0.attn.qkv.weight"], loaded["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FrontEndConfig(name="siglip", patch=4, encoder="tiny"), "patch=4 is not the encoder's patch size 8"),
        (FrontEndConfig(name="siglip", patch=8), "frontend.encoder is empty"),
        (FrontEndConfig(name="siglip", patch=8, encoder="no_such_vit"), "frontend.encoder=no_such_vit: timm cannot"),
        (FrontEndConfig(name="siglip", encoder="resnet18", encoder_pretrained=False), "is a ResNet, not a plain"),
        (FrontEndConfig(name="vae_siglip", patch=1, encoder="tiny"), "frontend.vae is empty"),
        (FrontEndConfig(name="vae_siglip", patch=1, encoder="tiny", vae="no/folder"), "not in the local cache"),
    ],
)
def test_what_cannot_be_built_is_named(config: FrontEndConfig, message: str, components: Components) -> None:
    with pytest.raises(UserError, match=message) as raised:
        build_frontend(config, WIDTH, 32, components)
    assert "\n" not in str(raised.value)


def test_a_model_of_timm_by_name(components: Components) -> None:
    config = FrontEndConfig(name="siglip", patch=16, encoder="vit_tiny_patch16_224", encoder_pretrained=False)
    frontend = build_frontend(config, WIDTH, 32, components)
    assert frontend.embed(torch.zeros(1, 3, 32, 48)).shape == (1, 6, WIDTH)


def test_too_shallow_an_encoder_is_refused() -> None:
    vit = VisionTransformer(**{**PLAIN, "depth": 1}, class_token=False, global_pool="map")
    with pytest.raises(UserError, match="no feature layer -2"):
        RepresentationEncoder(vit)


@pytest.mark.parametrize("rates", [{"drop_path_rate": 0.1}, {"proj_drop_rate": 0.1}, {"attn_drop_rate": 0.1}])
def test_an_encoder_that_draws_at_random_is_refused(rates: dict[str, float]) -> None:
    with pytest.raises(UserError, match="drops features at random: set its drop rates to 0"):
        RepresentationEncoder(VisionTransformer(**PLAIN, **rates))
