"""The configuration under which an official checkpoint is a model of ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from tunalab.config import REVISION, RunConfig, from_plain, replaced_mappings, typed_layer
from tunalab.errors import UserError
from tunalab.layers import Layer, settings_layers
from tunalab.official.layout import USUAL, USUAL_SHAPES, OfficialModel, known_encoder, told_by_shapes

# A configuration names at least one stage. What the checkpoint was trained with is not in it: nothing is claimed.
NO_STAGE = {"none": {"tokens": 1, "mix": {"scenes/text": 1.0}}}
MORE_ALLOWED = ("decoder.layers", "head.blocks")  # of these a checkpoint may lack some (start.allow_missing)


def official_config(
    tensors: Mapping[str, Tensor], model: OfficialModel, experiment: Path | None, variant: Path | None, settings: Sequence[str]
) -> RunConfig:
    """What the shapes tell, laid under experiment, variant and settings; how the model is usually used lies below it all.

    Raises UserError: a file or a setting is wrong, or contradicts the shapes or what the weights mean (both sides named).
    """
    layers = [typed_layer(layer) for layer in settings_layers(experiment, variant, settings)]
    heads = next((heads for layer in reversed(layers) if (heads := _heads(layer)) is not None), None)
    told = {**told_by_shapes(tensors, model, heads), **model.computes}
    sized = any({"image_size", "buckets"} & dict(layer.settings.get("data") or {}).keys() for layer in layers)
    usual = {**USUAL, **({} if sized else USUAL_SHAPES), **model.usual, "variant": model.variant, "experiment": "official"}
    encoder = known_encoder(tensors)
    merged = _nested({**usual, **told, **({} if encoder is None else {"frontend.encoder": encoder})})
    for layer in layers:
        for place in replaced_mappings(layer):
            OmegaConf.update(merged, ".".join(place), {}, merge=False)
        laid = OmegaConf.merge(merged, layer.settings)
        assert isinstance(laid, DictConfig)
        merged = laid
    plain = OmegaConf.to_container(merged)
    assert isinstance(plain, dict)
    config = from_plain({"revision": REVISION, "stages": NO_STAGE, **plain}, references=True)
    refuse_contradictions(told, config)
    return config


def refuse_contradictions(told: Mapping[str, Any], config: RunConfig) -> None:
    """Raises UserError, one line with both sides, where a configuration differs from what is known (dotted keys) of weights."""
    wrong = [
        f"{key} is {value} in the checkpoint, {setting(config, key)} in the configuration"
        for key, value in told.items()
        if contradicts(key, value, setting(config, key))
    ]
    if wrong:
        raise UserError(f"the checkpoint does not fit: {'; '.join(wrong)}")


def contradicts(key: str, told: Any, here: Any) -> bool:
    if key in MORE_ALLOWED:
        return bool(here < told)
    if key == "decoder.vocabulary":  # 0: as many as the tokenizer has
        return bool(here not in (0, told))
    if key == "decoder.tie_embeddings":  # two equal tables may be two
        return bool(here and not told)
    return bool(here != told)


def setting(config: Any, key: str) -> Any:
    """A value by its dotted key."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _heads(layer: Layer) -> int | None:
    decoder = layer.settings.get("decoder")
    heads = decoder.get("heads") if isinstance(decoder, dict) else None
    return heads if isinstance(heads, int) and heads > 0 else None


def _nested(dotted: Mapping[str, Any]) -> DictConfig:
    config = OmegaConf.create()
    for key, value in dotted.items():
        OmegaConf.update(config, key, value)
    return config
