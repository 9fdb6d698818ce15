"""The contract of a visual front-end, and the geometry it shares with the flow head.

Shapes: B images, C channels of the target space, h w its cells, N visual tokens (row-major), P token_dim, D decoder width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self, final

import torch
from torch import Tensor, nn

from tunalab.data.sequence import visual_grid
from tunalab.errors import UserError
from tunalab.frontends.looks import Look
from tunalab.settings.schema import FrontEndConfig

if TYPE_CHECKING:
    from tunalab.frontends.components.store import Components

RGB = 3  # channels of an image


@dataclass(frozen=True)
class TargetSpace:
    """The space images are generated in, and how it is cut into visual tokens.

    channels: 3 for pixels, the latent channels for a VAE.
    stride: image pixels per cell along a side (1 for pixels, the VAE's factor otherwise).
    patch: cells per visual token along a side.
    """

    channels: int
    stride: int
    patch: int

    @property
    def token_dim(self) -> int:
        return self.channels * self.patch**2

    @property
    def token_pixels(self) -> int:
        """Image pixels per visual token along a side: what must be equal for token counts to match across front-ends."""
        return self.stride * self.patch

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of visual tokens of an image of ``height`` x ``width`` pixels.

        Raises UserError when a side is not a multiple of ``token_pixels``: padding or cropping would be silent.
        """
        return visual_grid(height, width, self.token_pixels)


def signed(pixels: Tensor) -> Tensor:
    """uint8 pixels in any layout as float32 in [-1, 1]: the range in which front-ends take and give images."""
    return pixels.float() / 127.5 - 1


def patchify(x_BChw: Tensor, patch: int) -> Tensor:
    """Cut into non-overlapping patches: (B, C, h, w) -> (B, N, patch*patch*C), each patch flattened as (row, column, C)."""
    B, C, h, w = x_BChw.shape
    cut = x_BChw.reshape(B, C, h // patch, patch, w // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(B, (h // patch) * (w // patch), patch * patch * C)


def unpatchify(x_BNP: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Inverse of :func:`patchify`: (B, N, patch*patch*C) -> (B, C, h, w) for a grid of (rows, columns)."""
    B, N, P = x_BNP.shape
    rows, columns = grid
    if rows * columns != N or P % patch**2:
        raise ValueError(f"{N} tokens of {P} numbers do not fill a grid of {rows}x{columns} patches of side {patch}")
    cut = x_BNP.reshape(B, rows, columns, patch, patch, P // patch**2)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(B, P // patch**2, rows * patch, columns * patch)


def to_raster(x_BChw: Tensor, patch: int) -> Tensor:
    """The official pixel checkpoints' target layout: the image row by row in runs of patch*patch cells (B, N, patch*patch*C).

    Token n does not predict the patch it sees but the n-th run of raster pixels; kept only so that those weights can be used.
    """
    B, C, h, w = x_BChw.shape
    return x_BChw.permute(0, 2, 3, 1).reshape(B, (h * w) // patch**2, patch * patch * C)


def from_raster(x_BNP: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Inverse of :func:`to_raster`."""
    B, N, P = x_BNP.shape
    rows, columns = grid
    return x_BNP.reshape(B, rows * patch, columns * patch, P // patch**2).permute(0, 3, 1, 2)


class VisualFrontEnd(nn.Module, ABC):
    """Between RGB images and the decoder's visual tokens.

    Callers use :meth:`to_space`, :meth:`from_space` and :meth:`embed`. They check what goes in and what comes out, so that a
    front-end has no check to write: it writes :meth:`forward`, and :meth:`encode` and :meth:`decode` where it does not generate in
    pixels. No timestep, text, mask or loss enters a front-end: those belong to the model and to the objective, which are equal for
    all.

    Attributes: ``space``; ``width`` of the decoder; ``connector_parts``: names of the direct children that connect a
    pretrained encoder to the decoder (trained alone in the connector stage; empty when there is no such stage);
    ``frozen_parts``: names of the direct children that are never trained nor stored in checkpoints; ``fixed_parts``: of those that
    an experiment keeps as they start, stored with the rest because other experiments train them; ``block_parts``: names of lists of
    blocks, whose activations may be computed again in the backward pass instead of being kept.
    ``look``: of a class from outside the package, how it is shown (looks.py); without one it goes by the name of its class.
    """

    look: ClassVar[Look] = Look()
    connector_parts: tuple[str, ...] = ()
    frozen_parts: tuple[str, ...] = ()
    fixed_parts: tuple[str, ...] = ()
    block_parts: tuple[str, ...] = ()

    def __init__(self, space: TargetSpace, width: int) -> None:
        super().__init__()
        self.space = space
        self.width = width

    @classmethod
    def build(cls, config: FrontEndConfig, width: int, components: "Components") -> Self:
        """From a variant's settings; a front-end that takes more than (width, patch) says here where it comes from."""
        return cls(width, config.patch)  # type: ignore[arg-type, call-arg]

    @abstractmethod
    def forward(self, x_BChw: Tensor) -> Tensor:
        """What :meth:`embed` returns, for x that fits the space. Trainable."""

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """What :meth:`to_space` returns, for images that tokens cut exactly; pixels stay as they are."""
        return image_BCHW.detach()

    @property
    def sampled(self) -> bool:
        """Whether training sees a random x of each image (of a VAE's posterior), which :meth:`draw` makes, instead of the one x."""
        return False

    def draw(self, image_BCHW: Tensor, noise_BChw: Tensor) -> Tensor:
        """What :meth:`to_space` returns with noise; asked for where :attr:`sampled` alone."""
        raise NotImplementedError(f"{type(self).__name__} has one x an image")

    def decode(self, x_BChw: Tensor) -> Tensor:
        """What :meth:`from_space` returns, for x that fits the space; pixels stay as they are."""
        return x_BChw.detach()

    @final
    @torch.no_grad()
    def to_space(self, image_BCHW: Tensor, noise_BChw: Tensor | None = None) -> Tensor:
        """RGB in [-1, 1], (B, 3, H, W), to x (B, C, h, w) in the space images are generated in. Frozen.

        ``noise_BChw``, standard normal: which x of those that are drawn in training, where :attr:`sampled`.
        Raises UserError: not RGB, a size that tokens do not cut exactly, or an x that is not of the stated space.
        """
        batch, channels, height, width = image_BCHW.shape
        if channels != RGB:
            raise UserError(f"{type(self).__name__} takes images of {RGB} channels, got {channels}")
        self.space.grid(height, width)
        x_BChw = self.encode(image_BCHW) if noise_BChw is None else self.draw(image_BCHW, noise_BChw)
        stride = self.space.stride
        self._expect("encode", x_BChw, (batch, self.space.channels, height // stride, width // stride))
        return x_BChw

    @final
    @torch.no_grad()
    def from_space(self, x_BChw: Tensor) -> Tensor:
        """Back to RGB (B, 3, H, W), not clamped. Frozen. Raises UserError as :meth:`to_space`."""
        self.token_grid(x_BChw)
        image_BCHW = self.decode(x_BChw)
        height, width = (side * self.space.stride for side in x_BChw.shape[-2:])
        self._expect("decode", image_BCHW, (len(x_BChw), RGB, height, width))
        return image_BCHW

    @final
    def embed(self, x_BChw: Tensor) -> Tensor:
        """Clean or noisy x (B, C, h, w) to visual tokens (B, N, width), row-major. Trainable.

        Raises UserError: channels or size of x do not fit the space, or the tokens are not as many or as wide as they must be.
        """
        rows, columns = self.token_grid(x_BChw)
        # Called as a module, so that hooks (of sharded training) see it.
        h_BND = self(x_BChw)
        self._expect("forward", h_BND, (len(x_BChw), rows * columns, self.width))
        return h_BND

    def token_grid(self, x_BChw: Tensor) -> tuple[int, int]:
        """Rows and columns of visual tokens of x. Raises UserError when its channels or its size do not fit the space."""
        channels, height, width = x_BChw.shape[1:]
        if channels != self.space.channels:
            raise UserError(f"{type(self).__name__} takes {self.space.channels} channels, got {channels}")
        return self.space.grid(height * self.space.stride, width * self.space.stride)

    def _expect(self, method: str, given: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(given.shape) != shape:
            raise UserError(f"{type(self).__name__}.{method} returned shape {tuple(given.shape)}, its space needs {shape}")

    def blocks(self) -> list[nn.Module]:
        """The members of :attr:`block_parts`."""
        return [block for name in self.block_parts for block in self.get_submodule(name).children()]

    def freeze(self) -> None:
        """Put the frozen and the fixed parts out of every optimiser's reach."""
        for name in (*self.frozen_parts, *self.fixed_parts):
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "VisualFrontEnd":
        super().train(mode)
        for name in self.frozen_parts:
            self.get_submodule(name).eval()
        return self
