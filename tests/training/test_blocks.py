"""Compiled blocks give the gradients of plain ones, with attention as a part of them, by few graphs; the kernels need a GPU."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention

from tests.tolerances import assert_gradients_close, assert_sums_close, model_terms
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


def step(first: int) -> JointStep:
    return step_of([batch_of(rows(KINDS[first:] + KINDS[: first // 2]))])


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
