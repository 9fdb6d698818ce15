"""A model that is made later, tensor by tensor, is the one that is made at once."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.checkpoints import QWEN, edit_weights, save_qwen
from tests.training.conftest import quick_config
from tests.variants import SETTINGS
from torch import nn
from transformers.utils import SAFE_WEIGHTS_NAME

from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.model.deferred import Deferred
from tunalab.model.unified import build_deferred, build_model
from tunalab.settings.schema import RunConfig
from tunalab.training.blocks import allocate, fill

ROWS = 320


@pytest.fixture(autouse=True)
def every_tensor_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deferred, "least", 1)


def assert_same_models(config: RunConfig, deferred: int = 10, rows: int = ROWS) -> None:
    """Made at once, and later."""
    at_once = build_model(config, Components(), rows)
    after = torch.get_rng_state()
    made, weights = build_deferred(config, Components(), rows)
    assert torch.equal(torch.get_rng_state(), after)
    assert sum(parameter.is_meta for parameter in made.parameters()) > deferred
    allocate(made, torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name in weights:
                parameter.fill_(torch.nan)
    fill(made, weights)
    assert (made.decoder.lm_head.weight is made.decoder.model.embed_tokens.weight) == config.decoder.tie_embeddings
    for mine, theirs in ((made.state_dict(), at_once.state_dict()), (dict(made.named_buffers()), dict(at_once.named_buffers()))):
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(mine[name], tensor), name


@pytest.mark.parametrize("variant", SETTINGS)
@pytest.mark.parametrize("tied", [False, True])
def test_from_scratch(variant: str, tied: bool) -> None:
    assert_same_models(quick_config(variant, seed=3, decoder__tie_embeddings=tied))


@pytest.mark.parametrize("rows", [QWEN["vocab_size"], QWEN["vocab_size"] - 20, QWEN["vocab_size"] + 20])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_a_pretrained_decoder(tied: bool, rows: int, shards: str, tmp_path: Path) -> None:
    """Tables of the tokenizer's rows, cut or with new ones; what follows in the model is drawn as with any other number of rows."""
    save_qwen(tmp_path, tie_word_embeddings=tied).save_pretrained(tmp_path, max_shard_size=shards)
    sizes = {"width": 32, "layers": 2, "mlp": 48, "heads": 4, "kv_heads": 2, "rope_theta": 1e6, "tie_embeddings": tied}
    config = quick_config("tuna2")
    config = replace(config, decoder=replace(config.decoder, pretrained=str(tmp_path), **sizes))
    assert_same_models(config, rows=rows)


def test_a_pretrained_decoder_in_other_files_or_names(tmp_path: Path) -> None:
    model = save_qwen(tmp_path / "qwen", tie_word_embeddings=False)
    (tmp_path / "qwen" / SAFE_WEIGHTS_NAME).unlink()
    torch.save(model.state_dict(), tmp_path / "qwen" / "pytorch_model.bin")
    sizes = {"width": 32, "layers": 2, "mlp": 48, "heads": 4, "kv_heads": 2, "rope_theta": 1e6, "tie_embeddings": False}
    config = quick_config("tuna2")
    config = replace(config, decoder=replace(config.decoder, pretrained=str(tmp_path / "qwen"), **sizes))
    assert_same_models(config, rows=QWEN["vocab_size"])


def test_a_weight_that_is_no_number_is_found_by_whoever_reads_it(tmp_path: Path) -> None:
    model = save_qwen(tmp_path, tie_word_embeddings=True)
    broken = model.state_dict()["model.norm.weight"].clone()
    broken[-1] = torch.inf
    edit_weights(tmp_path / SAFE_WEIGHTS_NAME, **{"model.norm.weight": broken})
    sizes = {"width": 32, "layers": 2, "mlp": 48, "heads": 4, "kv_heads": 2, "rope_theta": 1e6, "tie_embeddings": True}
    config = quick_config("tuna2")
    config = replace(config, decoder=replace(config.decoder, pretrained=str(tmp_path), **sizes))
    weight = build_deferred(config, Components(), QWEN["vocab_size"])[1]["decoder.model.norm.weight"]
    assert weight(slice(0, 16)).shape == (16,)
    with pytest.raises(UserError, match="'model.norm.weight' holds values that are not finite"):
        weight(slice(16, 32))


def test_what_is_done_to_parts_and_with_others_is_done_again() -> None:
    def make() -> list[torch.Tensor]:
        torch.manual_seed(1)
        table = nn.Embedding(7, 5, padding_idx=2).weight.detach()
        scaled = torch.randn(7, 5) / 3
        table[3:].mul_(2)
        with torch.no_grad():
            nn.init.xavier_uniform_(scaled[:2])
            table.add_(scaled)
        scaled.zero_()
        return [table, scaled, table.t(), torch.arange(9, dtype=torch.float32).reshape(3, 3)[1]]

    expected, deferred = make(), Deferred()
    with deferred.recording():
        made = make()
    assert all(tensor.is_meta for tensor in made)
    for later, tensor in zip(map(deferred.later, made), expected, strict=True):
        assert torch.equal(later(), tensor) and torch.equal(later(slice(1, 3)), tensor[1:3])
