"""Whether settings are what they may be: keys that are known, values in range, settings that go together.

Every refusal is one line that names the setting and what it may be. The dataclasses that are checked are schema.py's, which imports
this file.
"""

import math
from dataclasses import fields, is_dataclass
from typing import Any

from tunalab.errors import UserError


def check_settings(config: Any) -> None:
    """Ranges, choices, and what only several settings of a ``RunConfig`` say together. Raises UserError."""
    _check_values(config, "", "")
    if len(config.data.levels) != 3 or sum(config.data.levels) <= 0:
        raise UserError(f"data.levels={config.data.levels}: three shares, not all zero, are needed (levels 1, 2, 3)")
    sizes = [parse_size("data.buckets", text) for text in config.data.buckets]
    if len(set(sizes)) < len(sizes):
        raise UserError(f"data.buckets={config.data.buckets} names a size twice")
    if not config.stages:
        raise UserError("stages is empty: at least one stage is needed")
    if not any(stage.tokens for stage in config.stages.values()):
        raise UserError(f"stages.{next(iter(config.stages))}.tokens=0: no stage has tokens (one of 0 tokens is left out)")
    for name, stage in config.stages.items():
        if not sum(stage.mix.values()) > 0:
            raise UserError(f"stages.{name}.mix has no source of positive weight (stages: {', '.join(config.stages)})")
    decoder, head = config.decoder, config.head
    if decoder.chat != "none" and not (decoder.tokenizer or decoder.pretrained):
        own = "decoder.tokenizer or decoder.pretrained"
        raise UserError(f"decoder.chat={decoder.chat} needs a tokenizer with its tokens: set {own} (choices without: none)")
    if decoder.width % (2 * decoder.heads):
        raise UserError(f"decoder.width={decoder.width} is not a multiple of 2 x decoder.heads={decoder.heads}")
    for part, heads, kv_heads in (("decoder", decoder.heads, decoder.kv_heads), ("head", head.heads, head.kv_heads)):
        if heads % kv_heads:
            raise UserError(f"{part}.kv_heads={kv_heads} does not divide {part}.heads={heads}")
    check_sampling(config.sampling)
    if head.head_dim % 16:
        raise UserError(f"head.head_dim={head.head_dim} must be a multiple of 16 (time : row : column = 2 : 3 : 3)")


def check_sampling(sampling: Any) -> None:
    """Raises UserError: there is no step between the points of a ``SamplingConfig``."""
    if sampling.grid == "points" and sampling.steps < 2:
        raise UserError(f"sampling.steps={sampling.steps} with sampling.grid=points is no step (from 2 points)")


def parse_size(name: str, text: str) -> tuple[int, int]:
    """Height and width in pixels of "HEIGHTxWIDTH". Raises UserError, naming the setting, for anything else or out of range."""
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise UserError(f"{name}={text} is not of the form HEIGHTxWIDTH, such as 512x512")
    for side in (height, width):
        check_value("data.image_size", name, int(side))
    return int(height), int(width)


def misfit(layer: dict[Any, Any], node: Any, prefix: str = "") -> str | None:
    """The first key of ``layer`` that is unknown, or that is a value, a list or a mapping where another of these is due.

    ``node``: a dataclass with one unnamed member wherever users name members.
    """
    known = {item.name: getattr(node, item.name) for item in fields(node)} if is_dataclass(node) else None
    for name, value in layer.items():
        key = f"{prefix}{name}"
        if value == "???":  # to OmegaConf "set me later", which would be never
            return f"{key} has no value"
        if known is not None and name not in known:
            return f"unknown key '{key}' (choices: {', '.join(sorted(known))})"
        due = node[""] if known is None else known[name]
        if is_dataclass(due) or isinstance(due, dict):
            if not isinstance(value, dict):
                choices = ", ".join(sorted(item.name for item in fields(due))) if is_dataclass(due) else "names of your own"
                return f"{key}={value} is not a mapping (its keys: {choices})"
            inner = misfit(value, due, f"{key}.")
            if inner is not None:
                return inner
        elif isinstance(due, list) and not isinstance(value, list):
            return f"{key}={value} is not a list"
        elif not isinstance(due, list) and isinstance(value, list | dict):
            return f"{key}={value} is not a single value"
    return None


def _check_values(node: Any, key: str, shown: str) -> None:
    """Check every value. ``key`` stands in RANGES and CHOICES; ``shown`` names members of mappings too."""
    if is_dataclass(node):
        for item in fields(node):
            dot = "." if key else ""
            _check_values(getattr(node, item.name), f"{key}{dot}{item.name}", f"{shown}{dot}{item.name}")
    elif isinstance(node, dict):
        for name, member in node.items():
            _check_values(member, key, f"{shown}.{name}")
    elif isinstance(node, list):
        for member in node:
            _check_values(member, key, shown)
    else:
        check_value(key, shown, node)


def check_value(key: str, shown: str, value: Any) -> None:
    """Raises UserError, naming ``shown``, for what a setting ``key`` may not be."""
    if key in CHOICES and value not in CHOICES[key]:
        raise UserError(f"{shown}={value} is not known (choices: {', '.join(CHOICES[key])})")
    if key in RANGES:
        low, high = RANGES[key]
        if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
            ends = [f"{word} {end:.10g}" for word, end in (("from", low), ("to", high)) if end is not None]
            raise UserError(f"{shown}={value} is out of range ({' '.join(ends) or 'any finite number'})")


