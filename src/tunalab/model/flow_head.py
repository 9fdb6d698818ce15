"""The flow head: transformer blocks on the decoder's last hidden states that predict x or v at visual tokens.

Structure of the official head at every size: adaLN from the time embedding on all positions of an image span (text
positions pass with shift 0, scale 0, gate 1), qk-norm, grouped heads, SwiGLU, the decoder's attention mask. Rotary
positions: 1-D on text, 3-D (time, row, column) on visual tokens, none on time tokens. Two rotations follow each
other, each the identity where the other applies; the constants are those of the official head.

Shapes: B rows, L tokens, N images, T visual tokens, D width, H heads, G key-value heads, d head dimension,
P token_dim of the target space.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunalab.model.attention import AttentionBackend
from tunalab.settings.schema import FlowHeadConfig

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


class TimeEmbedding(nn.Module):
    """Sinusoid(256, cosines then sines, max period 1e4, t in [0, 1] unscaled) -> Linear -> SiLU -> Linear. (N,) -> (N, width)."""

    features = 256
    max_period = 10_000.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t_N: Tensor) -> Tensor:
        half = self.features // 2
        k = torch.arange(half, device=t_N.device, dtype=torch.float32)
        angle = t_N.float()[:, None] * self.max_period ** (-k / half)
        table = torch.cat([angle.cos(), angle.sin()], dim=1)
        return self.mlp(table.to(next(self.mlp.parameters()).dtype))


class FlowHeadBlock(nn.Module):
    def __init__(self, width: int, config: FlowHeadConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.q = nn.Linear(width, config.heads * config.head_dim, bias=False)
        self.k = nn.Linear(width, config.kv_heads * config.head_dim, bias=False)
        self.v = nn.Linear(width, config.kv_heads * config.head_dim, bias=False)
        self.o = nn.Linear(config.heads * config.head_dim, width, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=1e-6)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=1e-6)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-5)
        self.gate = nn.Linear(width, config.mlp, bias=False)
        self.up = nn.Linear(width, config.mlp, bias=False)
        self.down = nn.Linear(config.mlp, width, bias=False)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(
        self, h_BLD: Tensor, silu_time_ND: Tensor, span_BL: Tensor, rotary: RotaryTables, backend: AttentionBackend, layer: int
    ) -> Tensor:
        modulation = with_text(self.modulation(silu_time_ND).unflatten(1, (6, -1)))[span_BL]  # (B, L, 6, D)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.unbind(2)
        x = self.attention_norm(h_BLD) * (1 + scale) + shift
        q, k, v = (
            linear(x).unflatten(-1, (heads, self.head_dim)).transpose(1, 2)
            for linear, heads in ((self.q, self.heads), (self.k, self.kv_heads), (self.v, self.kv_heads))
        )
        q, k = rotary.rotate(self.q_norm(q)), rotary.rotate(self.k_norm(k))
        attended = self.o(backend.attend(layer, q, k, v, self.head_dim**-0.5).flatten(2))
        h_BLD = h_BLD + gate * attended
        x = self.mlp_norm(h_BLD) * (1 + mlp_scale) + mlp_shift
        return h_BLD + mlp_gate * self.down(F.silu(self.gate(x)) * self.up(x))


class FlowHead(nn.Module):
    def __init__(self, width: int, token_dim: int, config: FlowHeadConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FlowHeadBlock(width, config) for _ in range(config.blocks))
        self.final_norm = nn.RMSNorm(width, eps=1e-6)
        self.final_modulation = nn.Linear(width, 2 * width)
        # Its size differs between target spaces; were its default weights drawn from the common generator, everything drawn
        # afterwards would differ between front-ends too.
        with torch.random.fork_rng(devices=[]):
            self.output = nn.Linear(width, token_dim)
        self.head_dim = config.head_dim

    def initialise(self, std: float) -> None:
        """Weights N(0, std^2), biases 0; modulation and output zero: at the start text passes and every prediction is 0."""
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            if name.endswith("modulation") or name == "output":
                nn.init.zeros_(module.weight)
            else:
                nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, h_BLD: Tensor, time_ND: Tensor, span_BL: Tensor, rotary: RotaryTables, backend: AttentionBackend) -> Tensor:
        """Blocks only, (B, L, D). ``span_BL`` indexes ``time_ND``, -1 for text."""
        silu_time_ND = F.silu(time_ND)
        for layer, block in enumerate(self.blocks):
            h_BLD = block(h_BLD, silu_time_ND, span_BL, rotary, backend, layer)
        return h_BLD

    def predict(self, h_NTD: Tensor, time_ND: Tensor) -> Tensor:
        """Final modulated norm and projection at visual tokens only: (N, T, P)."""
        shift, scale = self.final_modulation(F.silu(time_ND))[:, None].chunk(2, dim=-1)
        return self.output(self.final_norm(h_NTD) * (1 + scale) + shift)


def with_text(modulation_N6D: Tensor) -> Tensor:
    """Append the row that text positions (span -1) pick: shift 0, scale 0, gate 1."""
    text = modulation_N6D.new_zeros((1, *modulation_N6D.shape[1:]))
    text[:, 2] = text[:, 5] = 1
    return torch.cat([modulation_N6D, text])
