"""What every registered front-end must do, whatever it computes.

Shapes: B images, C channels, H W pixels, h w cells, N tokens, P numbers a token, D decoder width.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stand_ins import TINY, WIDTH
from tests.variants import SETTINGS
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.frontends.contract import TargetSpace, VisualFrontEnd, from_raster, patchify, to_raster, unpatchify
from tunalab.frontends.patch_embed import PatchEmbed
from tunalab.frontends.registry import FRONTENDS, build_frontend, frontend_class
from tunalab.settings.schema import FrontEndConfig

SIZES = [(32, 32), (64, 64), (32, 64), (48, 16)]


def cells(frontend: VisualFrontEnd, height: int, width: int, batch: int = 2) -> Tensor:
    space = frontend.space
    torch.manual_seed(1)
    return torch.randn(batch, space.channels, height // space.stride, width // space.stride)


def test_the_registry_is_covered_and_holds_front_ends() -> None:
    assert {settings["name"] for settings in SETTINGS.values()} == set(FRONTENDS)
    assert all(issubclass(frontend_class(name), VisualFrontEnd) for name in FRONTENDS)


def test_token_counts_are_those_of_every_variant(frontend: VisualFrontEnd, components: Components) -> None:
    others = [build_frontend(FrontEndConfig(**settings), WIDTH, 32, components) for settings in SETTINGS.values()]
    assert {other.space.token_pixels for other in others} == {frontend.space.token_pixels}


@pytest.mark.parametrize("size", SIZES)
def test_shapes(frontend: VisualFrontEnd, size: tuple[int, int]) -> None:
    image_BCHW = torch.rand(2, 3, *size) * 2 - 1
    x_BChw = frontend.to_space(image_BCHW)
    assert x_BChw.shape == cells(frontend, *size).shape
    rows, columns = frontend.space.grid(*size)
    assert frontend.embed(x_BChw).shape == (2, rows * columns, WIDTH)
    assert frontend.from_space(x_BChw).shape == image_BCHW.shape


@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
def test_tokens_are_row_major(frontend: VisualFrontEnd, size: tuple[int, int]) -> None:
    frontend.eval()
    x_BChw = cells(frontend, *size, batch=1)
    rows, columns = frontend.space.grid(*size)
    patch = frontend.space.patch
    before_ND = frontend.embed(x_BChw)[0]
    for row, column in [(0, 0), (0, columns - 1), (1, 2), (rows - 1, 0), (rows - 1, columns - 1)]:
        changed = x_BChw.clone()
        block = changed[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        block += 3 * torch.randn(block.shape, generator=torch.Generator().manual_seed(2))
        moved_N = (frontend.embed(changed)[0] - before_ND).norm(dim=-1)
        assert moved_N.argmax() == row * columns + column
        if isinstance(frontend, PatchEmbed):  # nothing mixes tokens
            assert (moved_N > 0).sum() == 1


def test_mapping_to_the_space_and_back_has_no_gradient(frontend: VisualFrontEnd) -> None:
    image_BCHW = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    x_BChw = frontend.to_space(image_BCHW)
    assert not x_BChw.requires_grad
    assert not frontend.from_space(cells(frontend, 32, 32).requires_grad_()).requires_grad


def test_what_from_space_shows_is_mapped_back_to_where_it_came_from(frontend: VisualFrontEnd) -> None:
    image_BCHW = torch.rand(4, 3, 32, 32) * 2 - 1
    x_BChw = frontend.to_space(image_BCHW)
    if frontend.space.stride == 1:  # pixels
        torch.testing.assert_close(frontend.from_space(x_BChw), image_BCHW, rtol=0, atol=0)
    # A codec loses what it cannot hold, once: latents of its own pictures stay, with their scale and their shift.
    again_BChw = frontend.to_space(frontend.from_space(x_BChw))
    assert (again_BChw - x_BChw).square().mean() < 0.05 * x_BChw.var()


def test_embed_is_differentiable_in_x_and_in_every_trainable_parameter(frontend: VisualFrontEnd) -> None:
    frontend.train()
    x_BChw = cells(frontend, 32, 32).requires_grad_()
    h_BND = frontend.embed(x_BChw)
    # Weighted, because the plain sum of normalised tokens may not depend on their scale.
    (h_BND * torch.randn(h_BND.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    assert x_BChw.grad is not None and x_BChw.grad.abs().sum() > 0
    for name, parameter in frontend.named_parameters():
        frozen = name.split(".")[0] in frontend.frozen_parts
        assert parameter.requires_grad != frozen, name
        # A trainable parameter without a gradient is one that embed does not use.
        assert (parameter.grad is None) == frozen, name


def test_frozen_parts_stay_in_evaluation_mode(frontend: VisualFrontEnd) -> None:
    frontend.train()
    for name in frontend.frozen_parts:
        assert not any(module.training for module in frontend.get_submodule(name).modules())
    assert frontend.training


def test_parts_that_are_named_exist(frontend: VisualFrontEnd) -> None:
    children = dict(frontend.named_children())
    assert set(frontend.connector_parts) | set(frontend.frozen_parts) <= set(children)
    assert not set(frontend.connector_parts) & set(frontend.frozen_parts)


def test_deterministic_in_both_modes_and_free_of_the_batch(frontend: VisualFrontEnd) -> None:
    frontend.double()
    image_BCHW = torch.rand(3, 3, 32, 32, dtype=torch.float64) * 2 - 1
    x_BChw = frontend.to_space(image_BCHW)
    torch.testing.assert_close(frontend.to_space(image_BCHW), x_BChw, rtol=0, atol=0)
    torch.testing.assert_close(frontend.to_space(image_BCHW[1:2])[0], x_BChw[1], rtol=1e-10, atol=1e-10)
    h_BND = frontend.train().embed(x_BChw)
    torch.testing.assert_close(frontend.eval().embed(x_BChw), h_BND, rtol=0, atol=0)
    torch.testing.assert_close(frontend.embed(x_BChw[1:2])[0], h_BND[1], rtol=1e-10, atol=1e-10)


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


@pytest.mark.parametrize("size", [(36, 32), (32, 36)])
def test_odd_sizes_are_refused(frontend: VisualFrontEnd, size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="not cut exactly"):
        frontend.embed(frontend.to_space(torch.zeros(1, 3, *size)))


def test_an_image_size_that_tokens_do_not_cut_is_refused(settings: FrontEndConfig, components: Components) -> None:
    refusal = f"data.image_size=36 is not cut exactly by frontend.name={settings.name}: .* .choices: 8, 16, 24"
    with pytest.raises(UserError, match=refusal):
        build_frontend(settings, WIDTH, 36, components)


def test_wrong_channels_are_refused(frontend: VisualFrontEnd) -> None:
    space = frontend.space
    wrong = torch.zeros(1, space.channels + 1, 4 * space.patch, 4 * space.patch)
    for take in (frontend.embed, frontend.from_space):
        with pytest.raises(UserError, match="channels"):
            take(wrong)
    with pytest.raises(UserError, match="images of 3 channels, got 1"):
        frontend.to_space(torch.zeros(1, 1, 32, 32))


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


def test_builds_on_the_meta_device_without_any_file(settings: FrontEndConfig, components: Components, tmp_path: Path) -> None:
    with torch.device("meta"):
        planned = build_frontend(settings, WIDTH, 32, Components(TINY, tmp_path / "nothing"))
        assert planned.embed(cells(planned, 32, 32)).shape == (2, 16, WIDTH)
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
