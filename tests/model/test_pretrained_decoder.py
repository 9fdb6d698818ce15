"""A pretrained Qwen2 as the decoder: what transformers computes, tables of the tokenizer's size, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoints import QWEN, edit_json, edit_weights, save_qwen, truncate
from tests.tolerances import assert_sums_close, block_terms

from tunalab.errors import UserError
from tunalab.model.attention import Layout, make_backend
from tunalab.model.decoder import build_decoder, hidden_states
from tunalab.model.unified import table_rows
from tunalab.settings.schema import DecoderConfig

ROWS = QWEN["vocab_size"]
WEIGHTS = "model.safetensors"


def settings(folder: Path, **changes: Any) -> DecoderConfig:
    sizes = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 48, "rope_theta": 1e6, "tie_embeddings": False}
    return DecoderConfig(pretrained=str(folder), **{**sizes, **changes})


@torch.no_grad()
def logits_as_of_transformers(folder: Path, rows: int = ROWS, tied: bool = False) -> Any:
    """The decoder, whose logits over the checkpoint's own tokens are those that transformers computes from the same folder."""
    from transformers import AutoModelForCausalLM

    decoder = build_decoder(settings(folder, tie_embeddings=tied), rows)
    ids_BL = torch.randint(0, min(rows, ROWS), (1, 12))
    position_BL, none = torch.arange(12)[None], torch.full((1, 12), -1)
    layout = Layout(torch.zeros_like(ids_BL), none, torch.tensor([0]), torch.tensor([12]))
    h_BLD = hidden_states(decoder, decoder.model.embed_tokens(ids_BL), position_BL, make_backend("document", layout))
    terms, expected = 2 * block_terms(width=32, mlp=48, length=12) + 32, min(rows, ROWS)
    expected_BLV = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids_BL).logits
    assert_sums_close(decoder.lm_head(h_BLD)[..., :expected], expected_BLV[..., :expected], terms)
    assert (decoder.lm_head.weight is decoder.model.embed_tokens.weight) == tied
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in decoder.parameters())
    return decoder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [ROWS - 20, ROWS, ROWS + 7], ids=["padded", "exact", "extended"])
def test_logits_are_those_of_transformers(tied: bool, rows: int, tmp_path: Path) -> None:
    save_qwen(tmp_path, tie_word_embeddings=tied)
    decoder = logits_as_of_transformers(tmp_path, rows, tied)
    with torch.device("meta"):
        planned = build_decoder(settings(tmp_path, tie_embeddings=tied), rows)
    shapes = [{name: weight.shape for name, weight in each.named_parameters()} for each in (decoder, planned)]
    assert shapes[0] == shapes[1]


def _only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def _only_the_output_table(folder: Path) -> None:
    table = load_file(folder / WEIGHTS)["model.embed_tokens.weight"]
    edit_weights(folder / WEIGHTS, **{"lm_head.weight": table, "model.embed_tokens.weight": None})
    edit_json(folder / "config.json", tie_word_embeddings=True)


def _both_tables(folder: Path) -> None:
    table = load_file(folder / WEIGHTS)["model.embed_tokens.weight"]
    edit_weights(folder / WEIGHTS, **{"lm_head.weight": table.clone()})
    edit_json(folder / "config.json", tie_word_embeddings=True)


def _without_rope_parameters(folder: Path, **older: Any) -> None:
    plain = json.loads((folder / "config.json").read_text())
    del plain["rope_parameters"]
    (folder / "config.json").write_text(json.dumps({**plain, **older}))


# Forms of a checkpoint: what is done to a saved one, and whether its tables are one.
FORMS: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "one pickle": (_only_a_pickle, False),
    "tied, stored as the output table": (_only_the_output_table, True),
    "tied, stored twice": (_both_tables, True),
    "theta as before transformers 5": (lambda f: _without_rope_parameters(f, rope_theta=1e6, rope_scaling=None), False),
    "a window that no layer has": (
        lambda f: edit_json(f / "config.json", use_sliding_window=True, sliding_window=4, max_window_layers=2, layer_types=None),
        False,
    ),
    "its own head_dim": (lambda f: edit_json(f / "config.json", head_dim=8), False),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_checkpoint_gives_the_logits_of_transformers(form: str, tmp_path: Path) -> None:
    save_qwen(tmp_path)
    change, tied = FORMS[form]
    change(tmp_path)
    logits_as_of_transformers(tmp_path, tied=tied)


def test_shards_and_half_precision_give_the_logits_of_transformers(tmp_path: Path) -> None:
    """Numbers that are stored in 16 bits are computed with in float32."""
    save_qwen(tmp_path / "whole").bfloat16().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    logits_as_of_transformers(tmp_path / "shards")


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


NOT_OURS = "the checkpoint computes what the decoder does not: "
# What config.json says -> what is answered.
CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "tied, two tables": (
        {"tie_word_embeddings": True},
        "config.json says tie_word_embeddings=True, but the weights hold lm_head.weight that is not model.embed_tokens.weight",
    ),
    "more rows": ({"vocab_size": 320}, "model.embed_tokens.weight (300, 32) for (320, 32)"),
    "fewer rows": ({"vocab_size": 280}, "lm_head.weight (300, 32) for (280, 32)"),
    "head_dim": ({"head_dim": 16}, f"{NOT_OURS}head_dim=16 (ours: 8)"),
    "a window": (
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "layer_types": None},
        f"{NOT_OURS}layer_types=full_attention+sliding_attention (ours: full_attention)",
    ),
    "layers of a window": ({"layer_types": ["sliding_attention"] * 2}, f"{NOT_OURS}layer_types=sliding_attention"),
    "quantised": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "config.json says quantization_config.quant_method=gptq, but only plain weights are read",
    ),
}


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
def test_a_config_that_contradicts_weights_or_decoder_is_refused(contradiction: str, tmp_path: Path) -> None:
    save_qwen(tmp_path)
    printed, answer = CONTRADICTIONS[contradiction]
    edit_json(tmp_path / "config.json", **printed)
    assert answer in refusal(settings(tmp_path, tie_embeddings=printed.get("tie_word_embeddings", False)))


def test_rotary_positions_that_are_scaled_are_refused_in_the_older_spelling_too(tmp_path: Path) -> None:
    save_qwen(tmp_path)
    _without_rope_parameters(tmp_path, rope_theta=1e6, rope_scaling={"type": "linear", "factor": 2.0})
    assert "rope_type=linear (ours: default)" in refusal(settings(tmp_path))


def test_tables_that_are_not_tied_need_both(tmp_path: Path) -> None:
    save_qwen(tmp_path)
    edit_weights(tmp_path / WEIGHTS, **{"lm_head.weight": None})
    assert "1 missing: lm_head.weight (config.json says tie_word_embeddings=False)" in refusal(settings(tmp_path))


def test_biases_that_the_decoder_has_and_has_not_are_listed(tmp_path: Path) -> None:
    save_qwen(tmp_path)
    none, more = "model.layers.1.self_attn.q_proj.bias", "model.layers.1.self_attn.o_proj.bias"
    edit_weights(tmp_path / WEIGHTS, **{none: None, more: torch.zeros(32)})
    assert f"1 missing: {none}; 1 unexpected: {more}" in refusal(settings(tmp_path))


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
