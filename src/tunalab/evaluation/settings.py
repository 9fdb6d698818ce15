"""The settings of an evaluation (`tunalab evaluate RUN part.key=value`), a dataclass for each of its parts.

They are no part of a run's configuration: the same run may be evaluated in many ways. They are declared, laid
over the defaults and checked as a run's are (tunalab.settings).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import OmegaConf

from tunalab.data.scenes import BENCHMARKS
from tunalab.evaluation.published import BENCHMARKS as PUBLISHED
from tunalab.evaluation.published import RULES
from tunalab.settings.declaration import group, setting
from tunalab.settings.layers import laid, made, settings_layers

SCENE_SPLITS = ("test", "composition")  # those that nothing is trained on
FEATURES = ("network", "pixels")  # evaluation/generation/fidelity.py
_LEVELS = {"at_least": 1, "at_most": 3, "empty": False, "help": "scene difficulty levels"}
_FEATURES = {"choices": FEATURES, "empty": False, "help": "in which images are near or far"}


@dataclass
class UnderstandingSettings:
    """Questions about held-out scenes and easy-VQA's images."""

    groups: int = setting(
        400,
        at_least=0,
        help="questions per benchmark, level and split, for pairs their number; fewer where there are fewer; 0: none",
    )
    benchmarks: list[str] = setting(list(BENCHMARKS), choices=tuple(BENCHMARKS), empty=False, help="kinds of questions")
    levels: list[int] = setting([1, 2, 3], **_LEVELS)
    splits: list[str] = setting(list(SCENE_SPLITS), choices=SCENE_SPLITS, empty=False, help="of scenes, none trained on")
    easy_vqa: int = setting(2000, at_least=0, help="questions of easy-VQA's test split; 0: none")
    outside: bool = setting(True, help="all questions of the run's evaluation.benchmarks")


@dataclass
class PromptSettings:
    """Images of prompts. Parts with the same four settings share their images."""

    prompts: int = setting(12, at_least=0, help="prompts of each of GenEval's six categories")
    dense: int = setting(12, at_least=0, help="dense prompts")
    samples: int = setting(4, at_least=1, help="images per prompt")
    split: str = setting("test", choices=SCENE_SPLITS, help="of the scenes that prompts describe")


@dataclass
class GenerationSettings(PromptSettings):
    """Whether images follow their prompts, as the parser of scenes reads them."""

    parser_scenes: int = setting(150, at_least=0, help="scenes per condition that measure the parser's own accuracy; 0: none")


@dataclass
class DiversitySettings(PromptSettings):
    """How much images of one prompt differ."""

    features: list[str] = setting(list(FEATURES), **_FEATURES)


@dataclass
class FidelitySettings(PromptSettings):
    """How near images are to real ones."""

    features: list[str] = setting(list(FEATURES), **_FEATURES)


@dataclass
class AttentionSettings:
    """Where answers attend to."""

    questions: int = setting(50, at_least=2, at_most=300, help="of every kind of scene and level")
    levels: list[int] = setting([1, 3], **_LEVELS)


@dataclass
class PublishedSettings:
    """The paper's understanding benchmarks, from local copies."""

    data: str = setting("", help="folder with a local copy of each task, in a folder of its name")
    rules: str = setting(
        RULES[0],
        choices=tuple(RULES),
        help="where the paper's scores follow other rules than lmms-eval 0.7.3: published: the accuracy by both; stock: by "
        "0.7.3's alone",
    )
    tasks: list[str] = setting(list(PUBLISHED), choices=tuple(PUBLISHED), empty=False, help="the benchmarks")
    limit: int = setting(0, at_least=0, help="items per task; 0: all")
    batch_tokens: int = setting(
        16384,
        at_least=1,
        changes="rounding",
        help="prompt tokens answered at a time; more is faster on a GPU, and changes no answer",
    )
    judge_tokens: int = setting(
        128,
        at_least=1,
        help="limit of an answer of MMVet's judge, by default the stock task's; one that reasons needs thousands",
    )


@dataclass
class EditingSettings:
    """Edits of held-out scenes."""

    count: int = setting(15, at_least=1, at_most=1000, help="edits of every type and level")
    levels: list[int] = setting([1, 2], **_LEVELS)


@dataclass
class ReconstructionSettings:
    """Images through the front-end's target space and back."""

    scenes: int = setting(128, at_least=2, help="images")
    inception: str = setting("", help="file of the official weights of Inception v3, for rFID")


@dataclass
class EvaluationSettings:
    """A field a part, in the order of evaluation/parts.py."""

    understanding: UnderstandingSettings = group(UnderstandingSettings, acts="never")
    generation: GenerationSettings = group(GenerationSettings, acts="never")
    diversity: DiversitySettings = group(DiversitySettings, acts="never")
    fidelity: FidelitySettings = group(FidelitySettings, acts="never")
    reconstruction: ReconstructionSettings = group(ReconstructionSettings, acts="never")
    editing: EditingSettings = group(EditingSettings, acts="never")
    attention: AttentionSettings = group(AttentionSettings, acts="never")
    published: PublishedSettings = group(PublishedSettings, acts="never")


def load_settings(overrides: Sequence[str]) -> EvaluationSettings:
    """The defaults with ``part.key=value`` laid over them. Raises UserError, one line: unknown key, wrong type, out of range."""
    layers = settings_layers(None, None, overrides)
    settings = made(laid(OmegaConf.structured(EvaluationSettings), layers, EvaluationSettings))
    assert isinstance(settings, EvaluationSettings)
    return settings


def part_of(override: str) -> str:
    """The part that ``part.key=value`` is for."""
    return override.split("=")[0].split(".")[0]
