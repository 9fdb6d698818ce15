"""What a training step keeps for its backward pass, found by running the model's parts on tensors without memory.

The parts run under FakeTensorMode, with autocast as in training, and every tensor that autograd saves is noted with its size: so no
layer's bytes are worked out by hand, and a changed layer changes the plan. Attention is taken to keep what flash and flex
attention keep (queries, keys, values, output, one number a query), never a matrix of pairs.

Shapes: L tokens, N images, T visual tokens of an image, K labelled tokens, D width, C h w of the target space.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunalab.data.buckets import Size
from tunalab.model.decoder import hidden_states
from tunalab.model.rotary import rotary_tables
from tunalab.model.text_loss import text_loss
from tunalab.model.unified import UnifiedModel
from tunalab.training.blocks import blocks, recomputed

Parts = dict[str, int]
LOGITS = "logits"


@dataclass(frozen=True)
class Activations:
    """Bytes a rank keeps, by part of the model, for a row that is full of what the part works on (see :func:`trace`).

    ``saved``: without activation checkpointing. With it a unit (``training.blocks.recomputed``) keeps its inputs alone: ``kept`` is
    those and all that lies outside units, ``unit`` the most that one unit of the part saves when it is computed again.
    ``logits``: what the text loss saves for a row of labels, were all their logits alive at once.
    ``block_copies``, ``other_copies``: weights that autocast casts, kept until the step's end, of the blocks that are sharded one
    by one and of the rest.
    """

    saved: Parts
    kept: Parts
    unit: Parts
    logits: int
    block_copies: int
    other_copies: int


def trace(model: UnifiedModel, tokens: int, size: Size, bf16: bool) -> Activations:
    """What is kept for ``tokens`` tokens a rank: all of them run through the decoder, all are visual tokens of images of ``size``
    pixels (height, width), all run through the flow head, and all are labelled. Each part is linear in its tokens, so a real row
    is a sum of shares of these.

    ``model`` stands on the meta device, its trained parameters requiring gradients; it is of no use afterwards.
    """
    rows, columns = model.frontend.space.grid(*size)
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")  # said of CPU kernels
        model.to_empty(device="cpu")
        recorder = _Recorder(model)
        autocast = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext()
        with recorder.recording(), autocast:
            _run(model, tokens, size, max(1, tokens // (rows * columns)), recorder)
        return recorder.result()


def _run(model: UnifiedModel, tokens: int, size: Size, images: int, recorder: "_Recorder") -> None:
    """The steps of UnifiedModel.forward and of the losses, at places that do not matter to sizes."""
    backend = _KeepsWhatFlashKeeps()
    places_1L = torch.zeros((1, tokens), dtype=torch.int64)
    with recorder.part("front-end"):
        time_ND = model.time(torch.empty(images))
        with torch.no_grad():
            x_1Chw = model.frontend.to_space(torch.empty(1, 3, *size))
        visual_NTD = model.frontend.embed(x_1Chw.expand(images, -1, -1, -1).contiguous())
        visual_NTD = model.mask_token(visual_NTD, torch.zeros((images, visual_NTD.shape[1]), dtype=torch.bool))
    with recorder.part("decoder"):
        h_1LD = model.decoder.model.embed_tokens(places_1L)
        spans = torch.cat([time_ND[:, None], visual_NTD], dim=1).to(h_1LD.dtype).flatten(0, 1)
        h_1LD = h_1LD[0].index_copy(0, torch.zeros(len(spans), dtype=torch.int64), spans)[None]
        h_1LD = hidden_states(model.decoder, h_1LD, places_1L, backend)
    with recorder.part("labels"):
        h_KD, label_K, table = h_1LD[0][places_1L[0]], places_1L[0], model.decoder.lm_head
        text_loss(table, h_KD, label_K, chunk=-(-tokens // 2))  # what waits for a chunk to be computed again
    with recorder.part(LOGITS):
        text_loss(table, h_KD, label_K, chunk=tokens)
    with recorder.part("flow head"):
        rotary = rotary_tables(places_1L, places_1L >= 0, places_1L, 1, model.head.head_dim)
        h_1LD = model.head(h_1LD[0][places_1L[0]][None], time_ND, places_1L, rotary, backend)
    with recorder.part("predictions"):
        prediction = model.head.predict(h_1LD[0][places_1L], time_ND[:1])
        prediction.float().square().mean()


class _Recorder:
    """Notes what is saved while it records: each storage once, by the part and the unit in which it is saved first."""

    def __init__(self, model: UnifiedModel) -> None:
        self.model = model
        self.units = recomputed(model)
        self.blocks = set(blocks(model))
        self.weights = {_storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}
        self.copies: dict[int, tuple[bool, int]] = {}  # storage -> whether in a block, bytes
        self.saved: dict[int, tuple[str, int | None, int]] = {}  # storage -> part, unit, bytes
        self.inputs: dict[int, tuple[str, int]] = {}  # storage of a unit's input -> part, bytes
        self._part = "other"
        self._unit: int | None = None
        self._alive: list[Tensor] = []  # a freed storage's identity would be given to another

    @contextmanager
    def recording(self) -> Iterator[None]:
        handles = []
        for number, unit in enumerate(self.units):
            handles.append(unit.register_forward_pre_hook(self._enter(number), with_kwargs=True))
            handles.append(unit.register_forward_hook(self._leave))
        try:
            with _Casts(self), saved_tensors_hooks(self._save, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def result(self) -> Activations:
        saved, kept, by_unit = Counter[str](), Counter[str](), Counter[tuple[str, int]]()
        for storage, (part, unit, size) in self.saved.items():
            saved[part] += size
            if storage in self.inputs:
                continue
            if unit is None:
                kept[part] += size
            else:
                by_unit[part, unit] += size
        for part, size in self.inputs.values():
            kept[part] += size
        largest: Parts = {}
        for (part, _), size in by_unit.items():
            largest[part] = max(size, largest.get(part, 0))
        copies = Counter[bool]()
        for in_block, size in self.copies.values():
            copies[in_block] += size
        logits = saved.pop(LOGITS)
        del kept[LOGITS]
        return Activations(dict(saved), dict(kept), largest, logits, copies[True], copies[False])

    def note_copy(self, weight: Tensor, copy: Tensor) -> None:
        if _storage(weight) in self.weights:
            self._alive.append(copy)
            in_block = self._unit is not None and self.units[self._unit] in self.blocks
            self.copies[_storage(copy)] = (in_block, _bytes(copy))

    def _save(self, tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in self.weights and storage not in self.copies and storage not in self.saved:
            self._alive.append(tensor)
            self.saved[storage] = (self._part, self._unit, _bytes(tensor))
        return tensor

    def _enter(self, number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._unit = number
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor) and tensor.is_floating_point() and _storage(tensor) not in self.inputs:
                    self._alive.append(tensor)
                    self.inputs[_storage(tensor)] = (self._part, _bytes(tensor))

        return hook

    def _leave(self, *_: Any) -> None:
        self._unit = None


class _Casts(TorchDispatchMode):
    """Sees which tensors are weights in another precision."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.recorder.note_copy(args[0], out)
        return out


class _KeepsWhatFlashKeeps:
    def attend(self, layer: int, q_BHLd: Tensor, k_BGLd: Tensor, v_BGLd: Tensor, scale: float) -> Tensor:
        return _Flash.apply(q_BHLd, k_BGLd, v_BGLd).transpose(1, 2)  # type: ignore[no-untyped-call]


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
