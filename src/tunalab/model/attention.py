"""Who may attend to whom in packed rows, and backends that compute it, proven equal in the tests.

The rule: same document, and (not later, or the same image span). Padding is attended by nothing.

A backend is an object with ``attend(layer, q, k, v, scale)``; decoder and flow head call it without knowing which one it is, so
training, the dense reference and cached inference share one forward pass.

Shapes: B rows, L tokens, H query heads, G key-value heads, d head dimension, D documents, M longest document of a group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from tunalab.errors import UserError


class AttentionBackend(Protocol):
    def attend(self, layer: int, q_BHLd: Tensor, k_BGLd: Tensor, v_BGLd: Tensor, scale: float) -> Tensor:
        """Attention output (B, L, H, d). Query head i uses key-value head i // (H / G)."""
        ...


@dataclass(eq=False)
class Layout:
    """What attention needs to know of packed rows; fields as in PackedBatch."""

    document_BL: Tensor
    span_BL: Tensor
    start_D: Tensor
    length_D: Tensor


def may_attend(document_BL: Tensor, span_BL: Tensor) -> Tensor:
    """The rule as a mask (B, L queries, L keys), bool. Padding queries attend to themselves: a softmax over nothing is NaN."""
    L = document_BL.shape[1]
    at = torch.arange(L, device=document_BL.device)
    same_document = (document_BL[:, :, None] == document_BL[:, None, :]) & (document_BL[:, None, :] >= 0)
    same_span = (span_BL[:, :, None] == span_BL[:, None, :]) & (span_BL[:, None, :] >= 0)
    return (same_document & ((at[None, :, None] >= at[None, None, :]) | same_span)) | torch.eye(
        L, dtype=torch.bool, device=document_BL.device
    )


class DenseAttention:
    """One masked SDPA over whole rows: the obvious reference, quadratic in the row."""

    def __init__(self, layout: Layout) -> None:
        self.mask_B1LL = may_attend(layout.document_BL, layout.span_BL)[:, None]

    def attend(self, layer: int, q_BHLd: Tensor, k_BGLd: Tensor, v_BGLd: Tensor, scale: float) -> Tensor:
        return _sdpa(q_BHLd, k_BGLd, v_BGLd, self.mask_B1LL, scale).transpose(1, 2)


class DocumentAttention:
    """Documents gathered out of the rows and attended each by itself: no work across documents.

    Documents of similar length share one SDPA call, padded to the longest of the group; ``slack`` bounds that padding. Many calls
    on tiny matrices cost more than a little padding, one call over all documents wastes half of the work.
    """

    slack = 1.35  # longest over shortest document of a group

    def __init__(self, layout: Layout) -> None:
        L = layout.document_BL.shape[1]
        self.groups: list[tuple[Tensor, Tensor]] = []  # flat indices (D*M), additive mask (D, 1, M, M)
        order = torch.argsort(layout.length_D, stable=True)
        lengths = layout.length_D[order].tolist()
        device = layout.document_BL.device
        # Where every token's output stands among the groups' outputs put end to end; padding points behind them, at zeros.
        place_T = torch.full((layout.document_BL.numel(),), -1, dtype=torch.int64, device=device)
        total = 0
        first = 0
        while first < len(lengths):
            last = first
            while last < len(lengths) and lengths[last] <= max(self.slack * lengths[first], lengths[first] + 4):
                last += 1
            members, M = order[first:last], lengths[last - 1]
            offset_M = torch.arange(M, device=device)
            real_DM = offset_M[None] < layout.length_D[members][:, None]
            index_DM = layout.start_D[members][:, None] + torch.where(real_DM, offset_M[None], 0)
            document_DM = torch.where(real_DM, torch.zeros_like(index_DM), -1)
            span_DM = torch.where(real_DM, layout.span_BL.flatten()[index_DM], -1)
            allowed = may_attend(document_DM, span_DM)
            mask = torch.zeros(allowed.shape, device=device).masked_fill_(~allowed, float("-inf"))
            self.groups.append((index_DM.flatten(), mask[:, None]))
            flat_real = real_DM.flatten()
            place_T[index_DM.flatten()[flat_real]] = total + torch.nonzero(flat_real).squeeze(1)
            total += index_DM.numel()
            first = last
        self.place_T = torch.where(place_T < 0, total, place_T)
        self.shape = (layout.document_BL.shape[0], L)

    def attend(self, layer: int, q_BHLd: Tensor, k_BGLd: Tensor, v_BGLd: Tensor, scale: float) -> Tensor:
        B, L = self.shape
        q_THd, k_TGd, v_TGd = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHLd, k_BGLd, v_BGLd))
        H, d = q_THd.shape[1:]
        outputs = []
        for index, mask in self.groups:
            D, M = mask.shape[0], mask.shape[-1]
            q, k, v = (x.index_select(0, index).view(D, M, -1, d).transpose(1, 2) for x in (q_THd, k_TGd, v_TGd))
            outputs.append(_sdpa(q, k, v, mask.to(q.dtype), scale).transpose(1, 2).reshape(D * M, H, d))
        outputs.append(q_THd.new_zeros((1, H, d)))
        return torch.cat(outputs).index_select(0, self.place_T).view(B, L, H, d)


