"""Activation checkpointing: which blocks are computed again, and that nothing else changes."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.conftest import small_config
from tests.model.samples import plain_draws, random_batch
from tunalab.data.tokenizer import Tokenizer
from tunalab.frontends.registry import FRONTENDS
from tunalab.frontends.siglip import Siglip
from tunalab.model.objective import losses
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import ObjectiveConfig
from tunalab.training.blocks import blocks, prepare_blocks, recomputed


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
    seen: list[dict[str, Tensor]] = []
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
        seen.append({key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None})
    plain, again = seen
    assert plain.keys() == again.keys() and all(torch.equal(again[key], plain[key]) for key in plain)
    assert all(gradient.any() for key, gradient in plain.items() if key.startswith("frontend."))
