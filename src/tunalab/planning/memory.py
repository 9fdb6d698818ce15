"""What a run needs: parameters, memory of one GPU in training, bytes on the disk and downloads.

What a training step keeps for its backward pass is found by running the model's parts on tensors
without memory. They run under FakeTensorMode, with autocast as in training, and every tensor that autograd
saves is noted with its size: so no layer's bytes are worked out by hand, and a changed layer
changes the plan. Attention is taken to keep what flash and flex attention keep (queries, keys,
values, output, one number a query), never a matrix of pairs.

Weights, gradients, AdamW's two averages and the EMA are kept in float32. In bfloat16 training
autocast keeps a copy of every weight it casts until the step ends; sharded training (FSDP2)
instead gathers decoder layers and flow-head blocks in bfloat16, one in use and the next one on
its way, and the rest in float32 for the whole step.

Not counted: the CUDA context, communication buffers, fragmentation, and the passing workspace of
a frozen VAE: leave a tenth.

Shapes: L tokens, N images, T visual tokens of an image, K labelled tokens, D width, C h w of the
target space.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunalab.data.buckets import Size
from tunalab.data.documents import Kind
from tunalab.data.scenes import BENCHMARKS
from tunalab.frontends.components.store import TINY
from tunalab.model.decoder import hidden_states
from tunalab.model.flow_head import rotary_tables
from tunalab.model.objective import CHUNK, text_loss
from tunalab.model.unified import UnifiedModel
from tunalab.redaction import redacted
from tunalab.settings.loading import budget
from tunalab.settings.schema import OptimizerConfig, RunConfig, StageConfig
from tunalab.training.blocks import blocks, recomputed
from tunalab.training.optimisation import set_trainable

FRONT_END = "front-end: "


@dataclass(frozen=True)
class Count:
    trained: int = 0
    frozen: int = 0


@dataclass(frozen=True)
class Totals:
    """``trained``: learnt in some stage; ``in_blocks``: those of them in decoder layers and blocks of the flow head."""

    trained: int
    frozen: int
    in_blocks: int


def parts(model: UnifiedModel) -> dict[str, Count]:
    """By part, in the order of the data's way; a table that embeds and projects is counted once, as embeddings."""
    decoder, head, frontend = model.decoder, model.head, model.frontend
    found: dict[str, list[nn.Parameter]] = {}
    for name, child in frontend.named_children():
        found[FRONT_END + name.replace("_", " ")] = list(child.parameters())
    found["mask token"] = list(model.mask_token.parameters())
    found["time embedding"] = list(model.time.parameters())
    found["decoder: embeddings"] = list(decoder.model.embed_tokens.parameters())
    found["decoder: layers"] = [*decoder.model.layers.parameters(), *decoder.model.norm.parameters()]
    tied = decoder.lm_head.weight is decoder.model.embed_tokens.weight
    found["decoder: output table"] = [] if tied else list(decoder.lm_head.parameters())
    found["flow head: blocks"] = list(head.blocks.parameters())
    found["flow head: output"] = [p for name, p in head.named_parameters() if not name.startswith("blocks.")]
    frozen = {FRONT_END + part.replace("_", " ") for part in frontend.frozen_parts}
    counts = {}
    for name, parameters in found.items():
        number = sum(p.numel() for p in parameters)
        if number:
            counts[name] = Count(frozen=number) if name in frozen else Count(trained=number)
    return counts


def totals(model: UnifiedModel) -> Totals:
    counts = parts(model).values()
    in_blocks = sum(p.numel() for block in blocks(model) for p in block.parameters())
    return Totals(sum(count.trained for count in counts), sum(count.frozen for count in counts), in_blocks)


def trained_in(model: UnifiedModel, stage: StageConfig, optimizer: OptimizerConfig) -> int:
    """Parameters that learn in a stage. Leaves the model as that stage trains it."""
    set_trainable(model, stage.train, optimizer)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


Parts = dict[str, int]
LOGITS = "logits"


@dataclass(frozen=True)
class Activations:
    """Bytes a rank keeps, by part of the model, for a row that is full of what the part works on (see :func:`trace`).

    ``saved``: without activation checkpointing. With it a unit (``training.blocks.recomputed``) keeps its inputs alone: ``kept`` is
    those and all that lies outside units, ``unit`` the most that one unit of the part saves when it is computed again.
    ``logits``: what the text loss saves for a row of labels, were all their logits alive at once; none with ``fused`` (the fused
    text loss), where a chunk is its own gradient.
    ``block_copies``, ``other_copies``: weights that autocast casts, kept until the step's end, of the blocks that are sharded one
    by one and of the rest. ``table``: the gradient of the output table, in the precision in which the text loss adds it up.
    """

    saved: Parts
    kept: Parts
    unit: Parts
    logits: int
    block_copies: int
    other_copies: int
    table: int = 0
    fused: bool = False


