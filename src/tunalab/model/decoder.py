"""The decoder: transformers' Qwen2, from scratch or pretrained, with our attention registered through its interface.

Real Qwen2.5 weights therefore load by name, and the mask is ours: a backend (attention.py) travels in its place.
The sizes of a pretrained one are those the run states, and its embedding table is that of the tokenizer.

Shapes: B rows, L tokens, V rows of the embedding table, D width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from tunalab.data.pretrained import Source, locate, reading
from tunalab.errors import UserError
from tunalab.frontends.loading import WHOLE, Held, Weight, read_json, read_transformers, refuse_quantized, stored_weights
from tunalab.model.attention import AttentionBackend
from tunalab.model.deferred import Deferred, read_later
from tunalab.settings.schema import DecoderConfig

# What no setting covers, and what the decoder computes with in every case.
FIXED: dict[str, Any] = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_dropout": 0.0}
OUTPUT_TABLE = "lm_head.weight"


@read_later()
def read_decoder(config: DecoderConfig, vocabulary: int, attention: str) -> Qwen2ForCausalLM:
    """The checkpoint ``config.pretrained`` in float32, with ``vocabulary`` rows in its tables (:func:`fit_tables`).

    ``attention``: the name under which ours is registered.
    Raises UserError, one line: nothing there, no Qwen2, settings that are not the checkpoint's (both sides listed), missing or
    damaged files, weights that do not fit the architecture (both sides listed), tables that its config does not describe.
    """
    source = locate(config.pretrained, "decoder.pretrained")
    qwen = read_config(source)
    check_settings(config, qwen, source.what)
    tied = qwen.tie_word_embeddings
    reasons = {OUTPUT_TABLE: f"config.json says tie_word_embeddings={tied}"}
    with torch.device("cpu"):
        decoder = read_transformers(Qwen2ForCausalLM, source, qwen, reasons=reasons, attn_implementation=attention)
    if (decoder.lm_head.weight is decoder.model.embed_tokens.weight) != tied:
        # transformers keeps both tables then, and makes them one as soon as their rows change.
        raise UserError(
            f"{source.what}: config.json says tie_word_embeddings={tied}, but the weights hold {OUTPUT_TABLE} "
            f"that is not model.embed_tokens.weight (set tie_word_embeddings to {str(not tied).lower()} in config.json)"
        )
    decoder.config.use_cache = False
    fit_tables(decoder, vocabulary)
    assert isinstance(decoder, Qwen2ForCausalLM)
    return decoder.train()  # as one from scratch is


def open_decoder(config: DecoderConfig, vocabulary: int, own: Qwen2ForCausalLM) -> dict[str, Weight]:
    """The weights that :func:`read_decoder` gives a decoder, by the names of ``own``, none of them read yet. A tied table is one
    of them. Files of another kind than safetensors, or with other names than ours, are read by :func:`read_decoder`, at once.

    Raises UserError as that does.
    """
    source = locate(config.pretrained, "decoder.pretrained")
    check_settings(config, read_config(source), source.what)
    stored = _stored(source)
    due = {name: tensor.shape for name, tensor in own.named_parameters()}
    tables = {name for name, module in own.named_modules() if module in (own.get_input_embeddings(), own.get_output_embeddings())}
    weights: dict[str, Weight] = {}
    for name, shape in due.items():
        weight = stored.get(name)
        if weight is not None and name.removesuffix(".weight") in tables and weight.shape[1:] == shape[1:]:
            weight = Fitted(weight, shape[0])
        if weight is None or weight.shape != shape or len(due) != len(stored):
            decoder = read_decoder(config, vocabulary, ATTENTION_NAME)
            return {name: Held(tensor.detach(), name, source.what) for name, tensor in decoder.named_parameters()}
        weights[name] = weight
    return weights


def _stored(source: Source) -> dict[str, Weight]:
    """Every tensor of a checkpoint's safetensors; none where it has no such files."""

    def found(name: str) -> Any:
        return cached_file(source.name, name, subfolder=source.subfolder, _raise_exceptions_for_missing_entries=False)

    with reading(source):
        files = [file for file in [found(SAFE_WEIGHTS_NAME)] if file is not None]
        index = None if files else found(SAFE_WEIGHTS_INDEX_NAME)
        if index is not None:
            files, _ = get_checkpoint_shard_files(source.name, index, subfolder=source.subfolder)
    return {name: weight for file in files for name, weight in stored_weights(Path(file), source.what).items()}


@dataclass(frozen=True, eq=False)
class Fitted:
    """A table of another number of rows, as :func:`fit_tables` makes them."""

    table: Weight
    rows: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size([self.rows, *self.table.shape[1:]])

    def __call__(self, rows: slice = WHOLE) -> Tensor:
        start, stop, _ = rows.indices(self.rows)
        own = self.table.shape[0]
        if stop <= own:
            return self.table(slice(start, stop))
        whole_VD = self.table().float()
        return torch.cat([whole_VD[start:stop], whole_VD.mean(dim=0).expand(stop - max(start, own), -1)])


