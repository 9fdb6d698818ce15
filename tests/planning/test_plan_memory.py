"""Planned memory against what small models really hold."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from tests.conftest import SmallComponents, small_config
from tests.model.samples import plain_draws, random_batch
from tests.variants import settings_of
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from tunalab.data.packing import PackedBatch
from tunalab.data.tokenizer import Tokenizer
from tunalab.frontends.registry import FRONTENDS, build_frontend
from tunalab.model import objective
from tunalab.model.objective import losses, text_loss
from tunalab.model.unified import UnifiedModel
from tunalab.planning import memory as memory_module
from tunalab.planning import memory as parameters
from tunalab.planning.memory import (
    FUSED_WORKSPACE,
    LOSS_WORKSPACE,
    WITH,
    WITHOUT,
    Activations,
    Sharding,
    Totals,
    memory,
    row_bytes,
    state_bytes,
    trace,
)
from tunalab.settings.schema import DecoderConfig, FlowHeadConfig, RunConfig
from tunalab.training.blocks import blocks, recomputed
from tunalab.training.module import Harness

NAMES = sorted(FRONTENDS)
SIZE = (32, 32)
ALL = {"front-end": 1.0, "decoder": 1.0, "labels": 1.0, "flow head": 1.0, "predictions": 1.0}


def config_of(width: int = 64) -> RunConfig:
    """Heads are not grouped: on CPU grouped keys and values are copied for every query head, which no GPU does."""
    config = small_config()
    config.decoder = DecoderConfig(width=width, layers=3, heads=4, kv_heads=4, mlp=2 * width)
    config.head = FlowHeadConfig(blocks=2, heads=4, kv_heads=4, head_dim=16, mlp=2 * width)
    config.attention = "dense"
    return config


def model_on(device: str, name: str, vocabulary: int, config: RunConfig | None = None) -> UnifiedModel:
    config = config or config_of()
    with torch.device(device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        frontend = build_frontend(settings_of(name), config.decoder.width, SIZE[0], SmallComponents())
        return UnifiedModel(config, frontend, vocabulary)


@pytest.mark.parametrize("name", NAMES)
def test_states_are_what_training_holds(name: str, tokenizer: Tokenizer) -> None:
    config = config_of()
    model = model_on("cpu", name, tokenizer.vocabulary)
    harness = Harness(config, model)
    harness.on_fit_start()
    optimizer = harness.configure_optimizers()
    batch = random_batch("cge", 1, tokenizer)
    parts = losses(model, batch, plain_draws(model, batch), config.objective)
    (parts["text"].sum + parts["flow"].sum).backward()
    optimizer.step()
    harness.ema.update()
    held = {
        "weights": size(model.parameters()),
        "gradients": size(p.grad for p in model.parameters() if p.grad is not None),
        # AdamW's count of steps, a number a tensor, is left out.
        "optimiser": size(t for state in optimizer.state.values() for t in state.values() if t.dim()),
        "EMA": size(harness.ema.shadow.values()),
    }
    meta = model_on("meta", name, tokenizer.vocabulary)
    planned = state_bytes(parameters.totals(meta), NOTHING, Sharding("ddp", 2, 1), 0, bf16=False)
    assert planned == held


NOTHING = Activations({}, {}, {}, 0, 0, 0)


def size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def measured(model: UnifiedModel) -> Iterator[list[Tensor]]:
    """What autograd saves inside the block, weights left out: every storage once."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    found: list[Tensor] = []
    with saved_tensors_hooks(save, lambda tensor: tensor):
        yield found
    found += kept.values()


def full_batch(tokenizer: Tokenizer) -> PackedBatch:
    """Mostly visual tokens, all of documents that generate: what the plan takes a row of text-to-image for."""
    return random_batch("g" * 24, 1, tokenizer)


