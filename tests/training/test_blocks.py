"""Compiled blocks give the gradients of plain ones, with attention as a part of them, by few graphs; the kernels need a GPU."""

from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention

from tests.conftest import small_config
from tests.model.samples import plain_draws, random_batch
from tests.tolerances import assert_gradients_close, assert_sums_close, model_terms
from tests.training.conftest import quick_config
from tests.training.test_module import batch_of, gradients, make_harness, rows, step_of
from tunalab.data.tokenizer import Tokenizer
from tunalab.frontends.registry import FRONTENDS
from tunalab.frontends.siglip import Siglip
from tunalab.model import unified
from tunalab.model.attention import FlexAttention
from tunalab.model.objective import losses
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import ObjectiveConfig
from tunalab.training.blocks import blocks, prepare_blocks, recomputed
from tunalab.training.joint import JointStep
from tunalab.training.module import Harness

KINDS = ["vqa", "caption", "text", "text_to_image", "edit", "text_to_image"]


def harness(**settings: object) -> Harness:
    made = make_harness(quick_config(**settings)).train()
    with torch.no_grad():  # weights that start at zero would let no gradient through
        for parameter in made.model.head.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return made


def step(first: int) -> JointStep:
    return step_of([batch_of(rows(KINDS[first:] + KINDS[: first // 2]))])


@pytest.mark.slow
def test_compiled_and_recomputed_blocks_give_the_same_gradients_by_few_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    # Graphs are run as they are instead of being made into kernels.
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)  # it has no fast backward pass on CPU, but a plain one
    plain = harness(attention="dense")
    compiled = harness(compile_blocks=True, activation_checkpointing=True)
    terms = model_terms(quick_config(), 256)
    graphs = []
    for first in (0, 1, 2, 3):  # masks and lengths differ in every step
        expected = plain._backward(step(first))
        with monkeypatch.context() as patch:
            patch.setattr(unified, "make_backend", lambda name, layout: FlexAttention(layout))
            found = compiled._backward(step(first))
        for name, mean in expected.items():
            assert_sums_close(torch.tensor(found[name]), torch.tensor(mean), terms)
        graphs.append(counter.frame_count)
    assert_gradients_close(gradients(compiled), gradients(plain), 3 * terms + 4)  # added up over the steps
    assert 2 <= graphs[-1] == graphs[1], f"of a decoder layer, a head block, and one for all lengths: {graphs}"
    assert all("flex_attention" in graph.print_readable(print_output=False) for graph in counter.graphs)


def with_rotary_encoder(tokenizer: Tokenizer) -> UnifiedModel:
    """An encoder whose blocks are given more than their input: the rotary positions of DINOv3."""
    config = small_config()
    sizes = {"patch_size": 8, "img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        frontend = Siglip(timm.create_model("vit_small_patch16_dinov3", **sizes), config.decoder.width, config.frontend)
        model = UnifiedModel(config, frontend, tokenizer.vocabulary)
        nn.init.normal_(model.head.output.weight)
    return model


@pytest.mark.parametrize("name", [*sorted(FRONTENDS), "rotary"])
def test_every_block_runs_again_and_gradients_are_the_same(
    name: str, tiny_model: Callable[..., UnifiedModel], tokenizer: Tokenizer
) -> None:
    batch = random_batch("cget", 2, tokenizer)
    observed: list[dict[str, Tensor]] = []
    for recompute in (False, True):
        model = (with_rotary_encoder(tokenizer) if name == "rotary" else tiny_model(name)).train()
        assert len(recomputed(model)) == len(blocks(model)) + 2 * hasattr(model.frontend, "encoder"), "the encoder's are among them"
        prepare_blocks(model, recompute, compiled=False)
        runs = [0] * len(recomputed(model))
        for number, block in enumerate(recomputed(model)):
            inner = next(part for part in block.modules() if isinstance(part, nn.Linear))
            inner.register_forward_hook(lambda *_, runs=runs, number=number: runs.__setitem__(number, runs[number] + 1))
        parts = losses(model, batch, plain_draws(model, batch, masked=0.3), ObjectiveConfig())
        (parts["text"].sum + parts["flow"].sum).backward()
        assert runs == [1 + recompute] * len(runs)
        observed.append({key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None})
    plain, again = observed
    assert plain.keys() == again.keys() and all(torch.equal(again[key], plain[key]) for key in plain)
    assert all(gradient.any() for key, gradient in plain.items() if key.startswith("frontend."))
