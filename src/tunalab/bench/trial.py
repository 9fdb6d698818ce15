"""`tunalab plan EXPERIMENT VARIANT --try`: a training step of a slice of the model on this machine, its memory beside the plan's.

The slice has the run's widths, heads, vocabulary, pictures and rows, but a few layers, and random weights: what one layer more
would add is planned from these. Rows hold documents of assumed lengths, packed as a run packs them. On a CPU attention keeps
copies that no kernel of a GPU keeps, so here it is computed again in the backward pass and keeps what those keep.
"""

import time
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunalab.bench.gpu import assumed_steps, small_tokenizer
from tunalab.data.buckets import Buckets
from tunalab.data.packing import PackedBatch
from tunalab.frontends.components.store import Components
from tunalab.model.attention import DocumentAttention, Layout
from tunalab.model.objective import draw, loss_counts, losses
from tunalab.model.unified import UnifiedModel, build_model
from tunalab.planning.memory import Sharding, row_bytes, state_bytes, totals, trace
from tunalab.planning.plan import vocabulary
from tunalab.settings.schema import RunConfig
from tunalab.terminal import columns
from tunalab.training.blocks import prepare_blocks
from tunalab.training.module import Harness

LAYERS = 2  # of the decoder, the flow head and each list of blocks of the front-end
PASSING = "weights cast, activations, loss"


@dataclass(frozen=True)
class Trial:
    """Bytes by kind, as planned for the row and as measured; ``documents`` of each kind; ``losses`` a token; ``seconds`` of the
    step. ``checkpointing``: of activations, by the run's setting.
    """

    row_tokens: int
    documents: int
    images: int
    labels: int
    checkpointing: bool
    planned: dict[str, int]
    measured: dict[str, int]
    losses: dict[str, float]
    seconds: float

    @property
    def ratio(self) -> float:
        """Of the totals: planned to measured."""
        return sum(self.planned.values()) / sum(self.measured.values())

    def __str__(self) -> str:
        rows = [[f"MiB of a slice, {LAYERS} layers of each kind", "planned", "measured"]]
        rows += [[kind, f"{self.planned[kind] / 2**20:,.0f}", f"{size / 2**20:,.0f}"] for kind, size in self.measured.items()]
        rows.append(["total", *(f"{sum(sizes.values()) / 2**20:,.0f}" for sizes in (self.planned, self.measured))])
        found = ", ".join(f"{name} {value:.3f}" for name, value in self.losses.items())
        row = f"a row of {self.row_tokens:,} tokens ({self.documents} documents, {self.images} images, {self.labels:,} labels)"
        return (
            f"{columns(rows)}\nplanned to measured: {self.ratio:.3f}; {row}, with{'' if self.checkpointing else 'out'} "
            f"checkpointing\none step on this CPU: {self.seconds:.0f} s; losses: {found}"
        )


def try_step(config: RunConfig, row_tokens: int) -> Trial:
    """One step of the slice, on a row of the stage that has most tokens.

    Raises UserError: a row that no document fits, parts that do not fit each other.
    """
    config = slice_of(config, row_tokens)
    bf16, tokens = config.precision != "fp32", config.data.row_tokens
    model = _with_memory(_architecture(config))
    (step,) = assumed_steps(config, small_tokenizer(), 1, model.frontend.space.token_pixels)
    (batch,) = step.mine.batches
    harness = Harness(config, model)
    harness.on_fit_start()
    optimizer = harness.configure_optimizers()
    prepare_blocks(model, config.activation_checkpointing, compiled=False)
    for parameter in harness.learnt().values():  # as they are there from the second micro-batch, and moments from the second step
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = {
        "weights": _bytes(model.parameters()),
        "gradients": _bytes(p.grad for p in model.parameters() if p.grad is not None),
        "optimiser": _bytes(value for state in optimizer.state.values() for value in state.values()),
        "EMA": _bytes(harness.ema.shadow.values()),
    }
    began = time.perf_counter()
    with _Alive() as alive:
        draws = draw(batch, config.objective, config.seed, model.frontend.space, masking=True, posterior=model.frontend.sampled)
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():  # around the whole step, as in a run
            means = {name: part.sum / max(part.count, 1) for name, part in losses(model, batch, draws, config.objective).items()}
            torch.stack(list(means.values())).sum().backward()
            harness._clip()
            optimizer.step()
            harness.ema.update()
    return Trial(
        row_tokens=tokens,
        documents=len(batch.start_D),
        images=len(batch.generate_N),
        labels=len(batch.label_K),
        checkpointing=config.activation_checkpointing,
        planned=planned(config, batch),
        measured={**states, PASSING: alive.most},
        losses={name: mean.item() for name, mean in means.items()},
        seconds=time.perf_counter() - began,
    )


