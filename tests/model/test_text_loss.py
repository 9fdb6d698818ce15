"""Chunks of labels against all of them at once."""

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
from tunalab.frontends.registry import FRONTENDS
from tunalab.model import objective
from tunalab.model.objective import CHUNK, text_loss
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import ObjectiveConfig

K, D, V = 50, 16, 300


def tables() -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    table = nn.Linear(D, V, bias=False)
    nn.init.normal_(table.weight, generator=generator)
    h_KD = torch.randn((K, D), generator=generator, requires_grad=True)
    return table, h_KD, torch.randint(V, (K,), generator=generator)


def at_once(table: nn.Linear, h_KD: Tensor, label_K: Tensor) -> Tensor:
    return F.cross_entropy(table(h_KD).float(), label_K, reduction="sum")


@pytest.mark.parametrize("chunk", [1, 7, 25, K - 1])
def test_chunks_add_up_to_the_whole(chunk: int) -> None:
    table, h_KD, label_K = tables()
    expected = at_once(table, h_KD, label_K)
    gradients = torch.autograd.grad(expected, (h_KD, table.weight))
    found = text_loss(table, h_KD, label_K, chunk)
    assert_sums_close(found, expected, terms=D + V + K)
    for one, other in zip(torch.autograd.grad(found, (h_KD, table.weight)), gradients, strict=True):
        assert_sums_close(one, other, terms=D + V + max(V, K))


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


@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_a_training_step_in_chunks_is_the_same_step(
    name: str, tiny_model: Callable[..., UnifiedModel], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr(objective, "text_loss", partial(text_loss, chunk=3))
    parts, gradients = step()
    assert torch.equal(parts["flow"], whole["flow"])
    labels, vocabulary = len(batch.label_K), tokenizer.vocabulary
    assert_sums_close(parts["text"], whole["text"], terms=labels + vocabulary)
    terms = labels + 2 * vocabulary + 2 * model_terms(small_config(), batch.ids_BL.shape[1])
    assert_gradients_close(gradients, whole_gradients, terms)
