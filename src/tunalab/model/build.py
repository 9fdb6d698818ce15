"""A run's model from its configuration: the same starting weights for every front-end wherever parts are shared."""

import torch

from tunalab.config import DecoderConfig, RunConfig
from tunalab.errors import UserError
from tunalab.frontends.components.handle import Components
from tunalab.frontends.registry import build_frontend
from tunalab.model.unified import UnifiedModel


def build_model(config: RunConfig, components: Components | None, vocabulary: int) -> UnifiedModel:
    """The model of a run, initialised from ``config.seed``.

    Front-end and shared parts draw from separate generators: otherwise a front-end with more parameters would shift the
    decoder's initial weights, and variants would not start equal. Under ``torch.device("meta")`` only the architecture is built.
    ``vocabulary``: ids of the tokenizer. Raises UserError for parts that are missing or do not fit.
    """
    rows = table_rows(config.decoder, vocabulary)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed + 1_000_003)
        frontend = build_frontend(config.frontend, config.decoder.width, config.data.image_size, components)
        torch.manual_seed(config.seed)
        return UnifiedModel(config, frontend, rows)


def table_rows(config: DecoderConfig, vocabulary: int) -> int:
    """Rows of the embedding table for a tokenizer of ``vocabulary`` ids. Raises UserError when they are fewer than the ids."""
    if config.vocabulary and config.vocabulary < vocabulary:
        raise UserError(f"decoder.vocabulary={config.vocabulary} is less than the tokenizer's {vocabulary} ids")
    return config.vocabulary or vocabulary


def parameter_counts(model: UnifiedModel) -> dict[str, int]:
    """Parameters by part; ``trainable`` leaves the frozen parts of the front-end out."""
    parts = {
        "frontend": model.frontend,
        "decoder": model.decoder,
        "flow_head": model.head,
        "time_embedding": model.time,
        "mask_token": model.mask_token,
    }
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return {**counts, "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad)}
