"""How a configuration is loaded, checked and hashed.

Precedence: defaults (schema.py) <- experiment file <- variant file <- command line (layers.py). Unknown
keys, wrong types, values out of range and settings that contradict each other are one line (UserError).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from tunalab.errors import UserError
from tunalab.redaction import redacted_settings
from tunalab.settings.declaration import Declared, Setting, check_values, members_of
from tunalab.settings.layers import Layer, Mixes, file_layers, laid, made, override_layers, read_settings
from tunalab.settings.schema import REVISION, SETTINGS, SIDES, RunConfig, SamplingConfig, StageConfig
from tunalab.settings.values import hints, member

# What does not enter the hash of a run: where it reports, how it is scheduled, when it may go on.
# First groups (and settings of no group) of which nothing enters, then single settings of others.
_GROUPS: dict[str, list[Setting]] = {}
for _key, _one in SETTINGS.items():
    _GROUPS.setdefault(_key.split(".")[0], []).append(_one)
NOT_IDENTITY = tuple(group for group, inside in _GROUPS.items() if not any(one.identity for one in inside))
NOT_IDENTITY_INSIDE = tuple(key for key, one in SETTINGS.items() if not one.identity and key.split(".")[0] not in NOT_IDENTITY)

Below = tuple[dict[str, Any], Mixes]  # what the files of a run say, and the mixes that they name


def load_config(experiment: Path | None, variant: Path | None, overrides: Sequence[str]) -> RunConfig:
    """Lay experiment file, variant file and command line (layers.py) over the defaults and check the result.

    Raises UserError, one line, naming the key or the file and the choices.
    """
    return with_overrides(read_files(experiment, variant), overrides)


def read_files(experiment: Path | None, variant: Path | None) -> Below:
    layers, mixes = file_layers(experiment, variant)
    return laid(layers, RunConfig), mixes


def with_overrides(below: Below, overrides: Sequence[str]) -> RunConfig:
    """:func:`load_config` of files that are read already: a sweep reads them once for all its cells."""
    settings, mixes = below
    return _checked(laid(override_layers(overrides, mixes), RunConfig, settings))


def read_config(path: Path) -> RunConfig:
    """What a run, or an exported model, saved. Raises UserError: it is missing, damaged, or of another revision."""
    plain = read_settings(path)
    if "variant" not in plain:
        raise UserError(f"{path} is damaged: it does not hold the settings of a run")
    return from_plain(plain, source=str(path))


def from_plain(plain: Any, references: bool = False, source: str = "config") -> RunConfig:
    """A checked RunConfig from plain dicts, such as a run's saved ``config.yaml`` or the config inside a record.

    Without a revision it is from before there was one, and of the first. Without ``references`` text stays what it is: a stranger's
    ``${oc.env:...}`` reads nothing of this machine.
    """
    if not isinstance(plain, dict):
        raise UserError(f"{source} is not a mapping of settings")
    plain = {"revision": 1, **{str(key): value for key, value in plain.items()}}
    return _checked(laid([Layer(source, plain if references else _literal(plain))], RunConfig))


def laid_over(config: RunConfig, setting: str) -> RunConfig:
    """A configuration with one more setting of the command line. Raises UserError, one line."""
    return with_overrides((_literal(asdict(config)), {}), [setting])


def _literal(plain: Any) -> Any:
    """``${`` as OmegaConf writes it where no reference is meant, with the backslashes before it doubled."""
    if isinstance(plain, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", plain) if "${" in plain else plain
    if isinstance(plain, dict):
        return {_literal(key): _literal(value) for key, value in plain.items()}
    return [_literal(value) for value in plain] if isinstance(plain, list) else plain


def _checked(merged: dict[str, Any]) -> RunConfig:
    config = made(RunConfig, merged)
    check(config)
    return config


def to_plain(config: Any) -> dict[str, Any]:
    """Plain nested dicts of numbers, strings and lists, without credentials: what is saved, shown, hashed and compared."""
    plain: dict[str, Any] = _plain(config, type(config))
    return plain


def _plain(value: Any, declared: Any) -> Any:
    if isinstance(value, str):
        return value if not value or value.isidentifier() else redacted_settings(value)
    if isinstance(value, int | float):
        # A whole number is the same setting as the fraction, and has to be the same text for the hash.
        return float(value) if declared is float and type(value) is int else value
    if isinstance(value, dict):
        member = (get_args(declared) or (None, None))[1]
        return {str(name): _plain(inner, member) for name, inner in value.items()}
    if isinstance(value, list):
        member = (get_args(declared) or (None,))[0]
        return [_plain(inner, member) for inner in value]
    return {name: _plain(getattr(value, name), inner) for name, inner in hints(type(value)).items()}


def to_yaml(config: RunConfig) -> str:
    """The text of a run's ``config.yaml``, which :func:`read_config` reads."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def completed(plain: dict[str, Any]) -> dict[str, Any]:
    """A plain configuration of an earlier version as today's would be: settings that were added since, at their defaults.

    Nothing is checked: what today's settings refuse stays as it is.
    """
    return _completed(redacted_settings({"revision": 1, **plain}), RunConfig, to_plain(RunConfig()))


def _completed(plain: Any, hint: Any, defaults: Any) -> Any:
    """``hint`` says which members users name; ``defaults`` are a run's, which has no such members."""
    if not isinstance(plain, dict):
        return plain
    if is_dataclass(hint):
        filled = {name: _completed(inside, member(hint, name), defaults.get(name)) for name, inside in plain.items()}
        return {**defaults, **filled}
    inner = members_of(hint)
    return plain if inner is None else {name: _completed(inside, inner, to_plain(inner())) for name, inside in plain.items()}


def sources_of(stages: Mapping[str, StageConfig]) -> set[str]:
    """Every source that some stage draws from."""
    return {name for stage in stages.values() for name, weight in stage.mix.items() if weight > 0}


def budget(config: RunConfig) -> int:
    """Tokens of all stages."""
    return sum(stage.tokens for stage in config.stages.values())


def config_hash(config: RunConfig) -> str:
    """Twelve hex digits that identify what a run computes (where it reports to does not enter)."""
    return plain_hash(to_plain(config))


def plain_hash(plain: dict[str, Any]) -> str:
    """:func:`config_hash` of a configuration in the form that :func:`to_plain` gives."""
    entering = {key: value for key, value in plain.items() if key not in NOT_IDENTITY}
    for key in NOT_IDENTITY_INSIDE:
        group, _, name = key.partition(".")
        if group in entering:
            entering[group] = {inner: value for inner, value in entering[group].items() if inner != name}
    return digest(entering | {"stages": list(entering["stages"].items())})  # their order is part of it


def digest(plain: Any) -> str:
    return text_digest(json.dumps(plain, sort_keys=True))


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check(config: RunConfig) -> None:
    """Range, choice and cross-field checks. Raises UserError with one line."""
    if config.revision != REVISION:
        raise UserError(
            f"revision={config.revision}: this version computes revision {REVISION}; the same settings gave another run"
        )
    check_values(config)
    check_together(config)
    if config.colour and not re.fullmatch("#[0-9A-Fa-f]{6}", config.colour):
        raise UserError(f"colour={config.colour} is not of the form #RRGGBB (in a file of YAML: in quotes)")


def check_together(config: RunConfig) -> None:
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


def check_sampling(sampling: SamplingConfig) -> None:
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
