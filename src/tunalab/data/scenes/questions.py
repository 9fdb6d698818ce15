"""Questions of one kind, level and split as benchmarks; and kinds of questions from outside, as a corpus too.

A kind from outside is a function of a scene and a random generator. It returns the prompt, the
answer and the number of answers that are equally likely given the prompt alone, or None for a
scene that it cannot ask about.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import Any, NamedTuple

from tunalab.data.documents import Document, Image, Question, Text
from tunalab.data.scenes.graph import Scene, check_split
from tunalab.data.scenes.look import SHAPES as PLAIN
from tunalab.data.scenes.look import Look
from tunalab.data.scenes.render import render
from tunalab.data.scenes.sampling import SceneSettings, check_image_size, draw_level, draw_scene, stream
from tunalab.data.scenes.vocabulary import BENCHMARKS, LEVELS, SCENE_KINDS
from tunalab.errors import UserError
from tunalab.plugins import Group, find, source_of
from tunalab.settings.schema import DataConfig

_REPEATS = 100  # so many known scenes in a row: there are hardly any others

# Level -> the benchmark with the fewest scenes in the split "test", and how many of them evaluations find (by seed 0). Other levels
# have far more scenes than anybody asks for.
FEWEST = {1: ("ocr", 379)}


def check_groups(groups: int, levels: Sequence[int]) -> None:
    """Raises UserError when a benchmark of one of the levels has not so many scenes, without drawing any."""
    for level in levels:
        kind, most = FEWEST.get(level, ("", groups))
        if groups > most:
            raise UserError(
                f"evaluation.groups={groups}: {kind} at level {level} has {most} different scenes (choices: 0 to {most})"
            )


def benchmark_scenes(
    kind: str, level: int, split: str, seed: int, groups: int, fewer: bool = False, placement: str = "grid"
) -> list[Scene]:
    """The scenes of a benchmark, no two with the same image. ``fewer``: where there are not so many, all that there are.

    A smaller number of groups is the beginning of a larger one.

    Raises:
        UserError: unknown kind, level or split, or (without ``fewer``) more groups than there are different scenes.
    """
    if kind not in BENCHMARKS:
        raise UserError(f"scenes: unknown benchmark {kind!r}; choose from {', '.join(BENCHMARKS)}")
    if level not in LEVELS:
        raise UserError(f"scenes: unknown level {level!r}; choose from 1, 2, 3")
    check_split(split)
    scenes: dict[str, Scene] = {}
    index = repeats = 0
    while len(scenes) < groups and repeats < _REPEATS:
        scene = draw_scene(stream("benchmark", kind, level, split, seed, index), split, kind, level, placement)
        repeats = repeats + 1 if scene.content in scenes else 0
        scenes.setdefault(scene.content, scene)
        index += 1
    if len(scenes) < groups and not fewer:
        raise UserError(f"scenes: {kind} level {level} has no {groups} different scenes in {split}; ask for fewer")
    return list(scenes.values())


def benchmark(
    kind: str,
    level: int,
    split: str,
    image_size: int,
    seed: int,
    groups: int,
    fewer: bool = False,
    placement: str = "grid",
    looks: Callable[[int], Look] = lambda group: PLAIN,
) -> list[Question]:
    """Questions, two a group for pairs, else one. ``looks``: of each group, by its number.

    Raises:
        UserError: as :func:`benchmark_scenes`, or a wrong image size.
    """
    check_image_size(image_size)
    questions = []
    scenes = benchmark_scenes(kind, level, split, seed, groups, fewer, placement)
    for group, scene in enumerate(scenes):
        look = looks(group)
        for view in [scene] if scene.twin is None else [scene, scene.twin]:
            prompt, answer = look.said(view.prompt, kind), look.said(view.answer, kind)
            questions.append(Question(look.image(view, image_size), prompt, answer, group, look.choices(view)))
    return questions


QUESTIONS = Group("tunalab.questions", "a function of a scene and a random generator", callable)
TRAINED = 1000  # scenes whose answers the guess without the image knows
_TRIES = 500  # scenes in a row that a kind asks nothing about, or that were asked about before


class Drawn(NamedTuple):
    scene: Scene
    prompt: str
    answer: str
    options: int


class QuestionKind(NamedTuple):
    name: str
    ask: Callable[[Scene, Random], Any]
    source: str

    def of(self, scene: Scene, rng: Random) -> Drawn | None:
        """Raises UserError: what the function returns is neither None nor prompt, answer and options."""
        match self.ask(scene, rng):
            case None:
                return None
            case (str(prompt), str(answer), int(options)) if prompt and answer and options > 0:
                return Drawn(scene, prompt, answer, options)
            case other:
                raise UserError(
                    f"data.questions.{self.name}: {str(other)[:80]!r} was returned "
                    "(choices: None, or a prompt, an answer and the number of options)"
                )


def question_kind(key: str, data: DataConfig) -> QuestionKind:
    """Raises UserError, one line: it cannot be found."""
    found = find(f"data.questions.{key}.name", data.questions[key].name, QUESTIONS)
    return QuestionKind(key, found, source_of(found))


class QuestionCorpus:
    """Documents of kind vqa, without end: a scene with up to ``questions_per_image`` different questions of one kind."""

    length = None

    def __init__(self, name: str, kind: QuestionKind, split: str, settings: SceneSettings) -> None:
        self.name, self.source = name, kind.source
        self._kind, self._split, self._settings = kind, split, settings

    def document(self, index: int) -> Document:
        settings = self._settings
        rng = stream("questions", self.name, self._split, settings.seed, index)
        first = _draw(self._kind, rng, self._split, draw_level(rng, settings.levels), settings.placement)
        further = (self._kind.of(first.scene, rng) for _ in range(settings.questions_per_image - 1))
        turns = {one.prompt: one.answer for one in (first, *filter(None, further))}
        texts = (text for prompt, answer in turns.items() for text in (Text(prompt), Text(answer, target=True)))
        return Document("vqa", (Image(render(first.scene, settings.image_size)), *texts))


def questions_of(
    kind: QuestionKind, level: int, split: str, image_size: int, seed: int, groups: int, placement: str = "grid"
) -> tuple[list[Question], float]:
    """``groups`` questions, no two about the same image (fewer where there are fewer), and what guessing reaches.

    Chance is the better of two guesses without the image: one of the options; the answer that the
    prompt has most often in training.
    """
    check_image_size(image_size)
    drawn = list(_distinct(kind, level, split, seed, groups, placement))
    questions = [Question(render(one.scene, image_size), one.prompt, one.answer, number) for number, one in enumerate(drawn)]
    trained: dict[str, Counter[str]] = defaultdict(Counter)
    for one in islice(_drawn(kind, level, "train", seed, placement), TRAINED):
        trained[one.prompt][one.answer] += 1
    usual = {prompt: answers.most_common(1)[0][0] for prompt, answers in trained.items()}
    guesses = (sum(1 / one.options for one in drawn), sum(usual.get(one.prompt) == one.answer for one in drawn))
    return questions, max(guesses) / len(drawn)


def _distinct(kind: QuestionKind, level: int, split: str, seed: int, groups: int, placement: str) -> Iterator[Drawn]:
    contents: set[str] = set()
    repeats = 0
    for one in _drawn(kind, level, split, seed, placement):
        repeats = repeats + 1 if one.scene.content in contents else 0
        if len(contents) == groups or repeats == _TRIES:
            return
        if not repeats:
            contents.add(one.scene.content)
            yield one


def _drawn(kind: QuestionKind, level: int, split: str, seed: int, placement: str) -> Iterator[Drawn]:
    rng = stream("question benchmark", kind.name, level, split, seed)
    while True:
        yield _draw(kind, rng, split, level, placement)


def _draw(kind: QuestionKind, rng: Random, split: str, level: int, placement: str) -> Drawn:
    for _ in range(_TRIES):
        drawn = kind.of(draw_scene(rng, split, rng.choice(SCENE_KINDS), level, placement), rng)
        if drawn is not None:
            return drawn
    raise UserError(f"data.questions.{kind.name}: it asks nothing about {_TRIES} scenes of level {level}, split {split}")
