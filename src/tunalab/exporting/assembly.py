"""A model put together from its configuration, its frozen parts and its learnt weights, without any random start.

Parameters are made without storage and replaced by the loaded tensors: at full scale a start that is thrown away would cost as
much memory as the model. Buffers are computed as always.
"""

from collections.abc import Mapping

import torch
from accelerate import init_empty_weights
from torch import Tensor

from tunalab.config import RunConfig
from tunalab.exporting.parts import RunParts
from tunalab.frontends.loading import check_fit
from tunalab.model.build import build_model
from tunalab.model.unified import UnifiedModel
from tunalab.official.initial import architecture_config

# With tied embeddings the output table is another name of the input table, stored once.
TIED, TABLE = "decoder.lm_head.weight", "decoder.model.embed_tokens.weight"


def assemble(config: RunConfig, parts: RunParts, vocabulary: int, weights: Mapping[str, Tensor], what: str) -> UnifiedModel:
    """The model in evaluation mode, on the CPU, in float32. ``weights``: what is learnt, by our names; a tied table once or twice.

    Raises UserError when a name or a shape does not fit, listing both sides; ``what`` names where the weights come from.
    """
    parts.prepare(config)
    with init_empty_weights(include_buffers=False):
        model = build_model(architecture_config(config), parts, vocabulary)
    own, learnt = model.state_dict(), learnt_state(model)
    # Copied even where nothing is converted: tensors lie in files at any address, and on a CPU the last bit of a product depends on
    # how its factors are aligned.
    given = {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()}
    if config.decoder.tie_embeddings and TABLE in given:
        given[TIED] = given[TABLE]
    check_fit(learnt, given, what)
    model.load_state_dict({**own, **given}, assign=True)
    model.decoder.tie_weights()
    return model.eval()


def learnt_state(model: UnifiedModel) -> dict[str, Tensor]:
    """The model's state without the front-end's frozen parts."""
    frozen = tuple(f"frontend.{part}." for part in model.frontend.frozen_parts)
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(frozen)}


def stored_once(config: RunConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights to be written: a tied table under its first name alone."""
    return {name: tensor for name, tensor in weights.items() if not (config.decoder.tie_embeddings and name == TIED)}
