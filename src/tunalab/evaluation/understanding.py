"""Questions about scenes, of seven skills at three levels, in trained and in new combinations, easy-VQA and the run's benchmarks
from outside; each also blind.

Splits of the scenes: ``test`` draws from what training draws from; in ``composition`` every image shows a pair of colour and
shape, a word, a height of a coloured bar or a number of things that no training image shows (not always in what is asked).

Accuracy is the share of groups with every answer right: a group is a question, for ``pairs`` the two questions of a pair, as in
MMVP. Chance is the best of four guesses from the question alone, one of which knows other questions of the split
(``chance_of``). The ceiling of the scenes is 1: whoever sees the scene graph answers everything.

Training makes some answers to a wording more frequent than others. Chance in ``test`` includes that; in ``composition``, where
the trained answer is often the wrong one, a model that follows it falls below chance. ``accuracy without image`` is what the
model itself makes of it: the same questions without their images. The two images of a pair share their question, so for
``pairs`` it would be 0 whatever is answered, and is left out.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tunalab.data.documents import Question
from tunalab.data.easy_vqa import check_installed
from tunalab.data.scenes import BENCHMARKS
from tunalab.data.scenes.questions import question_kind
from tunalab.errors import UserError
from tunalab.evaluation.benchmarks import SPLIT, Benchmark, check_benchmarks, easy_vqa, of_kind, outside, right_groups, scenes
from tunalab.evaluation.measure import Measure, share
from tunalab.evaluation.parts import SCENE_SPLITS, UnderstandingSettings
from tunalab.evaluation.subject import Subject
from tunalab.files import write_atomically
from tunalab.settings.schema import RunConfig

KIND = "understanding"
Answers = list[tuple[str, str]]  # with the image, without it


def measure(subject: Subject, settings: UnderstandingSettings) -> list[Measure]:
    """Answers are kept in ``subject.folder``, a file a benchmark and split: ``[question, expected, answer, answer without image]``.

    Raises UserError: there is nothing to ask, or easy-VQA is not installed.
    """
    chosen = chosen_benchmarks(subject.config, settings)
    if not chosen:
        raise UserError("understanding.groups=0 and understanding.easy_vqa=0 leave nothing to ask")
    check_benchmarks(subject.config)  # now, not after all the scenes
    if settings.easy_vqa:
        try:
            check_installed()
        except UserError as error:
            raise UserError(f"{error} (or leave it out: understanding.easy_vqa=0)") from error
    blind: dict[str, str] = {}
    found: list[Measure] = []
    for split, build in subject.progress(chosen, KIND):
        benchmark = build()
        answers = _answers(subject, benchmark.questions, blind, subject.folder / f"{benchmark.name}-{split}.json")
        found += measures(benchmark, split, answers, settings)
    return found


def chosen_benchmarks(config: RunConfig, settings: UnderstandingSettings) -> list[tuple[str, Callable[[], Benchmark]]]:
    """Splits and benchmarks in the order of asking. They are built one at a time: at 512 px all images together are gigabytes."""
    size, groups, placement = config.data.image_size, settings.groups, config.data.placement
    cells: list[tuple[str, Callable[[], Benchmark]]] = []
    for split in SCENE_SPLITS:
        for level in sorted(set(settings.levels)):
            for kind in BENCHMARKS:
                if groups and split in settings.splits and kind in settings.benchmarks:
                    cells.append((split, partial(scenes, kind, level, split, size, groups, fewer=True, placement=placement)))
            for key in config.data.questions:
                if groups and split in settings.splits:
                    kind_of = question_kind(key, config.data)
                    cells.append((split, partial(of_kind, kind_of, level, split, size, groups, placement)))
    if settings.easy_vqa:
        cells.append((SPLIT, partial(easy_vqa, size, settings.easy_vqa)))
    # Published tasks are another part (`published`), with images their own commands.
    own = [key for key, chosen in config.evaluation.benchmarks.items() if not chosen.task]
    return cells + [(SPLIT, partial(outside, key, config)) for key in own]


def measures(benchmark: Benchmark, split: str, answers: Answers, settings: UnderstandingSettings) -> Iterator[Measure]:
    """Accuracy with and without the image, from one pair of answers a question."""
    sighted, blind_groups = (right_groups(benchmark, [pair[way] for pair in answers]) for way in (0, 1))
    of_scenes, pairs = benchmark.level is not None, len(sighted) < len(benchmark.questions)
    notes = ["both images of a pair right" if of_scenes else "all questions of a group right"] if pairs else []
    if of_scenes and len(sighted) < settings.groups:
        notes.append(f"the {len(sighted)} scenes that there are, of {settings.groups} asked for")
    of_benchmark = partial(share, KIND, benchmark.name, split=split, chance=benchmark.chance, note="; ".join(notes))
    yield of_benchmark(sighted, ceiling=1.0 if of_scenes else None)
    if not (of_scenes and pairs):  # two images of one question: without them one answer cannot be right of both
        yield of_benchmark(blind_groups, metric="accuracy without image")


def _answers(subject: Subject, questions: Sequence[Question], blind: dict[str, str], path: Path) -> Answers:
    """To every question; ``blind`` gathers those without image, by question: most are asked of many images."""
    kept = _kept(path, questions)
    if kept is not None:
        return kept
    new = list(dict.fromkeys(question.prompt for question in questions if question.prompt not in blind))
    with_image: list[tuple[np.ndarray | None, str]] = [(question.image_HWC, question.prompt) for question in questions]
    given = subject.answers([*with_image, *((None, prompt) for prompt in new)])
    blind |= zip(new, given[len(questions) :], strict=True)
    answers = [(answer, blind[question.prompt]) for question, answer in zip(questions, given[: len(questions)], strict=True)]
    rows = [[q.prompt, q.answer, *pair] for q, pair in zip(questions, answers, strict=True)]
    write_atomically(path, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return answers


def _kept(path: Path, questions: Sequence[Question]) -> Answers | None:
    """The answers that an interrupted evaluation left; None where there are none, or not to these questions."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        answers = [(str(sighted), str(blind_groups)) for _, _, sighted, blind_groups in rows]
    except (OSError, ValueError, TypeError):
        return None
    return answers if [row[:2] for row in rows] == [[one.prompt, one.answer] for one in questions] else None
