"""Whether settings are what they may be: keys that are known, values in range, settings that go together.

Every refusal is one line that names the setting and what it may be. The dataclasses that are checked are config.py's, which imports
this file.
"""

import math
from dataclasses import fields, is_dataclass
from typing import Any

from tunalab.errors import UserError
from tunalab.limits import CHOICES, RANGES


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
    """Raises UserError, naming ``shown``, for what a setting ``key`` (limits.py) may not be."""
    if key in CHOICES and value not in CHOICES[key]:
        raise UserError(f"{shown}={value} is not known (choices: {', '.join(CHOICES[key])})")
    if key in RANGES:
        low, high = RANGES[key]
        if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
            ends = [f"{word} {end:.10g}" for word, end in (("from", low), ("to", high)) if end is not None]
            raise UserError(f"{shown}={value} is out of range ({' '.join(ends) or 'any finite number'})")
