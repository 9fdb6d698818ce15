"""The decoder: transformers' Qwen2, with our attention registered through its attention interface.

Real Qwen2.5 weights therefore load by name, and the mask is ours: a backend (attention.py) travels in the place of the mask.

Shapes: B rows, L tokens, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Qwen2Config, Qwen2ForCausalLM

from tunalab.config import DecoderConfig
from tunalab.model.attention import AttentionBackend
from tunalab.model.pretrained import read_decoder

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

    Under ``torch.device("meta")`` the architecture that the settings state; a checkpoint is not read.
    Raises UserError as :func:`~tunalab.model.pretrained.read_decoder` does.
    """
    if config.pretrained and torch.get_default_device().type != "meta":
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
