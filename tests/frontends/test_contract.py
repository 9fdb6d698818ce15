"""What every registered front-end must do, whatever it computes.

Shapes: B images, C channels, H W pixels, h w cells, N tokens, P numbers a token, D decoder width.
"""

from pathlib import Path

import pytest
import torch
from stand_ins import CONFIGS, TINY, WIDTH
from torch import Tensor

from tunalab.config import FrontEndConfig
from tunalab.errors import UserError
from tunalab.frontends.components.handle import Components
from tunalab.frontends.contract import TargetSpace, VisualFrontEnd, from_raster, patchify, to_raster, unpatchify
from tunalab.frontends.registry import FRONTENDS, build_frontend

SIZES = [(32, 32), (64, 64), (32, 64), (48, 16)]


def cells(frontend: VisualFrontEnd, height: int, width: int, batch: int = 2) -> Tensor:
    space = frontend.space
    torch.manual_seed(1)
    return torch.randn(batch, space.channels, height // space.stride, width // space.stride)


def test_the_registry_is_covered() -> None:
    assert set(CONFIGS) == set(FRONTENDS)


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
        if not frontend.connector_parts:  # nothing mixes tokens
            assert (moved_N > 0).sum() == 1


def test_mapping_to_the_space_and_back_has_no_gradient(frontend: VisualFrontEnd) -> None:
    image_BCHW = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    x_BChw = frontend.to_space(image_BCHW)
    assert not x_BChw.requires_grad
    assert not frontend.from_space(cells(frontend, 32, 32).requires_grad_()).requires_grad
    if frontend.space.stride == 1:  # pixels
        torch.testing.assert_close(frontend.from_space(x_BChw), image_BCHW.detach(), rtol=0, atol=0)


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
    image_BCHW = torch.rand(3, 3, 32, 32) * 2 - 1
    x_BChw = frontend.to_space(image_BCHW)
    torch.testing.assert_close(frontend.to_space(image_BCHW), x_BChw, rtol=0, atol=0)
    h_BND = frontend.train().embed(x_BChw)
    torch.testing.assert_close(frontend.eval().embed(x_BChw), h_BND, rtol=0, atol=0)
    torch.testing.assert_close(frontend.embed(x_BChw[1:2])[0], h_BND[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(36, 32), (32, 36)])
def test_odd_sizes_are_refused(frontend: VisualFrontEnd, size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="not cut exactly"):
        frontend.embed(frontend.to_space(torch.zeros(1, 3, *size)))


@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_an_image_size_that_tokens_do_not_cut_is_refused(name: str, components: Components) -> None:
    with pytest.raises(UserError, match="36x36 pixels is not cut exactly"):
        build_frontend(CONFIGS[name], WIDTH, 36, components)


def test_wrong_channels_are_refused(frontend: VisualFrontEnd) -> None:
    space = frontend.space
    with pytest.raises(UserError, match="channels"):
        frontend.embed(torch.zeros(1, space.channels + 1, 4 * space.patch, 4 * space.patch))


@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_builds_on_the_meta_device_without_any_file(name: str, components: Components, tmp_path: Path) -> None:
    with torch.device("meta"):
        planned = build_frontend(CONFIGS[name], WIDTH, 32, Components(TINY, tmp_path / "nothing"))
        assert planned.embed(cells(planned, 32, 32)).shape == (2, 16, WIDTH)
    assert {tensor.device.type for tensor in planned.state_dict().values()} == {"meta"}
    built = build_frontend(CONFIGS[name], WIDTH, 32, components)
    assert {k: v.shape for k, v in planned.state_dict().items()} == {k: v.shape for k, v in built.state_dict().items()}


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(UserError, match="nonsense is not known .choices: patch_embed, siglip, vae_siglip"):
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
