"""Rules between settings: what no declaration of a single one can say (declaration.py)."""

from typing import Any

from tunalab.errors import UserError
from tunalab.settings.declaration import Declared

SIDES = (8, 4096)  # pixels along a side of an image, at least and at most


def check_together(config: Any) -> None:
    """What settings of a ``RunConfig`` say together. Raises UserError."""
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
        Declared("", *SIDES).check(name, int(side))
    return int(height), int(width)