class FlexAttention:
    """Compiled FlexAttention over a block mask: CUDA only, as it has no backward pass on CPU.

    Rows are filled up to whole blocks and narrow heads to the least width of the kernels; what is filled in attends to itself alone
    and is cut off again.
    """

    block = 128  # tokens along a side of the blocks that the kernel computes or skips
    least_width = 16  # of a head

    def __init__(self, layout: Layout) -> None:
        self.length = layout.document_BL.shape[1]
        self.missing = -self.length % self.block
        document, span = (F.pad(x, (0, self.missing), value=-1) for x in (layout.document_BL, layout.span_BL))

        def rule(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same_document = (document[b, query] == document[b, key]) & (document[b, key] >= 0)
            same_span = (span[b, query] == span[b, key]) & (span[b, key] >= 0)
            return (same_document & ((query >= key) | same_span)) | (query == key)

        partly_Bnn, wholly_Bnn = allowed_blocks(document, span, self.block)
        self.block_mask = BlockMask.from_kv_blocks(
            *_listed(partly_Bnn[:, None]), *_listed(wholly_Bnn[:, None]), BLOCK_SIZE=self.block, mask_mod=rule
        )

    def attend(self, layer: int, q_BHLd: Tensor, k_BGLd: Tensor, v_BGLd: Tensor, scale: float) -> Tensor:
        d = q_BHLd.shape[-1]
        wider = max(0, self.least_width - d)
        # Under autocast normalised queries and keys are float32 beside bfloat16 values: the kernel refuses the mix.
        q, k, v = (x.to(v_BGLd.dtype) for x in (q_BHLd, k_BGLd, v_BGLd))
        if wider or self.missing:
            q, k, v = (F.pad(x, (0, wider, 0, self.missing)) for x in (q, k, v))
        # Compiled with dynamic shapes, a scale would become an input of the graph, where the kernel needs a constant: its own
        # stays, and the queries make up the difference.
        q = q * (scale * (d + wider) ** 0.5)
        # A part of what is being compiled around it, or compiled by itself.
        flex: Any = flex_attention if torch.compiler.is_compiling() else compiled_flex()
        out_BHLd = flex(q, k, v, block_mask=self.block_mask, enable_gqa=q.shape[1] != k.shape[1])
        return out_BHLd[:, :, : self.length, :d].transpose(1, 2)


def allowed_blocks(document_BL: Tensor, span_BL: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Blocks of (queries, keys), (B, n, n) each, bool: in which some pair may attend but not every pair, and in which all may.

    Found from the least and greatest number in every block, so that the matrix of pairs is never made: it has L^2 entries, of which
    a long row's fill gigabytes. A block may be listed where no pair may attend (images numbered in another order than they stand);
    the rule decides there.
    """
    document_Bnk, span_Bnk = (x.unflatten(1, (-1, block)) for x in (document_BL, span_BL))
    n = document_Bnk.shape[1]
    at_n = torch.arange(n, device=document_BL.device)
    earlier_nn = at_n[:, None] > at_n[None, :]
    some = _overlap(document_Bnk) & (earlier_nn | _overlap(span_Bnk)) | (at_n[:, None] == at_n[None, :])
    every = _all_one(document_Bnk) & (earlier_nn | _all_one(span_Bnk))
    return some & ~every, every


def _overlap(number_Bnk: Tensor) -> Tensor:
    """Whether the numbers of two blocks lie in ranges that overlap, (B, n, n); -1 is no number."""
    least = torch.where(number_Bnk >= 0, number_Bnk, torch.iinfo(number_Bnk.dtype).max).amin(2)
    greatest = number_Bnk.amax(2)
    return (least[:, :, None] <= greatest[:, None, :]) & (least[:, None, :] <= greatest[:, :, None])


def _all_one(number_Bnk: Tensor) -> Tensor:
    """Whether two blocks hold one and the same number, (B, n, n)."""
    least, greatest = number_Bnk.amin(2), number_Bnk.amax(2)
    one = (least == greatest) & (least >= 0)
    return one[:, :, None] & one[:, None, :] & (least[:, :, None] == least[:, None, :])


def _listed(chosen_B1nn: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks every query block has, and which: those first, in order."""
    order = chosen_B1nn.int().argsort(dim=-1, descending=True, stable=True)
    return chosen_B1nn.sum(-1, dtype=torch.int32), order.int()


@cache
def compiled_flex() -> Callable[..., Tensor]:
    """One kernel for all lengths, for blocks that are not compiled themselves."""
    raise_recompile_limit()
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)  # type: ignore[no-any-return]


def raise_recompile_limit() -> None:
    """Graphs differ by heads, by one row or several, by training or evaluation: more kinds than are compiled by default, and beyond
    that number torch would compute whole matrices of scores without a word; with ``fullgraph`` it raises.
    """
    from torch._dynamo import config as dynamo  # seconds to import, for nothing without a GPU

    dynamo.recompile_limit = max(32, dynamo.recompile_limit)


class CachedAttention:
    """Attention to a cache of what came before, for inference. Rows come in groups of equal prefix length: no padding anywhere.

    ``group_sizes``: rows of each group, in order. ``mask_LL``: which of the new tokens see which (None: all, as in an image span
    or for a single token); the cache is always seen whole. ``append`` makes the new keys and values part of the cache; without
    it the cache stays as it is, as at every step of an image sampler.
    """

    def __init__(self, group_sizes: list[int], mask_LL: Tensor | None = None) -> None:
        self.group_sizes = group_sizes
        self.cache: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.mask_LL = mask_LL
        self.append = True

    @property
    def rows(self) -> int:
        return sum(self.group_sizes)

    @classmethod
    def join(cls, parts: Sequence["CachedAttention"]) -> "CachedAttention":
        """The groups of all parts behind each other."""
        joined = cls([size for part in parts for size in part.group_sizes])
        joined.cache = {layer: [group for part in parts for group in part.cache[layer]] for layer in parts[0].cache}
        return joined

    def select(self, rows: list[int]) -> "CachedAttention":
        """A cache of some rows, in ascending order; a row may be taken several times, a group left without rows disappears."""
        if any(rows[i] > rows[i + 1] for i in range(len(rows) - 1)):
            raise ValueError("rows of a cache are selected in ascending order")
        if rows == list(range(self.rows)):
            return self
        kept: list[tuple[int, list[int]]] = []
        first = 0
        for group, size in enumerate(self.group_sizes):
            members = [row - first for row in rows if first <= row < first + size]
            if members:
                kept.append((group, members))
            first += size
        selected = CachedAttention([len(members) for _, members in kept], self.mask_LL)
        selected.append = self.append
        for layer, groups in self.cache.items():
            selected.cache[layer] = []
            for group, members in kept:
                k, v = groups[group]
                if members != list(range(len(k))):
                    index = torch.tensor(members, device=k.device)
                    k, v = k[index], v[index]
                selected.cache[layer].append((k, v))
        return selected

    def attend(self, layer: int, q_BHLd: Tensor, k_BGLd: Tensor, v_BGLd: Tensor, scale: float) -> Tensor:
        past = self.cache.get(layer)
        H, G = q_BHLd.shape[1], k_BGLd.shape[1]
        mask = self.mask_LL
        if H != G:
            # The heads that share a key-value head become more queries of it: the cache need not be repeated.
            q_BHLd = q_BHLd.unflatten(1, (G, H // G)).flatten(2, 3)
            mask = None if mask is None else mask.repeat(H // G, 1)
        splits = [x.split(self.group_sizes) for x in (q_BHLd, k_BGLd, v_BGLd)]
        outputs, kept = [], []
        for g, (q, k, v) in enumerate(zip(*splits, strict=True)):
            if past is not None:
                k, v = torch.cat([past[g][0], k], dim=2), torch.cat([past[g][1], v], dim=2)
            allowed = mask
            if mask is not None and k.shape[2] > mask.shape[1]:
                allowed = F.pad(mask, (k.shape[2] - mask.shape[1], 0), value=True)
            outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale))
            kept.append((k, v))
        if self.append:
            self.cache[layer] = kept
        out = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        return out.unflatten(2, (H // G, -1)).flatten(1, 2).transpose(1, 2)


def make_backend(name: str | Callable[[Layout], AttentionBackend], layout: Layout) -> AttentionBackend:
    """Of the name, or made by a function. ``auto`` takes flex on CUDA and per-document SDPA elsewhere. Raises UserError for flex
    without CUDA.
    """
    if not isinstance(name, str):
        return name(layout)
    cuda = layout.document_BL.is_cuda
    if name == "auto":
        name = "flex" if cuda else "document"
    if name == "flex" and not cuda:
        raise UserError("attention=flex needs a CUDA device (choices without one: auto, document, dense)")
    backends: dict[str, Callable[[Layout], AttentionBackend]] = {
        "dense": DenseAttention,
        "document": DocumentAttention,
        "flex": FlexAttention,
    }
    return backends[name](layout)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(rows, H, L, d) x (rows, G, S, d). On CPU the fused kernel has no grouped heads: repeating beats the unfused path."""
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
