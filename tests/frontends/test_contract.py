"""What every registered front-end must do, whatever it computes.

Shapes: B images, C channels, H W pixels, h w cells, N tokens, P numbers a token, D decoder width.
"""

from dataclasses import replace

import pytest
import torch
from stand_ins import WIDTH
from tests.variants import SETTINGS
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from tunalab.errors import UserError
from tunalab.frontends.checks import CHECKS, cells
from tunalab.frontends.components.store import Components
from tunalab.frontends.contract import TargetSpace, VisualFrontEnd, from_raster, patchify, to_raster, unpatchify
from tunalab.frontends.patch_embed import PatchEmbed
from tunalab.frontends.registry import FRONTENDS, build_frontend, frontend_class
from tunalab.settings.schema import FrontEndConfig


def test_the_registry_is_covered_and_holds_front_ends() -> None:
    assert {settings["name"] for settings in SETTINGS.values()} == set(FRONTENDS)
    assert all(issubclass(frontend_class(name), VisualFrontEnd) for name in FRONTENDS)


def test_token_counts_are_those_of_every_variant(frontend: VisualFrontEnd, components: Components) -> None:
    others = [build_frontend(FrontEndConfig(**settings), WIDTH, 32, components) for settings in SETTINGS.values()]
    assert {other.space.token_pixels for other in others} == {frontend.space.token_pixels}


@pytest.mark.parametrize("name", CHECKS)
def test_the_contract(name: str, frontend: VisualFrontEnd) -> None:
    CHECKS[name](frontend)


def test_a_linear_embedding_mixes_no_tokens() -> None:
    frontend, x_BChw = PatchEmbed(WIDTH, 8), torch.randn(1, 3, 32, 32)
    changed = x_BChw.clone()
    changed[:, :, 8:16, 16:24] += 1
    moved_N = (frontend.embed(changed) - frontend.embed(x_BChw))[0].norm(dim=-1)
    assert moved_N.nonzero().tolist() == [[1 * 4 + 2]]


def test_a_posterior_is_sampled_where_there_is_one(settings: FrontEndConfig, components: Components) -> None:
    drawn = replace(settings, vae_posterior="sample")
    if not settings.vae:
        refusal = f"^frontend.vae_posterior=sample: frontend.name={settings.name} has no VAE .choices: mean.$"
        with pytest.raises(UserError, match=refusal):
            build_frontend(drawn, WIDTH, 32, components)
        return
    torch.manual_seed(0)
    frontend, plain = build_frontend(drawn, WIDTH, 32, components), build_frontend(settings, WIDTH, 32, components)
    assert frontend.sampled and not plain.sampled
    image_BCHW = torch.rand(2, 3, 32, 32) * 2 - 1
    mean_BChw = frontend.to_space(image_BCHW)
    torch.testing.assert_close(mean_BChw, plain.to_space(image_BCHW))
    x_BChw = frontend.to_space(image_BCHW, torch.randn(mean_BChw.shape))
    assert x_BChw.shape == mean_BChw.shape and (x_BChw != mean_BChw).all()


def test_an_image_size_that_tokens_do_not_cut_is_refused(settings: FrontEndConfig, components: Components) -> None:
    refusal = f"data.image_size=36 is not cut exactly by frontend.name={settings.name}: .* .choices: 8, 16, 24"
    with pytest.raises(UserError, match=refusal):
        build_frontend(settings, WIDTH, 36, components)


class Forgetful(VisualFrontEnd):
    """Checks nothing itself, and gets wrong what ``wrong`` names."""

    wrong = ""

    def __init__(self) -> None:
        super().__init__(TargetSpace(channels=12, stride=2, patch=4), WIDTH)

    def encode(self, image_BCHW: Tensor) -> Tensor:
        return pixel_unshuffle(image_BCHW, 2)[:, : 11 if self.wrong == "encode" else 12]

    def decode(self, x_BChw: Tensor) -> Tensor:
        return pixel_shuffle(x_BChw, 2)[..., 1 if self.wrong == "decode" else 0 :]

    def forward(self, x_BChw: Tensor) -> Tensor:
        tokens_BNP = patchify(x_BChw, 2 if self.wrong == "forward" else 4)
        return tokens_BNP[:, :, :WIDTH]


