"""What every front-end must do, whatever it computes: run by the tests over the shipped ones, and by `tunalab check-frontend`.

Each check takes a front-end that was just built and raises :class:`Broken`, which says what was expected and what was found.

Shapes: B images, C channels, H W pixels, h w cells, N tokens, D decoder width.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tunalab.errors import UserError
from tunalab.frontends.contract import RGB, VisualFrontEnd

GRIDS = [(4, 4), (8, 8), (4, 8), (6, 2)]  # rows and columns of tokens
LOST = 0.05  # share of the variance of x that a codec may lose of its own pictures


class Broken(Exception):
    """A front-end that does not keep the contract."""


Check = Callable[[VisualFrontEnd], None]


def run_checks(build: Callable[[], VisualFrontEnd]) -> Iterator[tuple[str, str]]:
    """Name of each check, and what is wrong (empty: nothing). ``build`` is called for each, so that none sees another's traces."""
    every = {**CHECKS, "buffers that are not saved are the same each time": lambda _: not_saved_are_the_same(build)}
    for name, check in every.items():
        try:
            check(build())
            yield name, ""
        except (Broken, UserError) as error:
            yield name, str(error)
        except Exception as error:  # noqa: BLE001, of somebody's code, which may raise anything: the other checks still tell
            yield name, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def shapes(frontend: VisualFrontEnd) -> None:
    for grid in GRIDS:
        image_BCHW = images(frontend, grid)
        x_BChw = frontend.to_space(image_BCHW)
        frontend.embed(x_BChw)  # both of them compare what comes with what the space needs
        _expect(frontend.from_space(x_BChw).shape == image_BCHW.shape, f"from_space gives other shapes at {grid} tokens")


