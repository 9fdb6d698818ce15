"""What a checkpoint lacks starts as in a model from scratch, wherever that model's pretrained parts would come from."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tunalab.config import RunConfig
from tunalab.frontends.components.handle import Components
from tunalab.model.build import build_model
from tunalab.model.masking import MaskToken
from tunalab.official.conversion import MASK_TOKEN


def architecture_config(config: RunConfig) -> RunConfig:
    """The same model, nothing of it read from where its pretrained parts once came from."""
    return replace(
        config,
        frontend=replace(config.frontend, encoder_pretrained=False),
        decoder=replace(config.decoder, pretrained=""),
    )


def initial_weights(config: RunConfig, components: Components, vocabulary: int, names: Sequence[str]) -> dict[str, Tensor]:
    """The values with which :func:`build_model` starts parameters, by name, none of them pretrained.

    But for a mask token alone, a whole second model is drawn for them and given back.
    """
    if not names:
        return {}
    if list(names) == [MASK_TOKEN]:  # the first that it draws: no need to draw a whole model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return {MASK_TOKEN: MaskToken(config.decoder.width).token_D.detach()}
    state = build_model(architecture_config(config), components, vocabulary).state_dict()
    return {name: state[name].clone() for name in names}