def trace(model: UnifiedModel, tokens: int, size: Size, bf16: bool, fused: bool = False) -> Activations:
    """What is kept for ``tokens`` tokens a rank: all of them run through the decoder, all are visual tokens of images of ``size``
    pixels (height, width), all run through the flow head, and all are labelled. Each part is linear in its tokens, so a real row
    is a sum of shares of these. ``fused``: with the fused text loss.

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
        table = model.decoder.lm_head.weight.numel() * (HALF if bf16 and not fused else FLOAT)
        return replace(recorder.result(), table=table, fused=fused)


def _run(model: UnifiedModel, tokens: int, size: Size, images: int, recorder: "_Recorder") -> None:
    """The steps of UnifiedModel.forward and of the losses, at places that do not matter to sizes."""
    backend = _KeepsWhatFlashKeeps()
    places_1L = torch.zeros((1, tokens), dtype=torch.int64)
    with recorder.part("front-end"):
        time_ND = model.time(torch.empty(images))
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # as objective.to_space
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


FLOAT, HALF = 4, 2  # bytes
# Besides what is saved, the loss holds the gradients of the log-softmax and of the logits, in float32.
LOSS_WORKSPACE = 2 * FLOAT
# For each number of h_KD the fused loss holds its gradient and, of a chunk, at most two logits, which become their own gradients.
FUSED_WORKSPACE = 3 * FLOAT


@dataclass(frozen=True)
class Sharding:
    """``strategy``: none | ddp | fsdp2; ``shards``: ranks that hold one copy of the parameters between them; ``accumulates``:
    whether whole gradients wait for the last of several micro-batches.
    """

    strategy: str
    ranks: int
    shards: int
    accumulates: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes. ``states``: what every step needs, by kind; ``activations``: the most that a row needs, ``row`` the kind of document
    that fills such a row; both without and with activation checkpointing.
    """

    states: dict[str, int]
    activations: dict[str, int]
    row: dict[str, Kind]

    def total(self, checkpointing: bool) -> int:
        return sum(self.states.values()) + self.activations[WITH if checkpointing else WITHOUT]


WITHOUT, WITH = "without checkpointing", "with checkpointing"


def memory(
    count: Totals,
    traced: Activations,
    rows: Mapping[Kind, Mapping[str, float]],
    labels: int,
    vocabulary: int,
    sharding: Sharding,
    largest_block: int,
    bf16: bool,
) -> Memory:
    """``rows``: for each kind of document the share of a rank's tokens that every part works on (workload.row_share); ``labels``:
    how many there are if every token is labelled; ``largest_block``: parameters of the largest decoder layer or head block.
    """
    activations, row = {}, {}
    for name, checkpointing in ((WITHOUT, False), (WITH, True)):
        by_kind = {kind: row_bytes(traced, shares, labels, vocabulary, checkpointing) for kind, shares in rows.items()}
        row[name] = max(by_kind, key=lambda kind: by_kind[kind])
        activations[name] = by_kind[row[name]]
    return Memory(state_bytes(count, traced, sharding, largest_block, bf16), activations, row)


