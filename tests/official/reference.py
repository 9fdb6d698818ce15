"""The official models written out slowly, token by token, from their definitions: what our model must equal.

Nothing of the package is used, and weights go by official names. Everything is float64.

Shapes: L tokens, D width, N visual tokens of an image, V encoder width, d head dimension, C h w an image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

FLOAT32_EPS = 1.1920929e-07


@dataclass(frozen=True)
class Sizes:
    """What shapes do not tell."""

    heads: int
    kv_heads: int
    head_heads: int
    head_kv_heads: int
    encoder_heads: int
    patch: int


@dataclass(frozen=True, eq=False)
class Image:
    offset: int
    x_Chw: Tensor
    t: float


class Reference:
    def __init__(self, weights: Mapping[str, Tensor], sizes: Sizes) -> None:
        self.w = {name: tensor.double() for name, tensor in weights.items()}
        self.sizes = sizes

    def __call__(self, tokens: Sequence[int], images: Sequence[Image]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Input embeddings (L, D), logits (L, vocabulary), and every image's prediction (C, h, w)."""
        L = len(tokens)
        embeds = [self.w["tuna.model.embed_tokens.weight"][token] for token in tokens]
        image_of: list[int | None] = [None] * L  # time slot included
        patch_of: list[tuple[int, int] | None] = [None] * L
        times = [self.time(image.t) for image in images]
        for number, image in enumerate(images):
            visual = self.visual(image.x_Chw)
            columns = image.x_Chw.shape[2] // self.sizes.patch
            embeds[image.offset], image_of[image.offset] = times[number], number
            for n in range(len(visual)):
                place = image.offset + 1 + n
                embeds[place], image_of[place], patch_of[place] = visual[n], number, (n // columns, n % columns)
        h = torch.stack(embeds)
        sees = [
            [key <= query or (image_of[key] is not None and image_of[key] == image_of[query]) for key in range(L)]
            for query in range(L)
        ]
        hidden = self.decoder(h, sees)
        logits = hidden @ self.w["tuna.lm_head.weight"].T
        out = self.head(hidden, sees, image_of, patch_of, times)
        predictions = []
        for number, image in enumerate(images):
            places = [at for at in range(L) if image_of[at] == number and patch_of[at] is not None]
            C, height, width = image.x_Chw.shape
            # Runs of raster cells, one behind the other: not the patches.
            predictions.append(torch.stack([out[at] for at in places]).reshape(height, width, C).permute(2, 0, 1))
        return h, logits, predictions

    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.w.get(f"{name}.bias")
        y = x @ self.w[f"{name}.weight"].T
        return y if bias is None else y + bias

    def time(self, t: float) -> Tensor:
        angles = [t * 1e4 ** (-k / 128) for k in range(128)]
        table = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)
        return self.linear("time_embed.mlp.2", silu(self.linear("time_embed.mlp.0", table)))

    def visual(self, x_Chw: Tensor) -> Tensor:
        """(N, D), row-major."""
        p = self.sizes.patch
        name = (
            "vision_encoder.patch_embedding"
            if "vision_encoder.norm.weight" in self.w
            else "vision_model.embeddings.patch_embedding"
        )
        kernel, bias = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        rows, columns = x_Chw.shape[1] // p, x_Chw.shape[2] // p
        tokens = []
        for row in range(rows):
            for column in range(columns):
                observed = x_Chw[:, row * p : row * p + p, column * p : column * p + p].double()
                tokens.append((kernel * observed).sum(dim=(1, 2, 3)) + bias)
        if name.startswith("vision_encoder"):
            return torch.stack([rms(token, self.w["vision_encoder.norm.weight"], FLOAT32_EPS) for token in tokens])
        h = self.encoder(torch.stack(tokens), rows, columns)
        h = torch.stack([rms(token, self.w["siglip_proj.0.weight"], 1e-6) for token in h])
        return self.linear("siglip_proj.3", gelu_erf(self.linear("siglip_proj.1", h)))

    def encoder(self, h: Tensor, rows: int, columns: int) -> Tensor:
        grid = self.w["vision_model.embeddings.position_embedding.weight"]
        side = math.isqrt(len(grid))
        if (rows, columns) != (side, side):
            image = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
            image = F.interpolate(image, size=(rows, columns), mode="bicubic", align_corners=False, antialias=False)
            grid = image.permute(0, 2, 3, 1).reshape(rows * columns, -1)
        h = h + grid
        heads, block = self.sizes.encoder_heads, 0
        while f"vision_model.encoder.layers.{block}.layer_norm1.weight" in self.w:
            name = f"vision_model.encoder.layers.{block}"
            x = self.layer_norm(f"{name}.layer_norm1", h)
            q, k, v = (split(self.linear(f"{name}.self_attn.{part}_proj", x), heads) for part in "qkv")
            everything = [[True] * len(h)] * len(h)
            h = h + self.linear(f"{name}.self_attn.out_proj", attend(q, k, v, everything))
            x = self.layer_norm(f"{name}.layer_norm2", h)
            h = h + self.linear(f"{name}.mlp.fc2", gelu_tanh(self.linear(f"{name}.mlp.fc1", x)))
            block += 1
        return h

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + 1e-6)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def decoder(self, h: Tensor, sees: list[list[bool]]) -> Tensor:
        layer = 0
        while f"tuna.model.layers.{layer}.input_layernorm.weight" in self.w:
            name = f"tuna.model.layers.{layer}"
            x = rms(h, self.w[f"{name}.input_layernorm.weight"], 1e-6)
            q, k, v = (
                split(self.linear(f"{name}.self_attn.{part}_proj", x), heads)
                for part, heads in (("q", self.sizes.heads), ("k", self.sizes.kv_heads), ("v", self.sizes.kv_heads))
            )
            frequencies = [1e6 ** (-2 * i / q.shape[-1]) for i in range(q.shape[-1] // 2)]
            q, k = (torch.stack([rotate_half(x[at], at, frequencies) for at in range(len(h))]) for x in (q, k))
            h = h + self.linear(f"{name}.self_attn.o_proj", attend(q, k, v, sees))
            x = rms(h, self.w[f"{name}.post_attention_layernorm.weight"], 1e-6)
            h = h + self.swiglu(f"{name}.mlp", x)
            layer += 1
        return rms(h, self.w["tuna.model.norm.weight"], 1e-6)

    def swiglu(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.down_proj", silu(self.linear(f"{name}.gate_proj", x)) * self.linear(f"{name}.up_proj", x))

    def head(
        self,
        h: Tensor,
        sees: list[list[bool]],
        image_of: list[int | None],
        patch_of: list[tuple[int, int] | None],
        times: list[Tensor],
    ) -> Tensor:
        """The projected output (L, p * p * C); at text positions it means nothing."""
        D, block = h.shape[1], 0
        while f"diffusion_head_a.{block}.input_layernorm.weight" in self.w:
            name = f"diffusion_head_a.{block}"
            made = [self.linear(f"{name}.adaLN_modulation.1", silu(time)) for time in times]
            text = torch.cat([torch.zeros(2 * D), torch.ones(D), torch.zeros(2 * D), torch.ones(D)]).double()
            per_token = torch.stack([text if number is None else made[number] for number in image_of])
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = per_token.chunk(6, dim=1)
            x = rms(h, self.w[f"{name}.input_layernorm.weight"], 1e-5) * (1 + scale) + shift
            q, k, v = (
                split(self.linear(f"{name}.self_attn.{part}_proj", x), heads)
                for part, heads in (("q", self.sizes.head_heads), ("k", self.sizes.head_kv_heads), ("v", self.sizes.head_kv_heads))
            )
            q, k = (rms(x, self.w[f"{name}.self_attn.{part}_norm.weight"], 1e-6) for part, x in (("q", q), ("k", k)))
            q, k = (torch.stack([self.place(x[at], at, image_of[at], patch_of[at]) for at in range(len(h))]) for x in (q, k))
            h = h + gate * self.linear(f"{name}.self_attn.o_proj", attend(q, k, v, sees))
            x = rms(h, self.w[f"{name}.post_attention_layernorm.weight"], 1e-5) * (1 + mlp_scale) + mlp_shift
            h = h + mlp_gate * self.swiglu(f"{name}.mlp", x)
            block += 1
        rows = []
        for at, number in enumerate(image_of):
            shift, scale = torch.zeros(D).double(), torch.zeros(D).double()
            if number is not None:
                shift, scale = self.linear("diffusion_head_b.adaLN_modulation.1", silu(times[number])).chunk(2)
            x = rms(h[at], self.w["diffusion_head_b.norm_final.weight"], 1e-6) * (1 + scale) + shift
            rows.append(self.linear("diffusion_head_b.linear", x))
        return torch.stack(rows)

    def place(self, x_Hd: Tensor, at: int, image: int | None, patch: tuple[int, int] | None) -> Tensor:
        """Rotated for where a token stands: text by its position, a visual token by row and column, a time token not at all."""
        d = x_Hd.shape[-1]
        if image is None:
            return rotate_half(x_Hd, at, [llama3(5e5 ** (-2 * i / d)) for i in range(d // 2)])
        if patch is None:
            return x_Hd
        angles = [
            position * 1e4 ** (-2 * i / size)
            for position, size in ((0, d // 4), (patch[0], 3 * d // 8), (patch[1], 3 * d // 8))
            for i in range(size // 2)
        ]
        cos, sin = (torch.tensor([f(angle) for angle in angles], dtype=torch.float64) for f in (math.cos, math.sin))
        a, b = x_Hd[:, 0::2], x_Hd[:, 1::2]
        return torch.stack([a * cos + b * sin, -a * sin + b * cos], dim=-1).flatten(1)


def llama3(frequency: float) -> float:
    """Factor 32 below 1 turn in 8192 positions, none above 4, between them in proportion."""
    turns = 8192 * frequency / (2 * math.pi)
    if turns < 1:
        return frequency / 32
    if turns > 4:
        return frequency
    share = (turns - 1) / (4 - 1)
    return (1 - share) * frequency / 32 + share * frequency


def rotate_half(x_Hd: Tensor, position: int, frequencies: Sequence[float]) -> Tensor:
    angles = [position * frequency for frequency in frequencies]
    cos, sin = (torch.tensor([f(angle) for angle in angles], dtype=torch.float64) for f in (math.cos, math.sin))
    a, b = x_Hd.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attend(q_LHd: Tensor, k_LGd: Tensor, v_LGd: Tensor, sees: list[list[bool]]) -> Tensor:
    """(L, H * d); query head i uses key-value head i // (H / G)."""
    H, d = q_LHd.shape[1:]
    share = H // k_LGd.shape[1]
    hidden_LL = ~torch.tensor(sees)
    heads = []
    for i in range(H):
        score_LL = q_LHd[:, i] @ k_LGd[:, i // share].T / math.sqrt(d)
        heads.append(torch.softmax(score_LL.masked_fill(hidden_LL, float("-inf")), dim=1) @ v_LGd[:, i // share])
    return torch.cat(heads, dim=1)


def split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1))


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu_erf(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