def run(model: UnifiedModel, batch: PackedBatch, bf16: bool) -> int:
    draws = plain_draws(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext(), measured(model) as kept:
        parts = losses(model, batch, draws, config_of().objective)
    assert parts["flow"].count
    return kept_bytes(kept)


def kept_bytes(kept: list[Tensor]) -> int:
    masks = [tensor for tensor in kept if tensor.dim() == 4 and tensor.shape[2] == tensor.shape[3] > 64]
    return sum(tensor.untyped_storage().nbytes() for tensor in kept) - sum(mask.untyped_storage().nbytes() for mask in masks)


def planned(name: str, batch: PackedBatch, bf16: bool, checkpointing: bool, vocabulary: int) -> float:
    """For a batch without labels: the loss needs nothing."""
    traced = trace(model_on("meta", name, vocabulary), batch.ids_BL.numel(), SIZE, bf16)
    visual = sum(len(group) * group.tokens for group in batch.groups) / batch.ids_BL.numel()
    shares = {**ALL, "labels": 0.0, "front-end": visual, "predictions": visual}
    unit = max(size * shares[part] for part, size in traced.unit.items()) if checkpointing else 0
    kept = row_bytes(traced, shares, batch.ids_BL.numel(), vocabulary, checkpointing) - unit
    return kept + (traced.block_copies + traced.other_copies if bf16 else 0)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_activations_are_what_autograd_saves(name: str, bf16: bool, tokenizer: Tokenizer) -> None:
    """To a tenth. Masks of the dense attention on CPU are left out, which no flash kernel keeps."""
    batch = full_batch(tokenizer)
    real = run(model_on("cpu", name, tokenizer.vocabulary), batch, bf16)
    assert planned(name, batch, bf16, False, tokenizer.vocabulary) == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointed_units_keep_their_inputs(name: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reentrant checkpointing hands the inputs of a unit to autograd, so the hooks see what is kept."""
    batch = full_batch(tokenizer)
    model = model_on("cpu", name, tokenizer.vocabulary)
    whole = run(model, batch, False)
    for unit in recomputed(model):
        monkeypatch.setattr(unit, "forward", checkpointed(unit.forward))
    real = run(model, batch, False)
    assert real < whole / 3
    assert planned(name, batch, False, True, tokenizer.vocabulary) == pytest.approx(real, rel=0.1)


def checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: checkpoint(lambda *given: forward(*given, **kwargs), *args, use_reentrant=True)


def test_the_loss_keeps_a_row_of_logits(tokenizer: Tokenizer) -> None:
    """Text alone: every token is labelled, and the logits outweigh a small decoder."""
    batch = random_batch("t" * 40, 1, tokenizer)
    model = model_on("cpu", "patch_embed", tokenizer.vocabulary)
    with measured(model) as kept:
        losses(model, batch, plain_draws(model, batch), config_of().objective)
    real = kept_bytes(kept)
    tokens, labels = batch.ids_BL.numel(), len(batch.label_K)
    traced = trace(model_on("meta", "patch_embed", tokenizer.vocabulary), tokens, SIZE, False)
    shares = {"front-end": 0.0, "decoder": 1.0, "labels": labels / tokens, "flow head": 0.0, "predictions": 0.0}
    loss = LOSS_WORKSPACE * labels * tokenizer.vocabulary
    assert row_bytes(traced, shares, tokens, tokenizer.vocabulary, False) - loss == pytest.approx(real, rel=0.1)


def test_beyond_a_chunk_labels_keep_their_hidden_states_alone(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four fifths of the labels wait; what one chunk needs is there for one chunk at a time, and goes by the tracing above."""
    batch = random_batch("t" * 40, 1, tokenizer)
    model = model_on("cpu", "patch_embed", tokenizer.vocabulary)
    tokens, labels = batch.ids_BL.numel(), len(batch.label_K)
    chunk = -(-labels // 5)
    monkeypatch.setattr(memory_module, "CHUNK", chunk)
    monkeypatch.setattr(objective, "text_loss", partial(text_loss, chunk=chunk))
    with measured(model) as kept:
        losses(model, batch, plain_draws(model, batch), config_of().objective)
    traced = trace(model_on("meta", "patch_embed", tokenizer.vocabulary), tokens, SIZE, False)
    shares = {"front-end": 0.0, "decoder": 1.0, "labels": labels / tokens, "flow head": 0.0, "predictions": 0.0}
    loss = chunk * (traced.logits / tokens + LOSS_WORKSPACE * tokenizer.vocabulary) + traced.table
    assert traced.logits / tokens >= 4 * tokenizer.vocabulary
    assert row_bytes(traced, shares, tokens, tokenizer.vocabulary, False) - loss == pytest.approx(kept_bytes(kept), rel=0.1)


def test_sharding_divides_what_it_shards() -> None:
    count = Totals(trained=1000, frozen=100, in_blocks=800)
    traced = Activations({}, {}, {}, logits=0, block_copies=1600, other_copies=10)
    ddp = state_bytes(count, traced, Sharding("ddp", 8, 1), 100, bf16=True)
    assert ddp == {"weights": 4400, "gradients": 4000, "optimiser": 8000, "EMA": 4000, "weights cast": 1610}
    # Over 4: a quarter; besides, two units of 100 in bfloat16 and the other 300 in float32, with what autocast casts of those.
    fsdp2 = state_bytes(count, traced, Sharding("fsdp2", 8, 4), 100, bf16=True)
    gathered = 2 * 2 * 100 + 4 * 300 + 10
    assert fsdp2 == {"weights": 1100, "gradients": 1000, "optimiser": 2000, "EMA": 1000, "gathered weights": gathered}
    waiting = state_bytes(count, traced, Sharding("fsdp2", 8, 4, accumulates=True), 100, bf16=True)
    assert waiting == {**fsdp2, "whole gradients": 2 * 800 + 4 * 200}


def test_the_row_that_needs_most_is_named() -> None:
    traced = Activations(
        saved={"decoder": 1000, "labels": 20, "flow head": 600, "front-end": 10},
        kept={"decoder": 100, "labels": 20, "flow head": 60, "front-end": 10},
        unit={"decoder": 50, "flow head": 70},
        logits=800,
        block_copies=0,
        other_copies=0,
    )
    rows = {
        "text_to_image": {"front-end": 1.0, "decoder": 1.0, "labels": 0.0, "flow head": 1.0},
        "text": {"front-end": 0.0, "decoder": 1.0, "labels": 0.5, "flow head": 0.0},
    }
    found = memory(Totals(1, 0, 1), traced, rows, 10, 5, Sharding("none", 1, 1), 1, bf16=False)  # type: ignore[arg-type]
    assert found.activations == {WITHOUT: 1610, WITH: 100 + 10 + 400 + LOSS_WORKSPACE * 25}
    assert found.row == {WITHOUT: "text_to_image", WITH: "text"}
    assert found.total(True) == sum(found.states.values()) + found.activations[WITH]


def test_the_fused_loss_holds_a_whole_gradient_of_the_table_and_few_logits(tokenizer: Tokenizer) -> None:
    vocabulary, tokens = tokenizer.vocabulary, 1024
    rows = {"front-end": 1.0, "decoder": 1.0, "labels": 1.0, "flow head": 0.0, "predictions": 0.0}
    needed = {}
    for fused in (False, True):
        model = model_on("meta", "patch_embed", vocabulary)
        width = model.decoder.lm_head.in_features
        traced = trace(model, tokens, SIZE, True, fused)
        needed[fused] = row_bytes(traced, rows, tokens, vocabulary, False)
    assert traced.table == 4 * vocabulary * width
    kept = sum(size * rows[part] for part, size in traced.saved.items())
    assert needed[True] == kept + traced.table + FUSED_WORKSPACE * tokens * width
    assert needed[False] - needed[True] > 8 * tokens * vocabulary - traced.table - FUSED_WORKSPACE * tokens * width


def test_units_are_modules_that_run_alone(tokenizer: Tokenizer) -> None:
    model = model_on("meta", "siglip", tokenizer.vocabulary)
    assert len(blocks(model)) == 3 + 2 and len(recomputed(model)) == 3 + 2 + 2
    assert all(isinstance(unit, nn.Module) for unit in recomputed(model))
