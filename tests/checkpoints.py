"""Checkpoints of the published classes, tiny and random, each saved by its own library."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

WAN = {"base_dim": 8, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [False]}
SIGLIP = {
    "hidden_size": 24,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
QWEN = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "vocab_size": 300,
}


def randomised(model: nn.Module, seed: int = 0) -> Any:
    """Every weight random: at their library's start many are 0 or 1, and a wrong place would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model.eval()


def save_qwen(folder: Path, **changes: Any) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = randomised(Qwen2ForCausalLM(Qwen2Config(**{**QWEN, **changes})))
    model.save_pretrained(folder)
    return model


def save_qwen_tokenizer(folder: Path, named: tuple[str, ...] = (), pairs: tuple[tuple[str, str], ...] = ()) -> Any:
    """Byte-level BPE of Qwen2's class; ``named``: special tokens beside its own; ``pairs``: two letters each that are one token."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: at for at, letter in enumerate(letters)} | {"re": 256, "red": 257}
    words |= {one + other: len(words) + number for number, (one, other) in enumerate(pairs)}
    tokenizer = Qwen2Tokenizer(vocab=words, merges=[("r", "e"), ("re", "d"), *pairs])
    tokenizer.add_special_tokens({"additional_special_tokens": list(named)})
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_siglip(folder: Path, **changes: Any) -> Any:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    model = randomised(SiglipVisionModel(SiglipVisionConfig(**{**SIGLIP, **changes})))
    model.save_pretrained(folder)
    return model


def save_timm(folder: Path, name: str, **arguments: Any) -> Any:
    import timm
    from timm.models import save_for_hf

    model = randomised(timm.create_model(name, **arguments))
    save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
    return model


def save_kl(folder: Path, **changes: Any) -> Any:
    from diffusers import AutoencoderKL

    sizes = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    model = randomised(AutoencoderKL(**{**sizes, **changes}))
    model.save_pretrained(folder)
    return model


def save_wan(folder: Path, **changes: Any) -> Any:
    from diffusers import AutoencoderKLWan

    model = randomised(AutoencoderKLWan(**{**WAN, **changes}))
    model.save_pretrained(folder)
    return model


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(path: Path, **changes: Any) -> None:
    """Change tensors of a safetensors file, or with None take them out."""
    from safetensors.torch import load_file, save_file

    weights = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, path, metadata={"format": "pt"})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])
