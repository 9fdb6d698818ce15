"""The parts of an evaluation (`tunalab evaluate RUN part.key=value`), by name, and their settings.

Each part measures one kind of skill of a trained model, on its own and resumably. It is a module
with a function ``measure(subject, settings) -> list[Measure]``; its settings are the field of the
same name of ``EvaluationSettings``, declared, laid over the defaults and checked as a run's are.
They are no part of a run's configuration: a run may be evaluated in many ways. A new part: one
module, one dataclass, one line here. A part of several benchmarks that have nothing
to do with one another is divided: its module has a function ``pieces(settings) -> list[Piece]`` instead.
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from tunalab.data.scenes import BENCHMARKS
from tunalab.errors import UserError
from tunalab.evaluation.published import BENCHMARKS as PUBLISHED
from tunalab.evaluation.published import RULES
from tunalab.settings.declaration import DECLARED, check_values, group, setting
from tunalab.settings.layers import laid, made, override_layers

if TYPE_CHECKING:  # they bring torch, and a mistyped part should be told at once
    from tunalab.evaluation.measure import Measure
    from tunalab.evaluation.subject import Subject


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
    settings = made(EvaluationSettings, laid(override_layers(overrides, {}), EvaluationSettings))
    check_values(settings)
    return settings


def part_of(override: str) -> str:
    """The part that ``part.key=value`` is for."""
    return override.split("=")[0].split(".")[0]


# Name -> module; the default suite are those that need nothing but the model.
PARTS: dict[str, str] = {
    "understanding": "tunalab.evaluation.understanding",
    "generation": "tunalab.evaluation.generation.following",
    "diversity": "tunalab.evaluation.generation.diversity",
    "fidelity": "tunalab.evaluation.generation.fidelity",
    "reconstruction": "tunalab.evaluation.reconstruction",
    "editing": "tunalab.evaluation.editing",
    "attention": "tunalab.evaluation.attention",
    "published": "tunalab.interop.lmms.published",
}
# Only on request: they need data, weights or a service that the package does not bring.
OPTIONAL: frozenset[str] = frozenset({"published"})
DIVIDED: frozenset[str] = frozenset({"published"})
# They judge what the parser of scenes reads. Its revision is among their settings, raised with whatever reads an image otherwise:
# what an earlier one judged is measured again, and never compared with what a later one does. Results without it are of the first.
OF_PARSER: frozenset[str] = frozenset({"generation", "diversity", "editing"})
PARSER, PARSER_REVISION, PARSER_SINCE = "parser", 3, "2026-11-29"
# They look at the same sampled images: which of them is first samples.
_OF_SAMPLES = ("generation", "diversity", "fidelity")


@dataclass(frozen=True)
class Piece:
    """What is measured at a time: a part, or a benchmark of a divided one. It has a folder of its own and is replaced as a whole.

    ``settings``, plain: all that its result hangs on besides the model, and nothing else.
    """

    name: str
    settings: dict[str, Any]
    measure: "Callable[[Subject], list[Measure]]"


class Part(Protocol):
    def measure(self, subject: "Subject", settings: Any) -> "list[Measure]":
        """Measure a skill. Raises UserError, one line, when something it needs is missing."""
        ...


class Divided(Protocol):
    def pieces(self, settings: Any) -> list[Piece]:
        """Raises UserError, one line, when something is missing that all of them need."""
        ...


def find_parts(names: Sequence[str] | None) -> list[str]:
    """The names, or those of the default suite. Raises UserError for an unknown one."""
    for name in names or ():
        if name not in PARTS:
            raise UserError(f"unknown part {name!r} of an evaluation (choices: {', '.join(PARTS)})")
    return [name for name in PARTS if name not in OPTIONAL] if names is None else list(dict.fromkeys(names))


def independent(parts: Sequence[str]) -> list[list[str]]:
    """Parts in groups that need nothing of one another, and so may be measured at the same time."""
    groups: dict[str, list[str]] = {}
    for name in parts:
        groups.setdefault(_OF_SAMPLES[0] if name in _OF_SAMPLES else name, []).append(name)
    return list(groups.values())


def load_part(name: str) -> Part:
    return cast(Part, import_module(PARTS[name]))


def pieces_of(name: str, settings: Any) -> list[Piece]:
    """The part itself, or what it is divided into. Raises UserError as :class:`Divided`."""
    if name in DIVIDED:
        return cast(Divided, import_module(PARTS[name])).pieces(settings)
    of_parser = {PARSER: PARSER_REVISION} if name in OF_PARSER else {}
    return [Piece(name, asdict(settings) | of_parser, partial(load_part(name).measure, settings=settings))]


def describe(settings: EvaluationSettings) -> str:
    """Every part with what it measures and its settings, as text."""
    lines = []
    for name, module in PARTS.items():
        lines.append(f"{name}{' (on request)' if name in OPTIONAL else ''}: {_about(module)}")
        chosen = getattr(settings, name)
        for entry in fields(chosen):
            value, limits = getattr(chosen, entry.name), entry.metadata[DECLARED].allowed
            text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else value  # as it is given on the command line
            lines.append(f"    {name}.{entry.name}={text}{f' ({limits})' if limits else ''}")
    return "\n".join(lines)


def _about(module: str) -> str:
    """The first line of a module's docstring, without seconds of imports."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return (ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or "").splitlines()[0]
