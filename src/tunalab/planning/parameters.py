"""Parameters by part of the model, and which of them a stage trains."""

from dataclasses import dataclass

from torch import nn

from tunalab.config import StageConfig
from tunalab.model.unified import UnifiedModel
from tunalab.training.blocks import blocks
from tunalab.training.stages import set_trainable

FRONT_END = "front-end: "


@dataclass(frozen=True)
class Count:
    trained: int = 0
    frozen: int = 0


@dataclass(frozen=True)
class Totals:
    """``trained``: learnt in some stage; ``in_blocks``: those of them in decoder layers and blocks of the flow head."""

    trained: int
    frozen: int
    in_blocks: int


def parts(model: UnifiedModel) -> dict[str, Count]:
    """By part, in the order of the data's way; a table that embeds and projects is counted once, as embeddings."""
    decoder, head, frontend = model.decoder, model.head, model.frontend
    found: dict[str, list[nn.Parameter]] = {}
    for name, child in frontend.named_children():
        found[FRONT_END + name.replace("_", " ")] = list(child.parameters())
    found["mask token"] = list(model.mask_token.parameters())
    found["time embedding"] = list(model.time.parameters())
    found["decoder: embeddings"] = list(decoder.model.embed_tokens.parameters())
    found["decoder: layers"] = [*decoder.model.layers.parameters(), *decoder.model.norm.parameters()]
    tied = decoder.lm_head.weight is decoder.model.embed_tokens.weight
    found["decoder: output table"] = [] if tied else list(decoder.lm_head.parameters())
    found["flow head: blocks"] = list(head.blocks.parameters())
    found["flow head: output"] = [p for name, p in head.named_parameters() if not name.startswith("blocks.")]
    frozen = {FRONT_END + part.replace("_", " ") for part in frontend.frozen_parts}
    counts = {}
    for name, parameters in found.items():
        number = sum(p.numel() for p in parameters)
        if number:
            counts[name] = Count(frozen=number) if name in frozen else Count(trained=number)
    return counts


def totals(model: UnifiedModel) -> Totals:
    counts = parts(model).values()
    in_blocks = sum(p.numel() for block in blocks(model) for p in block.parameters())
    return Totals(sum(count.trained for count in counts), sum(count.frozen for count in counts), in_blocks)


def trained_in(model: UnifiedModel, stage: StageConfig) -> int:
    """Parameters that learn in a stage. Leaves the model as that stage trains it."""
    set_trainable(model, stage.train)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