def state_bytes(count: Totals, traced: Activations, sharding: Sharding, largest_block: int, bf16: bool) -> dict[str, int]:
    """Of one rank, by kind."""
    shards = sharding.shards if sharding.strategy == "fsdp2" else 1
    share = -(-count.trained // shards)
    states = {
        "weights": FLOAT * (share + -(-count.frozen // shards)),
        "gradients": FLOAT * share,
        "optimiser": 2 * FLOAT * share,
        "EMA": FLOAT * share,
    }
    if sharding.strategy == "fsdp2":
        rest = count.trained + count.frozen - count.in_blocks
        gathered = FLOAT * rest + 2 * (HALF if bf16 else FLOAT) * largest_block
        states["gathered weights"] = gathered + traced.other_copies
        if sharding.accumulates:
            states["whole gradients"] = (HALF if bf16 else FLOAT) * count.in_blocks + FLOAT * (rest - count.frozen)
    else:
        states["weights cast"] = traced.block_copies + traced.other_copies
    return {kind: size for kind, size in states.items() if size}


def start_bytes(model: UnifiedModel, count: Totals, sharding: Sharding) -> int:
    """Main memory that a process needs for the weights until its first step. On a GPU its shard lies there instead.

    Unsharded, the model. Sharded, a process has its shard and the frozen parts, and besides these at first the front-end, later
    one tensor at a time, which the largest bounds (training.blocks.fill).
    """
    if sharding.strategy != "fsdp2":
        return FLOAT * (count.trained + count.frozen)
    frontend = sum(p.numel() for p in model.frontend.parameters()) - count.frozen
    passing = max(frontend, max(p.numel() for p in model.parameters()))
    return FLOAT * (-(-count.trained // sharding.shards) + count.frozen + passing)


def row_bytes(traced: Activations, shares: Mapping[str, float], labels: int, vocabulary: int, checkpointing: bool) -> int:
    """What a rank keeps at the peak, which is where the text loss goes backward, for tokens of one kind of document.

    With checkpointing a unit is computed again after the loss has let go of its logits, so only the larger of both counts.
    """
    alive = min(shares["labels"], CHUNK / labels)
    loss = alive * (traced.logits + LOSS_WORKSPACE * labels * vocabulary)
    if traced.fused:
        width = traced.table // (FLOAT * vocabulary)
        loss = traced.table + FUSED_WORKSPACE * shares["labels"] * labels * width
    elif alive < shares["labels"]:  # gradients of the chunks that are done wait for the others
        loss += traced.table
    by_part = traced.kept if checkpointing else traced.saved
    kept = sum(size * shares[part] for part, size in by_part.items())
    if not checkpointing:
        return round(kept + loss)
    unit = max((size * shares[part] for part, size in traced.unit.items()), default=0)
    return round(kept + max(loss, unit))


STATES = 4  # of every trained parameter, in float32: itself, its average over training, AdamW's two moments
# A benchmark at a point of a record, without its outcomes (a hexadecimal digit for four questions); a caption in a picture.
SCORE_BYTES, CAPTION_BYTES = 280, 4000


@dataclass(frozen=True)
class Storage:
    """``checkpoint``: one; ``checkpoints``: those that are kept and the next, which is written before the oldest goes; ``points``:
    averaged weights that stay for benchmarks to come (evaluation.keep_points);
    ``samples``: at most, pictures of the run's own prompts hardly compress where they are photographs.
    """

    checkpoint: int
    checkpoints: int
    points: int
    record: int
    samples: int

    @property
    def total(self) -> int:
        return self.checkpoints + self.points + self.record + self.samples


def storage(config: RunConfig, count: Totals) -> Storage:
    """Of one run, at its fullest."""
    evaluation, data = config.evaluation, config.data
    checkpoint = STATES * FLOAT * count.trained
    kinds = len(BENCHMARKS) + len(data.questions)
    questions = [evaluation.groups] * (kinds * len(evaluation.levels) if evaluation.groups else 0)
    questions += [chosen.limit for chosen in evaluation.benchmarks.values()]
    questions += [evaluation.easy_vqa] if evaluation.easy_vqa else []
    record = evaluation.points * sum(SCORE_BYTES + n // 4 for n in questions)
    pictures = evaluation.points * evaluation.sample_prompts * (3 * data.image_size**2 + CAPTION_BYTES)
    staying = len({tokens for tokens in config.checkpoint_keep if tokens <= budget(config)})
    points = {"all": evaluation.points, "last": 1}.get(evaluation.keep_points, 0) * HALF * count.trained
    return Storage(checkpoint, (config.keep_checkpoints + 1 + staying) * checkpoint, points, record, pictures)


def downloads(config: RunConfig, parameters: dict[str, Count]) -> dict[str, int]:
    """Name -> bytes of the pretrained parts that come from the Hub or a folder: the decoder as published in bfloat16, encoder and
    VAE in float32. Parts of an encoder that the model drops, and tokenizers, are not counted.
    """
    found: dict[str, int] = {}

    def add(name: str, starts: str, width: int) -> None:
        held = [count for part, count in parameters.items() if part.startswith(starts)]
        found[redacted(name)] = width * sum(count.trained + count.frozen for count in held)

    if config.decoder.pretrained:
        add(config.decoder.pretrained, "decoder: ", HALF)
    if config.frontend.encoder not in ("", TINY) and config.frontend.encoder_pretrained:
        add(config.frontend.encoder, f"{FRONT_END}encoder", FLOAT)
    if config.frontend.vae not in ("", TINY):
        add(config.frontend.vae, f"{FRONT_END}vae", FLOAT)
    return found
