"""The configuration under which an official checkpoint is a model of ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from tunalab.config import REVISION, RunConfig, from_plain, read_yaml
from tunalab.errors import UserError
from tunalab.official.layout import USUAL, OfficialModel, known_encoder, told_by_shapes

# A configuration names at least one stage. What the checkpoint was trained with is not in it: nothing is claimed.
NO_STAGE = {"none": {"tokens": 1, "mix": {"scenes/text": 1.0}}}
MORE_ALLOWED = ("decoder.layers", "head.blocks")  # of these a checkpoint may lack some (start.allow_missing)


def official_config(
    tensors: Mapping[str, Tensor], model: OfficialModel, experiment: Path | None, variant: Path | None, settings: Sequence[str]
) -> RunConfig:
    """What the shapes tell, laid under experiment, variant and settings; what the official model expects stands below it all.

    Raises UserError: a file or a setting is wrong, or contradicts the shapes (both sides named).
    """
    given = _given(experiment, variant, settings)
    heads = OmegaConf.select(given, "decoder.heads")
    told = {**told_by_shapes(tensors, model, heads), **model.computes}
    base = _nested({**USUAL, **model.usual, **told, "variant": model.variant, "experiment": "official"})
    encoder = known_encoder(tensors)
    if encoder is not None:
        OmegaConf.update(base, "frontend.encoder", encoder)
    merged = OmegaConf.to_container(OmegaConf.merge(base, given))
    assert isinstance(merged, dict)
    config = from_plain({"revision": REVISION, "stages": NO_STAGE, **merged})
    contradictions = [
        f"{key} is {value} in the checkpoint, {setting(config, key)} in the configuration"
        for key, value in told.items()
        if contradicts(key, value, setting(config, key))
    ]
    if contradictions:
        raise UserError(f"the checkpoint does not fit: {'; '.join(contradictions)}")
    return config


def contradicts(key: str, told: Any, here: Any) -> bool:
    if key in MORE_ALLOWED:
        return bool(here < told)
    if key == "decoder.tie_embeddings":  # two equal tables may be two
        return bool(here and not told)
    return bool(here != told)


def setting(config: Any, key: str) -> Any:
    """A value by its dotted key."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _given(experiment: Path | None, variant: Path | None, settings: Sequence[str]) -> DictConfig:
    layers = [OmegaConf.create(read_yaml(path)) for path in (experiment, variant) if path is not None]
    names = {kind: path.stem for kind, path in (("experiment", experiment), ("variant", variant)) if path is not None}
    for text in settings:
        if "=" not in text or text.startswith("="):
            raise UserError(f"setting '{text}' is not of the form key=value")
    try:
        merged = OmegaConf.merge(*layers, OmegaConf.create(names), OmegaConf.from_dotlist(list(settings)))
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"settings cannot be read: {str(error).splitlines()[0]}") from error
    assert isinstance(merged, DictConfig)
    return merged


def _nested(dotted: Mapping[str, Any]) -> DictConfig:
    config = OmegaConf.create()
    for key, value in dotted.items():
        OmegaConf.update(config, key, value)
    return config
