"""Counted FLOPs against what torch counts in a real forward and backward pass."""

from collections.abc import Callable

import pytest
import torch
from samples import documents, place, plain_draws
from tests.conftest import small_config
from torch.utils.flop_counter import FlopCounterMode

from tunalab.data.packing import PackedBatch, collate
from tunalab.data.tokenizer import Tokenizer
from tunalab.frontends.registry import FRONTENDS
from tunalab.model.attention import may_attend
from tunalab.model.flops import FORWARD_AND_BACKWARD, Work, attended_pairs, model_costs
from tunalab.model.objective import losses, to_space
from tunalab.model.unified import UnifiedModel

NAMES = sorted(FRONTENDS)
SIZES = [(32, 32), (16, 48)]


@pytest.fixture
def dense(tiny_model: Callable[..., UnifiedModel]) -> Callable[[str], UnifiedModel]:
    """Models whose attention is one SDPA over the whole row, so that what torch counts of it is known: L^2 pairs a row."""
    config = small_config()
    config.attention = "dense"
    return lambda name: tiny_model(name, 0, config)


def full_row(kinds: str, tokenizer: Tokenizer) -> PackedBatch:
    placed = place(documents(kinds, sizes=SIZES), tokenizer)
    return collate([placed], sum(p.length for p in placed), tokenizer.pad)


def count(model: UnifiedModel, batch: PackedBatch, backward: bool) -> FlopCounterMode:
    x, draws = to_space(model, batch), plain_draws(model, batch)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        parts = losses(model, batch, draws, small_config().objective, x)
        if backward:
            (parts["text"].sum + parts["flow"].sum).backward()
    model.zero_grad()
    return counter


def linear(counter: FlopCounterMode, *modules: str) -> float:
    """FLOPs of linear maps and convolutions in some modules, or in all."""
    counts = counter.get_flop_counts()
    names = [f"UnifiedModel.{name}" for name in modules] or ["Global"]
    return sum(flops for name in names for operation, flops in counts[name].items() if "attention" not in str(operation))


def attention(counter: FlopCounterMode, modules: list[str]) -> float:
    counts = counter.get_flop_counts()
    return sum(
        flops for name in modules for operation, flops in counts[f"UnifiedModel.{name}"].items() if "attention" in str(operation)
    )


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_the_forward_pass_are_what_torch_counts(
    name: str, dense: Callable[[str], UnifiedModel], tokenizer: Tokenizer
) -> None:
    model = dense(name)
    batch = full_row("cvgetg", tokenizer)
    work = Work.of(batch)
    ours = {part: flops / FORWARD_AND_BACKWARD for part, flops in model_costs(model, SIZES).parts(work).items()}
    counter = count(model, batch, backward=False)
    layers, blocks = [f"decoder.model.layers.{n}" for n in range(2)], [f"head.blocks.{n}" for n in range(2)]
    assert ours["decoder"] == linear(counter, *layers)
    assert ours["logits"] == linear(counter, "decoder.lm_head")
    # The modulation of images that are only looked at is computed too, and used by nothing: no part of the model's own work.
    modulation = linear(counter, *(f"{block}.modulation" for block in blocks))
    idle = modulation * (1 - work.generated_images / sum(work.images.values()))
    head = linear(counter, *blocks, "head.final_modulation", "head.output")
    assert ours["flow head"] == pytest.approx(head - idle, rel=1e-12)
    front_end = linear(counter) - linear(counter, *layers, "decoder.lm_head", "time") - head
    encoder = [f"frontend.encoder.blocks.{n}" for n in range(2)] if hasattr(model.frontend, "encoder") else []
    assert ours["front-end"] == pytest.approx(front_end + attention(counter, encoder), rel=1e-12)
    # torch counts every pair of a row, however few the mask lets through: those are counted below.
    share = work.pairs / batch.tokens**2
    assert ours["decoder attention"] == pytest.approx(share * attention(counter, layers), rel=1e-12)
    share = work.generating_pairs / work.generating_tokens**2
    assert ours["flow head attention"] == pytest.approx(share * attention(counter, blocks), rel=1e-12)


def test_pairs_are_those_that_the_mask_lets_through(tokenizer: Tokenizer) -> None:
    batch = full_row("cvgetg", tokenizer)
    allowed_LL = may_attend(batch.document_BL, batch.span_BL)[0]
    pairs_D = torch.stack([allowed_LL[batch.document_BL[0] == document].sum() for document in range(len(batch.length_D))])
    assert torch.equal(attended_pairs(batch), pairs_D)
    work = Work.of(batch)
    assert work.pairs == allowed_LL.sum() and work.generating_pairs == pairs_D[batch.generates_D].sum()


@pytest.mark.parametrize("name", NAMES)
def test_the_backward_pass_doubles_the_forward_pass(name: str, dense: Callable[[str], UnifiedModel], tokenizer: Tokenizer) -> None:
    """But for the first layers, whose inputs need no gradient: they are counted all the same, as they are small."""
    model = dense(name)
    batch = full_row("cvgetg", tokenizer)
    forward, both = count(model, batch, backward=False), count(model, batch, backward=True)
    embedding = next(part for part in ("projection", "patch_embedding", "down") if hasattr(model.frontend, part))
    first = linear(forward, "time.mlp.0", f"frontend.{embedding}")
    assert linear(both) == FORWARD_AND_BACKWARD * linear(forward) - first


def test_frozen_parts_are_passed_forward_only(dense: Callable[[str], UnifiedModel], tokenizer: Tokenizer) -> None:
    model = dense("vae_siglip")
    batch = full_row("cvgetg", tokenizer)
    with FlopCounterMode(display=False) as counter:
        to_space(model, batch)
    assert model_costs(model, SIZES).parts(Work.of(batch))["frozen front-end"] == counter.get_total_flops() > 0


@pytest.mark.parametrize("name", ["siglip", "vae_siglip"])
def test_a_fixed_encoder_costs_no_gradients_of_its_weights(
    name: str, dense: Callable[[str], UnifiedModel], tokenizer: Tokenizer
) -> None:
    """Below Tuna's something is trained, so gradients pass through it; below Tuna-R's nothing is."""
    model = dense(name)
    model.frontend.fixed_parts = ("encoder",) if name == "vae_siglip" else ("patch_embedding", "encoder")
    model.frontend.freeze()
    batch = full_row("cvgetg", tokenizer)
    fixed = [f"frontend.{part}" for part in model.frontend.fixed_parts]
    forward, both = count(model, batch, backward=False), count(model, batch, backward=True)
    passes = 2 if name == "vae_siglip" else 1
    assert linear(both, *fixed) == passes * linear(forward, *fixed)
    with FlopCounterMode(display=False) as counter:
        to_space(model, batch)
    parts = model_costs(model, SIZES).parts(Work.of(batch))
    once, whole = (
        sum(sum(forward.get_flop_counts()[f"UnifiedModel.{part}"].values()) for part in of) for of in (fixed, ["frontend"])
    )
    assert parts["frozen front-end"] == counter.get_total_flops() + passes * once
    assert parts["front-end"] == FORWARD_AND_BACKWARD * (whole - once)


def test_a_batch_of_text_costs_the_decoder_alone(dense: Callable[[str], UnifiedModel], tokenizer: Tokenizer) -> None:
    costs = model_costs(dense("siglip"), SIZES)
    batch = full_row("tt", tokenizer)
    parts = costs.parts(Work.of(batch))
    assert {part for part, flops in parts.items() if flops} == {"decoder", "decoder attention", "logits"}
    assert costs.step(batch) == sum(parts.values())
