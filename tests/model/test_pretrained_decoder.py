"""A pretrained Qwen2 as the decoder: what transformers computes, tables of the tokenizer's size, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import QWEN, edit_json, edit_weights, save_qwen, truncate
from tests.tolerances import assert_sums_close, block_terms

from tunalab.config import DecoderConfig
from tunalab.errors import UserError
from tunalab.model.attention import Layout, make_backend
from tunalab.model.build import table_rows
from tunalab.model.decoder import build_decoder, hidden_states

ROWS = QWEN["vocab_size"]


def settings(folder: Path, **changes: Any) -> DecoderConfig:
    sizes = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 48, "rope_theta": 1e6, "tie_embeddings": False}
    return DecoderConfig(pretrained=str(folder), **{**sizes, **changes})


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_logits_are_those_of_transformers(tied: bool, tmp_path: Path) -> None:
    library = save_qwen(tmp_path, tie_word_embeddings=tied)
    decoder = build_decoder(settings(tmp_path, tie_embeddings=tied), ROWS)
    ids_BL = torch.randint(0, ROWS, (1, 12))
    position_BL, none = torch.arange(12)[None], torch.full((1, 12), -1)
    layout = Layout(torch.zeros_like(ids_BL), none, torch.tensor([0]), torch.tensor([12]))
    h_BLD = hidden_states(decoder, decoder.model.embed_tokens(ids_BL), position_BL, make_backend("document", layout))
    terms = 2 * block_terms(width=32, mlp=48, length=12) + 32
    assert_sums_close(decoder.lm_head(h_BLD), library(ids_BL).logits, terms)
    assert (decoder.lm_head.weight is decoder.model.embed_tokens.weight) == tied
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in decoder.parameters())


def test_weights_stored_in_half_precision_are_read_in_float32(tmp_path: Path) -> None:
    library = save_qwen(tmp_path).bfloat16()
    library.save_pretrained(tmp_path)
    decoder = build_decoder(settings(tmp_path), ROWS)
    weight = decoder.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.float32 and torch.equal(weight, library.model.layers[0].mlp.up_proj.weight.float())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [ROWS - 20, ROWS, ROWS + 7])
def test_tables_have_the_rows_that_are_asked_for(rows: int, tied: bool, tmp_path: Path) -> None:
    library = save_qwen(tmp_path, tie_word_embeddings=tied)
    decoder = build_decoder(settings(tmp_path, tie_embeddings=tied), rows)
    assert (decoder.lm_head.weight is decoder.model.embed_tokens.weight) == tied
    assert decoder.config.vocab_size == rows
    for ours, theirs in ((decoder.model.embed_tokens, library.model.embed_tokens), (decoder.lm_head, library.lm_head)):
        assert ours.weight.shape == (rows, 32)
        kept = min(rows, ROWS)
        assert torch.equal(ours.weight[:kept], theirs.weight[:kept])
        torch.testing.assert_close(ours.weight[kept:], theirs.weight.mean(dim=0).expand(rows - kept, 32))


def test_rows_are_a_setting_or_the_ids_of_the_tokenizer() -> None:
    assert table_rows(DecoderConfig(), 300) == 300
    assert table_rows(DecoderConfig(vocabulary=512), 300) == 512
    with pytest.raises(UserError, match="decoder.vocabulary=299 is less than the tokenizer's 300 ids"):
        table_rows(DecoderConfig(vocabulary=299), 300)


def test_on_the_meta_device_nothing_is_read(tmp_path: Path) -> None:
    with torch.device("meta"):
        decoder = build_decoder(settings(tmp_path / "nothing"), 10)
    assert {parameter.device.type for parameter in decoder.parameters()} == {"meta"}
    save_qwen(tmp_path)
    read = build_decoder(settings(tmp_path), 10)
    assert {k: v.shape for k, v in read.state_dict().items()} == {k: v.shape for k, v in decoder.state_dict().items()}


def refusal(config: DecoderConfig) -> str:
    with pytest.raises(UserError) as raised:
        build_decoder(config, ROWS)
    assert "\n" not in str(raised.value) and f"decoder.pretrained={config.pretrained}" in str(raised.value)
    return str(raised.value)


def test_settings_that_are_not_the_checkpoints_are_listed_with_both_values(tmp_path: Path) -> None:
    save_qwen(tmp_path)
    message = refusal(settings(tmp_path, width=64, rope_theta=1e4, tie_embeddings=True))
    for part in (
        "decoder.width=64 (checkpoint: 32)",
        "decoder.rope_theta=10000.0 (checkpoint: 1000000.0)",
        "decoder.tie_embeddings=True (checkpoint: False)",
    ):
        assert part in message
    assert "decoder.layers" not in message
    edit_json(tmp_path / "config.json", rms_norm_eps=1e-5, rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0})
    message = refusal(settings(tmp_path))
    assert "rms_norm_eps=1e-05 (ours: 1e-06)" in message and "rope_type=yarn (ours: default)" in message


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    save_qwen(tmp_path)
    edit_weights(tmp_path / "model.safetensors", **{"alien": torch.zeros(1), "model.norm.weight": None})
    assert "1 missing: model.norm.weight; 1 unexpected: alien" in refusal(settings(tmp_path))
    save_qwen(tmp_path)
    edit_json(tmp_path / "config.json", intermediate_size=50)
    assert "(48, 32) for (50, 32)" in refusal(settings(tmp_path, mlp=50))


def test_half_a_folder_and_damaged_files_are_refused(tmp_path: Path) -> None:
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    save_qwen(whole).save_pretrained(shards, max_shard_size="20KB")
    sorted(shards.glob("*.safetensors"))[1].unlink()
    assert "cannot be read" in refusal(settings(shards))
    weights = whole / "model.safetensors"
    edit_weights(weights, **{"model.norm.weight": torch.full((32,), float("nan"))})
    assert "'model.norm.weight' holds values that are not finite" in refusal(settings(whole))
    truncate(weights)
    assert "cannot be read" in refusal(settings(whole))
    weights.unlink()
    assert "cannot be read" in refusal(settings(whole))
    edit_json(whole / "config.json", hidden_size="many")
    assert "cannot be read" in refusal(settings(whole))
    edit_json(whole / "config.json", hidden_size=32, model_type="llama")
    assert "is a llama, not a qwen2" in refusal(settings(whole))
    # Without its config transformers would build a model of default sizes.
    (whole / "config.json").unlink()
    assert "config.json is missing" in refusal(settings(whole))


def test_names_without_a_checkpoint_are_refused() -> None:
    assert "not in the local cache" in refusal(settings(Path("Qwen/Qwen2.5-1.5B-Instruct")))
    assert "neither a folder nor OWNER/NAME" in refusal(settings(Path("/nowhere/at/all")))