def rows_first(frontend: VisualFrontEnd) -> None:
    """Where the image changes, that token changes most."""
    frontend.eval()
    patch = frontend.space.patch
    for rows, columns in GRIDS[::2]:
        x_BChw = cells(frontend, (rows, columns), batch=1)
        before_ND = frontend.embed(x_BChw)[0]
        for row, column in [(0, 0), (0, columns - 1), (1, 2), (rows - 1, 0), (rows - 1, columns - 1)]:
            changed = x_BChw.clone()
            block = changed[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            block += 3 * torch.randn(block.shape, generator=torch.Generator().manual_seed(2))
            moved = int((frontend.embed(changed)[0] - before_ND).norm(dim=-1).argmax())
            place = row * columns + column
            _expect(moved == place, f"a change of the patch at row {row}, column {column} moves token {moved} most, not {place}")


def frozen_ways(frontend: VisualFrontEnd) -> None:
    x_BChw = frontend.to_space(images(frontend, GRIDS[0]).requires_grad_())
    _expect(not x_BChw.requires_grad, "to_space has a gradient")
    back_BCHW = frontend.from_space(cells(frontend, GRIDS[0]).requires_grad_())
    _expect(not back_BCHW.requires_grad, "from_space has a gradient")


def there_and_back(frontend: VisualFrontEnd) -> None:
    """Pixels come back as they were. A codec loses what it cannot hold, once: x of its own pictures stays, scale and shift too."""
    image_BCHW = images(frontend, GRIDS[0], batch=4)
    x_BChw = frontend.to_space(image_BCHW)
    if frontend.space.stride == 1 and frontend.space.channels == RGB:
        _expect(torch.equal(frontend.from_space(x_BChw), image_BCHW), "from_space(to_space(image)) is another image")
    again_BChw = frontend.to_space(frontend.from_space(x_BChw))
    lost = float((again_BChw - x_BChw).square().mean() / x_BChw.var())
    _expect(lost < LOST, f"to_space(from_space(x)) loses {lost:.2f} of the variance of x, at most {LOST} is expected")


def gradients(frontend: VisualFrontEnd) -> None:
    """In x and in every trainable parameter; frozen and fixed parts have none."""
    frontend.train()
    x_BChw = cells(frontend, GRIDS[0]).requires_grad_()
    h_BND = frontend.embed(x_BChw)
    # Weighted, because the plain sum of normalised tokens may not depend on their scale.
    (h_BND * torch.randn(h_BND.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    _expect(x_BChw.grad is not None and bool(x_BChw.grad.abs().sum() > 0), "embed has no gradient in x")
    for name, parameter in frontend.named_parameters():
        still = name.split(".")[0] in (*frontend.frozen_parts, *frontend.fixed_parts)
        _expect(
            parameter.requires_grad != still, f"{name} is {'' if still else 'not '}trained, against frozen_parts and fixed_parts"
        )
        _expect((parameter.grad is None) == still, f"{name} has {'a' if still else 'no'} gradient: embed does not use it as stated")


def frozen_in_evaluation_mode(frontend: VisualFrontEnd) -> None:
    frontend.train()
    for name in frontend.frozen_parts:
        training = any(module.training for module in frontend.get_submodule(name).modules())
        _expect(not training, f"{name} is in training mode")
    _expect(frontend.training, "the front-end stays in evaluation mode")


def parts_exist(frontend: VisualFrontEnd) -> None:
    named = {*frontend.connector_parts, *frontend.frozen_parts, *frontend.fixed_parts}
    children = dict(frontend.named_children())
    missing = sorted(named - set(children))
    _expect(not missing, f"there is no part {', '.join(missing)} (parts: {', '.join(children)})")
    both = sorted(set(frontend.connector_parts) & set(frontend.frozen_parts))
    _expect(not both, f"{', '.join(both)}: a connector part and a frozen one")
    frontend.blocks()


def deterministic(frontend: VisualFrontEnd) -> None:
    """In both modes, and free of the rest of the batch."""
    frontend.double()
    x_BChw = _same(lambda image: frontend.to_space(image), images(frontend, GRIDS[0], 3).double(), "to_space")
    h_BND = frontend.train().embed(x_BChw)
    _expect(torch.equal(frontend.eval().embed(x_BChw), h_BND), "embed differs between training and evaluation mode")
    _same(lambda x: frontend.embed(x), x_BChw, "embed")


def _same(call: Callable[[Tensor], Tensor], batch: Tensor, name: str) -> Tensor:
    first = call(batch)
    _expect(torch.equal(call(batch), first), f"{name} is another each time")
    alone = torch.allclose(call(batch[1:2])[0], first[1], rtol=1e-10, atol=1e-10)
    _expect(alone, f"{name} of an image depends on the other images of the batch")
    return first


def odd_sizes_are_refused(frontend: VisualFrontEnd) -> None:
    side = frontend.space.token_pixels
    if side == 1:
        return
    for height, width in [(4 * side + side // 2, 4 * side), (4 * side, 4 * side + side // 2)]:
        refusal = _refusal(lambda height=height, width=width: frontend.to_space(torch.zeros(1, RGB, height, width)))  # type: ignore[misc]
        _expect("not cut exactly" in refusal, f"images of {height}x{width} pixels are not refused")


def wrong_channels_are_refused(frontend: VisualFrontEnd) -> None:
    space = frontend.space
    wrong = torch.zeros(1, space.channels + 1, 4 * space.patch, 4 * space.patch)
    _expect("channels" in _refusal(lambda: frontend.embed(wrong)), "embed takes a wrong number of channels")
    _expect("channels" in _refusal(lambda: frontend.from_space(wrong)), "from_space takes a wrong number of channels")
    grey = torch.zeros(1, 1, 4 * space.token_pixels, 4 * space.token_pixels)
    _expect("images of 3 channels, got 1" in _refusal(lambda: frontend.to_space(grey)), "to_space takes images of one channel")


def not_saved_are_the_same(build: Callable[[], VisualFrontEnd]) -> None:
    """A model that is loaded is built anew, and finds in its file what is saved: other buffers must be what they were."""
    found = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            frontend = build()
        saved = frontend.state_dict().keys()
        found.append({name: buffer for name, buffer in frontend.named_buffers() if name not in saved})
    differing = [name for name, buffer in found[0].items() if not torch.equal(buffer, found[1][name])]
    _expect(not differing, f"{', '.join(differing)}: random, and not saved with the model (register_buffer(..., persistent=True))")


CHECKS: dict[str, Check] = {
    "shapes fit the stated space": shapes,
    "tokens are row-major": rows_first,
    "to_space and from_space have no gradient": frozen_ways,
    "from_space undoes to_space": there_and_back,
    "embed has a gradient in x and in all that is trained": gradients,
    "frozen parts stay in evaluation mode": frozen_in_evaluation_mode,
    "parts that are named exist": parts_exist,
    "deterministic, free of mode and batch": deterministic,
    "sizes that tokens do not cut are refused": odd_sizes_are_refused,
    "wrong channels are refused": wrong_channels_are_refused,
}


def images(frontend: VisualFrontEnd, grid: tuple[int, int], batch: int = 2) -> Tensor:
    """(B, 3, H, W) in [-1, 1], of a grid of (rows, columns) of tokens."""
    height, width = (side * frontend.space.token_pixels for side in grid)
    return torch.rand((batch, RGB, height, width), generator=torch.Generator().manual_seed(0)) * 2 - 1


def cells(frontend: VisualFrontEnd, grid: tuple[int, int], batch: int = 2) -> Tensor:
    """Noise (B, C, h, w) in the space of the front-end."""
    space = frontend.space
    height, width = (side * space.patch for side in grid)
    return torch.randn((batch, space.channels, height, width), generator=torch.Generator().manual_seed(1))


def _refusal(call: Callable[[], Tensor]) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)
