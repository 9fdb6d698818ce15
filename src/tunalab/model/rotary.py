"""Rotary positions of the flow head: 1-D on text, 3-D (time, row, column) on visual tokens, none on time tokens.

Two rotations follow each other, each the identity where the other applies. The constants are those of the official flow head.

Shapes: B rows, L tokens, H heads, d head dimension.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TEXT_THETA = 5e5
IMAGE_THETA = 1e4
SCALING_FACTOR, LOW_FREQUENCY, HIGH_FREQUENCY, ORIGINAL_LENGTH = 32.0, 1.0, 4.0, 8192.0  # llama3's


@dataclass(eq=False)
class RotaryTables:
    """Cosines and sines (B, 1, L, d): ``text`` for the rotate-half convention, ``image`` for interleaved pairs."""

    text_cos: Tensor
    text_sin: Tensor
    image_cos: Tensor
    image_sin: Tensor

    def rotate(self, x_BHLd: Tensor) -> Tensor:
        dtype = x_BHLd.dtype
        x = x_BHLd.float()
        first, second = x.chunk(2, dim=-1)
        x = x * self.text_cos + torch.cat([-second, first], dim=-1) * self.text_sin
        # (a, b) -> (a cos + b sin, -a sin + b cos): the opposite direction of the usual convention, as official weights expect.
        pairs = x.unflatten(-1, (-1, 2))
        turned = torch.stack([pairs[..., 1], -pairs[..., 0]], dim=-1).flatten(-2)
        return (x * self.image_cos + turned * self.image_sin).to(dtype)


def rotary_tables(position_BL: Tensor, is_image_BL: Tensor, patch_BL: Tensor, columns: int | Tensor, head_dim: int) -> RotaryTables:
    """Tables for tokens at ``position_BL`` of their sequence; ``patch_BL`` is the row-major index of a visual token, -1 elsewhere,
    in a grid of ``columns``: one number for all, or (B, L) where images differ in size.

    ``is_image_BL`` covers time tokens too: they are rotated neither way.
    """
    text = torch.where(is_image_BL, 0, position_BL)[:, :, None] * text_frequencies(head_dim, position_BL.device)
    text = torch.cat([text, text], dim=-1)[:, None]
    patch = patch_BL.clamp(min=0)
    axes = torch.stack([torch.zeros_like(patch), patch // columns, patch % columns], dim=-1).float()
    image = torch.cat(
        [axes[..., a, None] * image_frequencies(size, patch.device) for a, size in enumerate(axis_sizes(head_dim))], dim=-1
    )
    image = image.repeat_interleave(2, dim=-1)[:, None]
    return RotaryTables(text.cos(), text.sin(), image.cos(), image.sin())


def axis_sizes(head_dim: int) -> tuple[int, int, int]:
    """Dimensions for time, row, column: 16 / 24 / 24 of 64, in proportion at other sizes."""
    return head_dim // 4, 3 * head_dim // 8, 3 * head_dim // 8


def image_frequencies(size: int, device: torch.device) -> Tensor:
    return IMAGE_THETA ** (-torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)


def text_frequencies(head_dim: int, device: torch.device) -> Tensor:
    """(head_dim / 2,) with llama3's scaling: low frequencies are divided, high ones kept, those between interpolated."""
    frequency = TEXT_THETA ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    wavelength = 2 * math.pi / frequency
    smooth = (ORIGINAL_LENGTH / wavelength - LOW_FREQUENCY) / (HIGH_FREQUENCY - LOW_FREQUENCY)
    smooth = smooth.clamp(0, 1)
    return (1 - smooth) * frequency / SCALING_FACTOR + smooth * frequency
