"""Blocks that are recomputed or compiled give the gradients of plain ones, by few graphs; the kernels themselves need a GPU."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention

from tests.training.conftest import quick_config
from tests.training.test_module import batch_of, gradients, make_harness, rows, step_of
from tunalab.model import unified
from tunalab.model.attention import FlexAttention
from tunalab.training.joint import JointStep
from tunalab.training.module import Harness

KINDS = ["vqa", "caption", "text", "text_to_image", "edit", "text_to_image"]


def harness(**settings: object) -> Harness:
    made = make_harness(quick_config(**settings)).train()
    with torch.no_grad():  # weights that start at zero would let no gradient through
        for parameter in made.model.head.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return made


def step(first: int = 0) -> JointStep:
    return step_of([batch_of(rows(KINDS[first:] + KINDS[: first // 2]))])


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Graphs are run as they are, forward and backward, instead of being made into kernels."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    return counter


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_give_the_same_gradients_by_few_graphs(counter: CompileCounterWithBackend, recompute: bool) -> None:
    plain = harness(attention="dense")
    compiled = harness(attention="dense", compile_blocks=True, activation_checkpointing=recompute)
    graphs = []
    for first in (0, 1, 2, 3, 0):
        for one in (plain, compiled):
            one.zero_grad(set_to_none=True)
        assert compiled._backward(step(first)) == pytest.approx(plain._backward(step(first)), rel=1e-5)
        found, expected = gradients(compiled), gradients(plain)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
        graphs.append(counter.frame_count)
    assert 2 <= graphs[-1] == graphs[2], f"a graph of a decoder layer, one of a head block, and one more for all lengths: {graphs}"


@pytest.mark.parametrize("recompute", [False, True])
def test_flex_attention_becomes_a_part_of_compiled_blocks(
    counter: CompileCounterWithBackend, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = harness(attention="dense")
    expected = plain._backward(step())
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)  # it has no fast backward pass on CPU, but a plain one
    monkeypatch.setattr(unified, "make_backend", lambda name, layout: FlexAttention(layout))
    compiled = harness(compile_blocks=True, activation_checkpointing=recompute)
    assert compiled._backward(step()) == pytest.approx(expected, rel=1e-5)
    found = gradients(compiled)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    graphs = []
    for first in (1, 2, 3, 0):
        compiled._backward(step(first))
        graphs.append(counter.frame_count)
    assert graphs[-1] == graphs[1], f"masks and lengths change in every step: {graphs}"
    text = "".join(graph.print_readable(print_output=False) for graph in counter.graphs)
    assert "flex_attention" in text