# What each setting may be: choices of words, ranges of numbers. Keys as on the command line, without the names users
# give.

CHOICES: dict[str, tuple[str, ...]] = {
    "precision": ("auto", "fp32", "bf16"),
    "attention": ("auto", "document", "dense", "flex"),
    "frontend.vae_statistics": ("published", "official"),
    "frontend.vae_posterior": ("mean", "sample"),
    "data.bucket_rule": ("log", "official"),
    "data.manifests.kind": ("caption", "text_to_image"),
    "data.webdataset.kind": ("caption", "text_to_image"),
    "decoder.chat": ("none", "qwen", "qwen_all"),
    "decoder.image_positions": ("sincos2d", "none"),
    "objective.prediction": ("x", "v"),
    "objective.target_layout": ("patch", "raster"),
    "objective.masking.law": ("uniform", "fixed"),
    "sampling.method": ("euler", "heun"),
    "sampling.grid": ("steps", "points"),
    "sampling.clamp": ("none", "official"),
    "distribution.strategy": ("auto", "none", "ddp", "fsdp2"),
    "optimizer.name": ("adamw", "muon"),
    "optimizer.weight_decay_on": ("all", "matrices"),
    "stages.train": ("all", "connector", "without_encoder"),
    "stages.schedule": ("constant", "cosine", "wsd"),
}

# Inclusive ranges of every number; None is open. Numbers are finite besides.
BELOW_1 = 1 - 1e-9
SEED = 2**31 - 1  # every generator, record and tracking store takes it
RANGES: dict[str, tuple[float | None, float | None]] = {
    "seed": (0, SEED),
    "components_seed": (0, SEED),
    "threads": (1, None),
    "checkpoint_seconds": (0, None),
    "keep_checkpoints": (1, None),
    "distribution.devices": (0, None),
    "distribution.nodes": (0, None),
    "distribution.shard_size": (0, None),
    "data.image_size": (8, 4096),
    "data.max_crop": (0, 1),
    "data.max_upscale": (1, None),
    "data.levels": (0, None),
    "data.questions_per_image": (1, 8),
    "data.caption_drop": (0, 1),
    "data.row_tokens": (32, None),
    "data.rows": (1, None),
    "data.accumulate": (1, None),
    "data.step_tokens": (0, None),
    "data.lookahead": (1, None),
    "data.workers": (0, None),
    "data.reject_share": (0, BELOW_1),
    "data.unfit_share": (0, 1),
    "data.webdataset.window": (0, None),
    "data.webdataset.streams": (1, None),
    "data.finevision.window": (0, None),
    "data.finevision.streams": (1, None),
    "data.omniedit.window": (0, None),
    "data.omniedit.streams": (1, None),
    "data.text.window": (0, None),
    "data.text.streams": (1, None),
    "data.text.max_characters": (0, None),
    "frontend.patch": (1, None),
    "frontend.encoder_layer": (None, -1),
    "decoder.vocabulary": (0, None),
    "decoder.width": (8, None),
    "decoder.layers": (1, None),
    "decoder.heads": (1, None),
    "decoder.kv_heads": (1, None),
    "decoder.mlp": (1, None),
    "decoder.rope_theta": (1, None),
    "decoder.init_std": (0, None),
    "head.blocks": (1, None),
    "head.heads": (1, None),
    "head.kv_heads": (1, None),
    "head.head_dim": (16, None),
    "head.mlp": (1, None),
    "objective.time_mean": (None, None),
    "objective.time_std": (0, None),
    "objective.time_shift": (0, None),
    "objective.time_shift_tokens": (0, None),
    "objective.noise_scale": (0, None),
    "objective.min_one_minus_t": (1e-6, 1),
    "objective.flow_weight": (0, None),
    "objective.text_weight": (0, None),
    "objective.understanding_noise": (0, 1),
    "objective.masking.ratio": (0, 1),
    "objective.masking.probability": (0, 1),
    "objective.masking.start": (0, 1),
    "optimizer.beta1": (0, BELOW_1),
    "optimizer.beta2": (0, BELOW_1),
    "optimizer.eps": (0, None),
    "optimizer.weight_decay": (0, None),
    "optimizer.clip": (0, None),
    "optimizer.warmup_steps": (0, None),
    "optimizer.ema": (0, 1),
    "optimizer.momentum": (0, BELOW_1),
    "optimizer.groups.lr": (0, None),
    "optimizer.groups.weight_decay": (-1, None),
    "stages.tokens": (0, None),
    "stages.lr": (0, None),
    "stages.final_lr": (0, 1),
    "stages.cooldown": (1e-6, 1),
    "stages.mix": (0, None),
    "sampling.steps": (1, None),
    "sampling.guidance": (0, None),
    "sampling.edit_guidance": (0, None),
    "sampling.shift": (0.01, 100),
    "evaluation.points": (1, None),
    "evaluation.first": (1e-6, 1),
    "evaluation.levels": (1, 3),
    "evaluation.groups": (0, None),
    "evaluation.easy_vqa": (0, None),
    "evaluation.max_answer_tokens": (1, None),
    "evaluation.loss_documents": (0, None),
    "evaluation.psnr_images": (0, None),
    "evaluation.psnr_times": (0, 1),
    "evaluation.sample_prompts": (0, None),
}