def slice_of(config: RunConfig, row_tokens: int) -> RunConfig:
    """The run's settings with a few layers and one row a step, and without what only a whole run or a network has."""
    stage = max(config.stages, key=lambda name: config.stages[name].tokens)
    return replace(
        config,
        stages={stage: config.stages[stage]},
        data=replace(config.data, row_tokens=row_tokens, rows=1, accumulate=1, step_tokens=0, workers=0),
        decoder=replace(
            config.decoder,
            pretrained="",
            tokenizer="",
            chat="none",
            vocabulary=max(vocabulary(config), small_tokenizer().vocabulary),
            layers=min(LAYERS, config.decoder.layers),
        ),
        head=replace(config.head, blocks=min(LAYERS, config.head.blocks)),
        compile_blocks=False,
        fused_text_loss=False,
    )


def planned(config: RunConfig, batch: PackedBatch) -> dict[str, int]:
    """What the plan of ``config``'s step says, for the documents of this row."""
    bf16, tokens = config.precision != "fp32", batch.ids_BL.numel()
    model = _architecture(config)
    count = totals(model)
    traced = trace(model, tokens, Buckets.of(config.data).sizes[0], bf16, config.fused_text_loss)
    generating_BL = torch.where(batch.document_BL >= 0, batch.generates_D[batch.document_BL], False)
    shares = {
        "front-end": sum(len(group) * group.tokens for group in batch.groups) / tokens,
        "decoder": 1.0,
        "labels": len(batch.label_K) / tokens,
        "flow head": int(generating_BL.sum()) / tokens,
        "predictions": loss_counts(batch)["flow"] / tokens,
    }
    states = state_bytes(count, traced, Sharding("none", 1, 1), 0, bf16)
    row = row_bytes(traced, shares, tokens, model.decoder.lm_head.out_features, config.activation_checkpointing)
    row += states.pop("weights cast", 0)
    return {**states, PASSING: row}


def _architecture(config: RunConfig) -> UnifiedModel:
    """The slice, without memory."""
    with torch.device("meta"):
        model = build_model(config, Components(config.components_seed), config.decoder.vocabulary)
    for name in model.frontend.block_parts:
        listed: Any = model.frontend.get_submodule(name)
        del listed[LAYERS:]
    return model


@torch.no_grad()
def _with_memory(model: UnifiedModel) -> UnifiedModel:
    """With weights at random, of a size that keeps what is computed finite, and attention that keeps what a GPU's does."""
    model.to_empty(device="cpu")
    model.decoder.tie_weights()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    for buffer in model.buffers():
        buffer.fill_(1)
    model.attention = _LikeFlash
    return model.train()


class _LikeFlash(DocumentAttention):
    def __init__(self, layout: Layout) -> None:
        _Alive.looks = False  # for its masks are the CPU's alone
        super().__init__(layout)
        _Alive.looks = True

    def attend(self, layer: int, q_BHLd: Tensor, k_BGLd: Tensor, v_BGLd: Tensor, scale: float) -> Tensor:
        q_BHLd, k_BGLd = q_BHLd.to(v_BGLd.dtype), k_BGLd.to(v_BGLd.dtype)  # as FlexAttention
        out: Tensor = _Again.apply(super().attend, layer, scale, q_BHLd, k_BGLd, v_BGLd)  # type: ignore[no-untyped-call]
        return out


class _Again(torch.autograd.Function):
    """Attention that is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, attend: Any, layer: int, scale: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = attend(layer, q, k, v, scale)
        ctx.attend, ctx.layer, ctx.scale = attend, layer, scale
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))  # what flash keeps
        return out

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        q, k, v = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors[:3])
        with torch.enable_grad():
            out = ctx.attend(ctx.layer, q, k, v, ctx.scale)
        return (None, None, None, *torch.autograd.grad(out, (q, k, v), gradient))


class _Alive(TorchDispatchMode):
    """``most``: bytes of the tensors made inside that were alive at a time."""

    looks = True

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}  # by storage
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if self.looks and isinstance(leaf, Tensor) and _storage(leaf) not in given:
                self._made(leaf.untyped_storage())
        return out

    def _made(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.sizes:
            return
        self.sizes[key] = size
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