def read_config(source: Source) -> Qwen2Config:
    """Raises UserError when there is none (transformers would take its defaults), or it is not of a Qwen2."""
    if source.folder:
        read_json(source.folder / "config.json", source.what)
    with reading(source):
        config = AutoConfig.from_pretrained(source.name, subfolder=source.subfolder, trust_remote_code=False)
    if not isinstance(config, Qwen2Config):
        raise UserError(f"{source.what} is a {config.model_type}, not a qwen2")
    refuse_quantized(config, source.what)
    return config


def check_settings(config: DecoderConfig, qwen: Qwen2Config, what: str) -> None:
    """Raises UserError that lists every setting that is not the checkpoint's, with both values."""
    rope: dict[str, Any] = dict(qwen.rope_parameters or {})
    theirs = {
        "width": qwen.hidden_size,
        "layers": qwen.num_hidden_layers,
        "heads": qwen.num_attention_heads,
        "kv_heads": qwen.num_key_value_heads,
        "mlp": qwen.intermediate_size,
        "rope_theta": rope.get("rope_theta"),
        "tie_embeddings": qwen.tie_word_embeddings,
    }
    wrong = [
        f"decoder.{name}={getattr(config, name)} (checkpoint: {value})"
        for name, value in theirs.items()
        if getattr(config, name) != value
    ]
    if wrong:
        raise UserError(f"{what}: settings are not the checkpoint's: {', '.join(wrong)}")
    head = qwen.hidden_size // qwen.num_attention_heads
    values = {
        **{name: getattr(qwen, name) for name in FIXED},
        "rope_type": rope.get("rope_type", "default"),
        "head_dim": getattr(qwen, "head_dim", head),
        "layer_types": "+".join(sorted(set(qwen.layer_types or ["full_attention"]))),
    }
    expected = {**FIXED, "rope_type": "default", "head_dim": head, "layer_types": "full_attention"}
    other = [f"{name}={values[name]} (ours: {expected[name]})" for name in expected if values[name] != expected[name]]
    if other:
        raise UserError(f"{what}: the checkpoint computes what the decoder does not: {', '.join(other)}")


@torch.no_grad()
def fit_tables(decoder: Any, rows: int) -> None:
    """Input and output table get ``rows`` rows, of which the first are the checkpoint's.

    Rows beyond are cut: a checkpoint has some to spare, which no token of the tokenizer uses. Rows that lack start at the mean of
    the others, so that a new token begins as an average one.
    """
    own = decoder.get_input_embeddings().weight.shape[0]
    if rows == own:
        return
    decoder.resize_token_embeddings(rows, mean_resizing=False)
    for table in (decoder.get_input_embeddings(), decoder.get_output_embeddings()):
        weight_VD: Tensor = table.weight
        weight_VD[own:] = weight_VD[:own].mean(dim=0)


ATTENTION_NAME = "tunalab"


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: AttentionBackend, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    # Under autocast the rotation leaves queries and keys in float32 beside bfloat16 values; FlexAttention refuses the mix.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return attention_mask.attend(module.layer_idx, query, key, value, scaling), None  # type: ignore[arg-type]


AttentionInterface.register(ATTENTION_NAME, _attention)


def build_decoder(config: DecoderConfig, vocabulary: int) -> Qwen2ForCausalLM:
    """A Qwen2 with an embedding table of ``vocabulary`` rows: the pretrained one, or from scratch with weights N(0, init_std^2).

    Under ``torch.device("meta")``, or deferred, the architecture that the settings state; a checkpoint is not read.
    Raises UserError as :func:`~tunalab.model.decoder.read_decoder` does.
    """
    read = bool(config.pretrained) and torch.get_default_device().type != "meta"
    if read and Deferred.active is None:
        return read_decoder(config, vocabulary, ATTENTION_NAME)
    qwen = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        initializer_range=config.init_std,
        tie_word_embeddings=config.tie_embeddings,
        use_cache=False,
        attn_implementation=ATTENTION_NAME,  # type: ignore[call-arg]
    )
    with read_later(read):
        return Qwen2ForCausalLM(qwen)


def hidden_states(decoder: Qwen2ForCausalLM, h_BLD: Tensor, position_BL: Tensor, backend: AttentionBackend) -> Tensor:
    """Last hidden states after the final norm, (B, L, D)."""
    return decoder.model(
        inputs_embeds=h_BLD, position_ids=position_BL, attention_mask={"full_attention": backend}, use_cache=False
    ).last_hidden_state


def sincos_positions(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """Fixed 2-D positions (rows * columns, width): half of the width for the row, half for the column; sines, then cosines."""
    quarter = width // 4
    frequency = 100.0 ** (-torch.arange(quarter, device=device, dtype=torch.float32) / max(quarter, 1))
    row = torch.arange(rows, device=device).repeat_interleave(columns)[:, None] * frequency
    column = torch.arange(columns, device=device).repeat(rows)[:, None] * frequency
    table = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)
    return nn.functional.pad(table, (0, width - table.shape[1]))
