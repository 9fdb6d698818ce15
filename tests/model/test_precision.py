"""Mixed precision, as on a GPU but on the CPU: what is computed in bfloat16, and what must not be."""

from collections.abc import Callable

import pytest
import torch
from samples import plain_draws, random_batch
from torch import Tensor

from tunalab.data.tokenizer import Tokenizer
from tunalab.frontends.registry import FRONTENDS
from tunalab.model import attention, unified
from tunalab.model.attention import AttentionBackend, Layout
from tunalab.model.objective import losses, noised, to_space
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import ObjectiveConfig

OBJECTIVE = ObjectiveConfig()


class Noting:
    """A backend that notes the type of the values it is given."""

    def __init__(self, backend: AttentionBackend, seen: list[torch.dtype]) -> None:
        self.backend = backend
        self.seen = seen

    def attend(self, layer: int, q_BHLd: Tensor, k_BGLd: Tensor, v_BGLd: Tensor, scale: float) -> Tensor:
        self.seen.append(v_BGLd.dtype)
        return self.backend.attend(layer, q_BHLd, k_BGLd, v_BGLd, scale)


@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_bfloat16_where_it_is_meant_and_float32_where_it_counts(
    name: str, tiny_model: Callable[..., UnifiedModel], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed: list[torch.dtype] = []

    def make_backend(kind: str, layout: Layout) -> AttentionBackend:
        return Noting(attention.make_backend(kind, layout), observed)

    monkeypatch.setattr(unified, "make_backend", make_backend)
    model = tiny_model(name).train()
    batch = random_batch("cvget", 2, tokenizer)
    draws = plain_draws(model, batch, masked=0.3)
    exact = to_space(model, batch)
    expected = losses(model, batch, draws, OBJECTIVE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = to_space(model, batch)
        assert all(one.dtype == torch.float32 and torch.equal(one, two) for one, two in zip(x, exact, strict=True)), "to_space"
        observed.clear()
        output = model(batch, noised(batch, x, draws.noise_nChw, draws.t_N, 1.0), draws.t_N, draws.mask_nT)
        assert set(observed) == {torch.bfloat16}, "decoder and head compute in the lower precision"
        parts = losses(model, batch, draws, OBJECTIVE)
    assert {output.logits_KV.dtype, *(one.dtype for one in output.prediction_mChw)} == {torch.float32}
    for key, part in parts.items():
        assert part.sum.dtype == torch.float32
        assert part.sum.item() == pytest.approx(expected[key].sum.item(), rel=0.03)
    (parts["text"].sum + parts["flow"].sum).backward()
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32 and torch.isfinite(parameter.grad).all()
