"""The golden tensors of the official models, the weights they were computed with, and our models that hold those weights."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tunalab.data.packing import PackedBatch, Placed, collate
from tunalab.data.sequence import ImageSpan, TokenSequence
from tunalab.model.unified import UnifiedModel

FOLDER = Path(__file__).parents[1] / "data" / "golden"
NAMES = ("tuna2", "tuna_r", "tuna")
ENCODER = "golden_siglip"
# What shapes do not tell of the tiny configurations; frontend.vae is added where there is one.
SETTINGS = ["decoder.heads=4", "data.image_size=64", f"frontend.encoder={ENCODER}"]


@register_model
def golden_siglip(**_: object) -> VisionTransformer:
    """The encoder of the tiny configurations, by name, as timm's own models are."""
    return VisionTransformer(
        img_size=64,
        patch_size=16,
        embed_dim=96,
        depth=3,
        num_heads=2,
        mlp_ratio=2,
        class_token=False,
        global_pool="",
        num_classes=0,
        act_layer="gelu_tanh",
    )


def golden_weight(name: str, shape: Sequence[int]) -> Tensor:
    """The value that the golden tensors were computed with: a function of the parameter's name."""
    draw = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(tuple(shape)).astype(np.float32)
    if len(shape) > 1 and "embed_tokens" not in name and "position_embedding" not in name:
        return torch.from_numpy(draw * np.float32(0.7 / np.sqrt(np.prod(shape[1:]))))
    if "norm" in name and name.endswith("weight"):
        return torch.from_numpy(1 + 0.1 * draw)
    return torch.from_numpy(0.1 * draw)


def shapes(name: str) -> dict[str, list[int]]:
    """Name and shape of every parameter of an official model."""
    parameters: dict[str, list[int]] = json.loads((FOLDER / f"{name}.json").read_text())["parameters"]
    return parameters


@cache
def golden_checkpoint(name: str) -> dict[str, Tensor]:
    return {parameter: golden_weight(parameter, shape) for parameter, shape in shapes(name).items()}


@dataclass(frozen=True, eq=False)
class Picture:
    """An image of a sequence: the offset of its span, x_t (C, h, w), its time, whether it is predicted."""

    offset: int
    x_Chw: Tensor
    t: float
    generate: bool


@dataclass(frozen=True, eq=False)
class Outputs:
    """``embeds_LD``, ``logits_LV``, and the prediction (C, h, w) of every picture that generates, in their order."""

    embeds_LD: Tensor
    logits_LV: Tensor
    predictions: list[Tensor]


@torch.no_grad()
def run(model: UnifiedModel, tokens: np.ndarray, pictures: Sequence[Picture], token_pixels: int) -> Outputs:
    """One document in one row, with some padding behind it, and with another document before it that must not matter."""
    space = model.frontend.space
    spans = []
    for picture in pictures:
        rows, columns = (side // space.patch for side in picture.x_Chw.shape[1:])
        pixels = np.zeros((rows * token_pixels, columns * token_pixels, 3), dtype=np.uint8)
        spans.append(ImageSpan(picture.offset, 1 + rows * columns, pixels, picture.generate))
    target = np.zeros(len(tokens), dtype=bool)
    before = TokenSequence("text", np.array([1, 9, 5, 2]), np.zeros(4, dtype=bool), ())
    document = TokenSequence("edit", tokens, target, tuple(spans))
    start = len(before.ids_L)
    batch: PackedBatch = collate([[Placed(0, before), Placed(1, document)]], start + len(tokens) + 5, pad=0)
    batch.logit_K = torch.arange(start, start + len(tokens))
    order = [at for group in batch.groups for at in _members(group.span_n_1T[:, 0].tolist(), pictures, start)]
    x_nChw = [torch.stack(images) for images in _split([pictures[at].x_Chw for at in order], [len(g) for g in batch.groups])]
    t_N = torch.tensor([pictures[at].t for at in order])
    masks = [torch.zeros((len(group), group.tokens), dtype=torch.bool) for group in batch.groups]
    slots = [group.span_n_1T for group in batch.groups]
    embeds = model.embed(batch.ids_BL, slots, x_nChw, batch.by_group(model.time(t_N)), masks)
    output = model(batch, x_nChw, t_N, masks)
    made = iter([image for group in output.prediction_mChw for image in group])
    predictions = {at: next(made) for at in order if pictures[at].generate}
    return Outputs(embeds[0, start : start + len(tokens)], output.logits_KV, [predictions[at] for at in sorted(predictions)])


def _members(slots: list[int], pictures: Sequence[Picture], start: int) -> list[int]:
    offsets = [start + picture.offset for picture in pictures]
    return [offsets.index(slot) for slot in slots]


def _split(images: list[Tensor], sizes: list[int]) -> list[list[Tensor]]:
    rest = iter(images)
    return [[next(rest) for _ in range(size)] for size in sizes]