def test_the_base_class_checks_for_a_front_end_that_does_not() -> None:
    frontend = Forgetful()
    image_BCHW, x_BChw = torch.zeros(1, 3, 16, 32), torch.zeros(1, 12, 8, 16)
    assert frontend.embed(frontend.to_space(image_BCHW)).shape == (1, 8, WIDTH)
    assert frontend.from_space(x_BChw).shape == image_BCHW.shape
    calls = {
        "not cut exactly": [
            lambda: frontend.to_space(image_BCHW[..., :-4]),
            lambda: frontend.from_space(x_BChw[..., :-2]),
            lambda: frontend.embed(x_BChw[..., :-2]),
        ],
        "channels, got": [
            lambda: frontend.to_space(image_BCHW[:, :1]),
            lambda: frontend.from_space(x_BChw[:, :3]),
            lambda: frontend.embed(x_BChw[:, :3]),
        ],
    }
    for message, refused in calls.items():
        for call in refused:
            with pytest.raises(UserError, match=message):
                call()


@pytest.mark.parametrize(("wrong", "shapes"), [("encode", "11, 8, 16"), ("decode", "3, 16, 31"), ("forward", "32, 24")])
def test_what_a_front_end_returns_is_checked_too(wrong: str, shapes: str) -> None:
    frontend = Forgetful()
    frontend.wrong = wrong
    with pytest.raises(UserError, match=rf"^Forgetful.{wrong} returned shape \(1, {shapes}\), its space needs \("):
        frontend.from_space(frontend.to_space(torch.zeros(1, 3, 16, 32)))
        frontend.embed(torch.zeros(1, 12, 8, 16))


def test_builds_on_the_meta_device(settings: FrontEndConfig, components: Components) -> None:
    with torch.device("meta"):
        planned = build_frontend(settings, WIDTH, 32, components)
        assert planned.embed(cells(planned, (4, 4))).shape == (2, 16, WIDTH)
    assert {tensor.device.type for tensor in planned.state_dict().values()} == {"meta"}
    built = build_frontend(settings, WIDTH, 32, components)
    assert {k: v.shape for k, v in planned.state_dict().items()} == {k: v.shape for k, v in built.state_dict().items()}


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(UserError, match=f"nonsense is not known .choices: {', '.join(sorted(FRONTENDS))}"):
        build_frontend(FrontEndConfig(name="nonsense"), WIDTH, 32)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patchify_and_raster_have_inverses(patch: int) -> None:
    x_BChw = torch.randn(2, 3, 8, 16)
    grid = (8 // patch, 16 // patch)
    torch.testing.assert_close(unpatchify(patchify(x_BChw, patch), patch, grid), x_BChw, rtol=0, atol=0)
    torch.testing.assert_close(from_raster(to_raster(x_BChw, patch), patch, grid), x_BChw, rtol=0, atol=0)
    same = torch.equal(patchify(x_BChw, patch), to_raster(x_BChw, patch))
    assert same == (patch == 1)


def test_patch_and_raster_cut_where_they_say() -> None:
    index_BChw = torch.arange(8 * 8).reshape(1, 1, 8, 8).float()
    assert patchify(index_BChw, 2)[0, 1].tolist() == [2, 3, 10, 11]
    assert to_raster(index_BChw, 2)[0, 1].tolist() == [4, 5, 6, 7]


def test_target_space() -> None:
    space = TargetSpace(channels=48, stride=16, patch=1)
    assert (space.token_dim, space.token_pixels, space.grid(32, 64)) == (48, 16, (2, 4))
    for size in [(0, 32), (32, 40)]:
        with pytest.raises(UserError):
            space.grid(*size)
