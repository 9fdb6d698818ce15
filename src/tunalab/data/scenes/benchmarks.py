"""Benchmarks: questions of one kind, level and split."""

from collections.abc import Sequence

from tunalab.data.documents import Question
from tunalab.data.scenes.graph import Scene
from tunalab.data.scenes.render import render
from tunalab.data.scenes.sampling import check_image_size, draw_scene, stream
from tunalab.data.scenes.splits import check_split
from tunalab.data.scenes.vocabulary import BENCHMARKS, LEVELS
from tunalab.errors import UserError

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


def benchmark_scenes(kind: str, level: int, split: str, seed: int, groups: int, fewer: bool = False) -> list[Scene]:
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
        scene = draw_scene(stream("benchmark", kind, level, split, seed, index), split, kind, level)
        repeats = repeats + 1 if scene.content in scenes else 0
        scenes.setdefault(scene.content, scene)
        index += 1
    if len(scenes) < groups and not fewer:
        raise UserError(f"scenes: {kind} level {level} has no {groups} different scenes in {split}; ask for fewer")
    return list(scenes.values())


def benchmark(kind: str, level: int, split: str, image_size: int, seed: int, groups: int, fewer: bool = False) -> list[Question]:
    """Questions, two a group for pairs, else one.

    Raises:
        UserError: as :func:`benchmark_scenes`, or a wrong image size.
    """
    check_image_size(image_size)
    questions = []
    scenes = benchmark_scenes(kind, level, split, seed, groups, fewer)
    for group, scene in enumerate(scenes):
        views = [scene] if scene.twin is None else [scene, scene.twin]
        questions += [Question(render(view, image_size), view.prompt, view.answer, group) for view in views]
    return questions
