"""Encoding prompts once: what is kept of them is the keys and values of every layer, and the last hidden state.

Prompts of one layout share a forward pass and prompts of one content a row of it, so there is neither padding nor
repetition. The rows of a :class:`Prefixes` are therefore not in the order of the prompts: ``prompt_B`` says which prompt a
row belongs to.

Shapes: B rows, L tokens of a prompt, N images, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunalab.inference.prompts import Prompt
from tunalab.model.attention import CachedAttention, may_attend
from tunalab.model.decoder import hidden_states
from tunalab.model.rotary import rotary_tables
from tunalab.model.unified import UnifiedModel


@dataclass(eq=False)
class Prefixes:
    """Encoded prompts. ``head`` is filled only where the flow head was asked to read them too."""

    decoder: CachedAttention
    head: CachedAttention
    prompt_B: Tensor
    length_B: Tensor
    last_BD: Tensor


def device_of(model: UnifiedModel) -> torch.device:
    return model.mask_token.token_D.device


@torch.no_grad()
def encode_prefixes(model: UnifiedModel, prompts: Sequence[Prompt], flow_head: bool) -> Prefixes:
    """Encode prompts, text and images alike, at t = 1 for every image.

    ``flow_head``: also through the blocks of the flow head. There text passes unmodulated (shift 0, scale 0, gate 1), so its
    keys and values do not depend on the time of the image to come.
    """
    if not prompts:
        raise ValueError("no prompts to encode")
    layouts: dict[object, dict[object, list[int]]] = {}
    for number, prompt in enumerate(prompts):
        layouts.setdefault(prompt.layout, {}).setdefault(prompt.content, []).append(number)
    parts = []
    for contents in layouts.values():
        part = _encode_layout(model, [prompts[numbers[0]] for numbers in contents.values()], flow_head)
        copies = [copy for copy, numbers in enumerate(contents.values()) for _ in numbers]
        order = [number for numbers in contents.values() for number in numbers]
        parts.append(_repeat(part, copies, order))
    return join_prefixes(parts)


def join_prefixes(parts: Sequence[Prefixes]) -> Prefixes:
    """Rows of all parts behind each other."""
    return Prefixes(
        CachedAttention.join([part.decoder for part in parts]),
        CachedAttention.join([part.head for part in parts]),
        torch.cat([part.prompt_B for part in parts]),
        torch.cat([part.length_B for part in parts]),
        torch.cat([part.last_BD for part in parts]),
    )


def _repeat(part: Prefixes, copies: list[int], order: list[int]) -> Prefixes:
    device = part.last_BD.device
    row_B = torch.tensor(copies, device=device)
    return Prefixes(
        part.decoder.select(copies),
        part.head.select(copies),
        torch.tensor(order, device=device),
        part.length_B[row_B],
        part.last_BD[row_B],
    )


def _encode_layout(model: UnifiedModel, prompts: list[Prompt], flow_head: bool) -> Prefixes:
    device = device_of(model)
    B, spans = len(prompts), prompts[0].spans
    ids_BL = torch.from_numpy(np.stack([prompt.ids_L for prompt in prompts])).to(device)
    L = ids_BL.shape[1]
    position_BL = torch.arange(L, device=device).expand(B, L)
    # Images are numbered image by image: all first images of the rows, then all second ones.
    span_L = torch.full((L,), -1, dtype=torch.int64, device=device)
    patch_L = torch.full((L,), -1, dtype=torch.int64, device=device)
    span_BL = span_L.repeat(B, 1)
    h_BLD = model.decoder.model.embed_tokens(ids_BL)
    columns_L = torch.ones_like(span_L)
    times = []
    for number, span in enumerate(spans):
        slots = slice(span.offset, span.offset + span.length)
        span_L[slots] = number
        span_BL[:, slots] = number * B + torch.arange(B, device=device)[:, None]
        patch_L[slots] = torch.arange(-1, span.length - 1, device=device)
        visual_BTD, columns_L[slots] = visual_tokens(model, [prompt.spans[number].pixels_HWC for prompt in prompts])
        time_BD = model.time(torch.ones(B, device=device))
        slot_B1T = torch.arange(B, device=device)[:, None] * L + torch.arange(slots.start, slots.stop, device=device)
        h_BLD = model.scatter(h_BLD, [slot_B1T], [visual_BTD], [time_BD])
        times.append(time_BD)
    mask_LL = may_attend(torch.zeros_like(span_L)[None], span_L[None])[0]
    decoder, head = CachedAttention([B], mask_LL), CachedAttention([B], mask_LL)
    h_BLD = hidden_states(model.decoder, h_BLD, position_BL, decoder)
    if flow_head:
        time_ND = torch.cat(times) if times else h_BLD.new_zeros((0, h_BLD.shape[-1]))
        rotary = rotary_tables(position_BL[:1], span_L[None] >= 0, patch_L[None], columns_L[None], model.head.head_dim)
        model.head(h_BLD, time_ND, span_BL, rotary, head)
    decoder.mask_LL = head.mask_LL = None
    return Prefixes(decoder, head, torch.arange(B, device=device), torch.full((B,), L, device=device), h_BLD[:, -1])


def visual_tokens(model: UnifiedModel, images: Sequence[np.ndarray]) -> tuple[Tensor, int]:
    """Unmasked visual tokens (N, T, D) of clean RGB images (H, W, 3) uint8, and the columns of their grid."""
    pixels_NHWC = torch.from_numpy(np.stack(images)).to(device_of(model))
    with torch.autocast(pixels_NHWC.device.type, enabled=False):  # as in training
        x_NChw = model.frontend.to_space(pixels_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1)
    rows, columns = model.grid(x_NChw)
    mask_NT = torch.zeros((len(images), rows * columns), dtype=torch.bool, device=x_NChw.device)
    return model.visual(x_NChw, mask_NT), columns
