"""Chunks of labels against all of them at once, and Liger's kernels where Triton interprets them (the last test's process)."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from samples import plain_draws, random_batch
from tests.conftest import small_config
from tests.tolerances import assert_gradients_close, assert_sums_close, model_terms
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.registry import FRONTENDS
from tunalab.model import objective
from tunalab.model.objective import CHUNK, fused_text_loss, text_loss
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import ObjectiveConfig

K, D, V = 50, 16, 300
INTERPRET = "TRITON_INTERPRET"  # read when triton is imported
FUSED = ["fused"] if os.environ.get(INTERPRET) == "1" else []


def loss_by(chunk: int | str) -> Callable[[nn.Linear, Tensor, Tensor], Tensor]:
    return fused_text_loss if chunk == "fused" else partial(text_loss, chunk=int(chunk))


def tables() -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    table = nn.Linear(D, V, bias=False)
    nn.init.normal_(table.weight, generator=generator)
    h_KD = torch.randn((K, D), generator=generator, requires_grad=True)
    return table, h_KD, torch.randint(V, (K,), generator=generator)


def at_once(table: nn.Linear, h_KD: Tensor, label_K: Tensor) -> Tensor:
    return F.cross_entropy(table(h_KD).float(), label_K, reduction="sum")


@pytest.mark.parametrize("labels", [0, 1, K])
@pytest.mark.parametrize("chunk", [1, 7, 25, K - 1, *FUSED])
def test_chunks_add_up_to_the_whole(chunk: int | str, labels: int) -> None:
    table, h_KD, label_K = tables()
    h_KD, label_K = h_KD[:labels], label_K[:labels]
    expected, found = at_once(table, h_KD, label_K), loss_by(chunk)(table, h_KD, label_K)
    assert_sums_close(found, expected, terms=D + V + K)
    gradients = torch.autograd.grad(3 * expected, (h_KD, table.weight))
    for one, other in zip(torch.autograd.grad(3 * found, (h_KD, table.weight)), gradients, strict=True):
        assert_sums_close(one, other, terms=D + V + max(V, K))


@pytest.mark.parametrize("chunk", [7, *FUSED])
def test_autocast_rounds_no_more_than_all_at_once(chunk: int | str) -> None:
    table, h_KD, label_K = tables()
    inputs = (h_KD, table.weight)
    exact = torch.autograd.grad(at_once(table, h_KD, label_K), inputs)
    errors = []
    for loss in (at_once, loss_by(chunk)):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(table, h_KD, label_K)
        gradients = torch.autograd.grad(value, inputs)
        assert all(tensor.dtype == torch.float32 for tensor in (value, *gradients))
        errors.append([((one - other).norm() / other.norm()).item() for one, other in zip(gradients, exact, strict=True)])
    for whole, parts in zip(*errors, strict=True):
        assert 0 < parts < 1.5 * whole < 0.02


@pytest.mark.parametrize("labels", [0, 1, K])
def test_a_single_chunk_is_computed_as_ever(labels: int) -> None:
    """To the bit, and as one operation after the other: nothing is computed twice."""
    table, h_KD, label_K = tables()
    expected = at_once(table, h_KD[:labels], label_K[:labels])
    found = text_loss(table, h_KD[:labels], label_K[:labels], chunk=K)
    assert torch.equal(found, expected) and type(found.grad_fn) is type(expected.grad_fn)
    inputs = (h_KD, table.weight)
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert torch.equal(one, other)


class Largest(TorchDispatchMode):
    """Notes the most numbers that any result holds."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_no_logits_beyond_a_chunk_ever_exist() -> None:
    table, h_KD, label_K = tables()
    for chunk in (5, K):
        with Largest() as largest:
            text_loss(table, h_KD, label_K, chunk).backward()
        assert largest.numbers == max(chunk * V, D * V)


@pytest.mark.parametrize("chunk", [3, *FUSED])
@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_a_training_step_in_chunks_is_the_same_step(
    name: str, chunk: int | str, tiny_model: Callable[..., UnifiedModel], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name).train()
    batch = random_batch("cvget", 2, tokenizer)
    assert 3 < len(batch.label_K) < CHUNK

    def step() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model.zero_grad()
        parts = objective.losses(model, batch, plain_draws(model, batch), ObjectiveConfig())
        (parts["text"].sum + parts["flow"].sum).backward()
        return {k: part.sum for k, part in parts.items()}, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}

    whole, whole_gradients = step()
    if chunk == "fused":
        model.fused_text_loss = True
    else:
        monkeypatch.setattr(objective, "text_loss", loss_by(chunk))
    parts, gradients = step()
    assert torch.equal(parts["flow"], whole["flow"])
    labels, vocabulary = len(batch.label_K), tokenizer.vocabulary
    assert_sums_close(parts["text"], whole["text"], terms=labels + vocabulary)
    terms = labels + 2 * vocabulary + 2 * model_terms(small_config(), batch.ids_BL.shape[1])
    assert_gradients_close(gradients, whole_gradients, terms)


def test_where_the_fused_loss_cannot_run_one_line_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(INTERPRET, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="fused_text_loss=true needs a CUDA device, and there is none"):
        fused_text_loss(*tables())
    monkeypatch.setattr(objective, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs Liger's kernels: pip install 'tunalab\[gpu\]'"):
        fused_text_loss(*tables())


@pytest.mark.slow
def test_all_this_holds_of_the_fused_loss() -> None:
    process = os.environ | {INTERPRET: "1"}
    command = [sys.executable, "-m", "pytest", "-k", "fused and not slow", "-p", "no:xdist", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=process, capture_output=True, text=True)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed is not None, done.stdout[-3000:]
    assert int(passed[1]) == 3 + 1 + len(FRONTENDS) + 1
