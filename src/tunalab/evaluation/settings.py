"""The settings of an evaluation (`tunalab evaluate RUN part.key=value`), a dataclass for each of its parts.

They are no part of a run's configuration: the same run may be evaluated in many ways. What may be set to what stands beside the
default: ``ranged`` and ``chosen``.
"""

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tunalab.data.scenes import BENCHMARKS
from tunalab.errors import UserError, first_line
from tunalab.evaluation.published import BENCHMARKS as PUBLISHED
from tunalab.evaluation.published import RULES
from tunalab.settings.layers import settings_layers
from tunalab.settings.values import typed

SCENE_SPLITS = ("test", "composition")  # those that nothing is trained on

FEATURES = ("network", "pixels")  # evaluation/generation/features.py


def ranged(default: Any, low: float | None = None, high: float | None = None) -> Any:
    """A number, or a list of numbers, within inclusive bounds."""
    limits = {"low": low, "high": high}
    return (
        field(default_factory=lambda: list(default), metadata=limits)
        if isinstance(default, list)
        else field(default=default, metadata=limits)
    )


def chosen(default: Any, *choices: str) -> Any:
    """A word, or a list of words, among ``choices``."""
    limits = {"choices": choices}
    return (
        field(default_factory=lambda: list(default), metadata=limits)
        if isinstance(default, list)
        else field(default=default, metadata=limits)
    )


@dataclass
class UnderstandingSettings:
    """``groups``: questions a benchmark, level and split, for pairs their number; as many as there are where there are fewer.

    ``easy_vqa``: questions. 0 of either leaves it out.
    """

    groups: int = ranged(400, 0)
    benchmarks: list[str] = chosen(list(BENCHMARKS), *BENCHMARKS)
    levels: list[int] = ranged([1, 2, 3], 1, 3)
    splits: list[str] = chosen(list(SCENE_SPLITS), *SCENE_SPLITS)
    easy_vqa: int = ranged(2000, 0)


@dataclass
class PromptSettings:
    """``prompts`` in each of GenEval's six categories, ``dense`` ones, so many ``samples`` of each.

    Parts with the same four share their images.
    """

    prompts: int = ranged(12, 0)
    dense: int = ranged(12, 0)
    samples: int = ranged(4, 1)
    split: str = chosen("test", *SCENE_SPLITS)


@dataclass
class GenerationSettings(PromptSettings):
    """``parser_scenes``: on which the parser's own accuracy is measured, in every condition; 0 leaves it out."""

    parser_scenes: int = ranged(150, 0)


@dataclass
class DiversitySettings(PromptSettings):
    """``features``: in which images are near or far."""

    features: list[str] = chosen(list(FEATURES), *FEATURES)


@dataclass
class FidelitySettings(PromptSettings):
    """``features``: as of diversity."""

    features: list[str] = chosen(list(FEATURES), *FEATURES)


@dataclass
class AttentionSettings:
    """``questions``: of every kind of scene and level."""

    questions: int = ranged(50, 2, 300)
    levels: list[int] = ranged([1, 3], 1, 3)


@dataclass
class PublishedSettings:
    """``data``: a folder with a local copy a task, of its name. ``limit``: items a task; 0 means all.

    ``batch_tokens``: prompt tokens answered at a time; more is faster on a GPU, and changes no answer. ``rules``: where the
    paper's scores follow other rules than lmms-eval 0.7.3, ``published`` gives the accuracy by both, ``stock`` by 0.7.3's alone.
    ``judge_tokens``: limit of an answer of MMVet's judge, by default the stock task's; one that reasons needs thousands.
    """

    data: str = ""
    rules: str = chosen(RULES[0], *RULES)
    tasks: list[str] = chosen(list(PUBLISHED), *PUBLISHED)
    limit: int = ranged(0, 0)
    batch_tokens: int = ranged(16384, 1)
    judge_tokens: int = ranged(128, 1)


@dataclass
class EditingSettings:
    """``count``: of every type of edit and level."""

    count: int = ranged(15, 1, 1000)
    levels: list[int] = ranged([1, 2], 1, 3)


@dataclass
class ReconstructionSettings:
    """``scenes``: images. ``inception``: file of the official weights of Inception v3, for rFID."""

    scenes: int = ranged(128, 2)
    inception: str = ""


@dataclass
class EvaluationSettings:
    """A field a part, in the order of evaluation/parts.py."""

    understanding: UnderstandingSettings = field(default_factory=UnderstandingSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    diversity: DiversitySettings = field(default_factory=DiversitySettings)
    fidelity: FidelitySettings = field(default_factory=FidelitySettings)
    reconstruction: ReconstructionSettings = field(default_factory=ReconstructionSettings)
    editing: EditingSettings = field(default_factory=EditingSettings)
    attention: AttentionSettings = field(default_factory=AttentionSettings)
    published: PublishedSettings = field(default_factory=PublishedSettings)


def load_settings(overrides: Sequence[str]) -> EvaluationSettings:
    """The defaults with ``part.key=value`` laid over them. Raises UserError, one line: unknown key, wrong type, out of range."""
    settings = OmegaConf.structured(EvaluationSettings)
    for layer, override in zip(settings_layers(None, None, overrides), overrides, strict=True):
        try:
            settings = OmegaConf.merge(settings, typed(layer.settings, EvaluationSettings))
        except UserError as error:
            raise UserError(f"{layer.source}: {error}") from error
        except OmegaConfBaseException as error:
            known, part = keys(EvaluationSettings), part_of(override)
            choices = [key for key in known if part_of(key) == part] or known
            raise UserError(f"{layer.source}: {first_line(error)} (choices: {', '.join(choices)})") from error
    try:
        made = OmegaConf.to_object(settings)
    except OmegaConfBaseException as error:  # a reference ${key} to nothing
        raise UserError(f"setting {getattr(error, 'full_key', None)}: {first_line(error)}") from error
    assert isinstance(made, EvaluationSettings)
    _check(made, "")
    return made


def part_of(override: str) -> str:
    """The part that ``part.key=value`` is for."""
    return override.split("=")[0].split(".")[0]


def keys(cls: Any, prefix: str = "") -> list[str]:
    """Dotted names of all settings of a dataclass and of those inside it."""
    named = []
    for entry in fields(cls):
        inside = entry.default_factory if callable(entry.default_factory) else None
        name = f"{prefix}{entry.name}"
        named += keys(inside, f"{name}.") if is_dataclass(inside) else [name]
    return named


def _check(node: Any, prefix: str) -> None:
    for entry in fields(node):
        value, name = getattr(node, entry.name), f"{prefix}{entry.name}"
        if is_dataclass(value):
            _check(value, f"{name}.")
            continue
        limits = entry.metadata
        if limits and value == []:
            raise UserError(f"{name}=[] leaves nothing (choices: {among(entry)})")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, list | dict):
                raise UserError(f"{name}={value} is nested: it takes single values ({among(entry)})")
            if "choices" in limits and one not in limits["choices"]:
                raise UserError(f"{name}={one} is unknown (choices: {among(entry)})")
            low, high = limits.get("low"), limits.get("high")
            if (low is not None and not one >= low) or (high is not None and not one <= high):  # NaN is neither
                raise UserError(f"{name}={one} is out of range ({among(entry)})")


def among(entry: Field[Any]) -> str:
    """What a setting may be; empty where anything is taken."""
    low, high = entry.metadata.get("low"), entry.metadata.get("high")
    if low is not None or high is not None:
        return f"from {low}" if high is None else f"up to {high}" if low is None else f"{low} to {high}"
    return ", ".join(entry.metadata.get("choices", ()))
