"""Variants start equal: all but the front-end and the head's last layer, whatever the front-end draws."""

from collections.abc import Callable

import pytest
import torch

from tunalab.frontends.registry import FRONTENDS
from tunalab.model import unified as build_module
from tunalab.model.decoder import build_decoder
from tunalab.model.unified import UnifiedModel, build_model
from tunalab.settings.schema import DecoderConfig, FrontEndConfig, RunConfig


@pytest.fixture
def build(tiny_model: Callable[..., UnifiedModel], monkeypatch: pytest.MonkeyPatch) -> Callable[..., UnifiedModel]:
    """``build_model`` with untrained front-ends that draw different numbers of random values."""

    def stand_in(config: FrontEndConfig, width: int, image_size: int, components: object) -> torch.nn.Module:
        torch.rand(len(config.name))
        return tiny_model(config.name).frontend

    monkeypatch.setattr(build_module, "build_frontend", stand_in)

    def build(name: str, seed: int = 0) -> UnifiedModel:
        config = RunConfig(seed=seed, frontend=FrontEndConfig(name=name))
        config.decoder.width, config.decoder.mlp, config.head.head_dim, config.head.mlp = 32, 48, 16, 48
        return build_model(config, None, 300)

    return build


def shared(model: UnifiedModel) -> dict[str, torch.Tensor]:
    return {name: w for name, w in model.state_dict().items() if not name.startswith(("frontend.", "head.output."))}


def test_shared_weights_start_equal_for_every_front_end(build: Callable[..., UnifiedModel]) -> None:
    first, *others = (shared(build(name)) for name in sorted(FRONTENDS))
    assert len(first) > 50 and len(others) == len(FRONTENDS) - 1
    for other in others:
        assert other.keys() == first.keys()
        for name, weight in first.items():
            assert torch.equal(weight, other[name]), name


def test_the_seed_decides_and_nothing_before_it(build: Callable[..., UnifiedModel]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a = build("patch_embed").state_dict()
    assert torch.equal(torch.get_rng_state(), before), "building leaves the global generator alone"
    torch.manual_seed(2)
    b, c = build("patch_embed").state_dict(), build("patch_embed", seed=1).state_dict()
    own = [name for name in a if not name.startswith("frontend.")]  # the stand-in's weights are not of this seed
    assert all(torch.equal(a[name], b[name]) for name in own)
    assert not torch.equal(a["decoder.model.embed_tokens.weight"], c["decoder.model.embed_tokens.weight"])
    assert not torch.equal(a["head.blocks.0.q.weight"], c["head.blocks.0.q.weight"])


def test_no_weight_of_the_head_or_decoder_is_left_at_a_library_default(build: Callable[..., UnifiedModel]) -> None:
    model = build("patch_embed")
    for name, module in [*model.head.named_modules(), *model.decoder.named_modules()]:
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and module.weight.any():
            assert module.weight.std().item() == pytest.approx(DecoderConfig().init_std, rel=0.15), name


def test_embeddings_are_one_table_or_two() -> None:
    for tied in (True, False):
        decoder = build_decoder(DecoderConfig(width=16, layers=1, heads=2, kv_heads=1, mlp=16, tie_embeddings=tied), 20)
        assert (decoder.lm_head.weight is decoder.model.embed_tokens.weight) == tied
