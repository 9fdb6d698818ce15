"""The benchmarks of a run, by name: those of the scenes at each level, easy-VQA, published tasks, and the user's own.

Also their scores: exact match of answers, counted by groups of questions, with a Wilson interval.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image as PillowImage

from tunalab.data.buckets import Buckets
from tunalab.data.documents import Question
from tunalab.data.easy_vqa import easy_vqa_benchmark
from tunalab.data.images import cover
from tunalab.data.scenes import BENCHMARKS
from tunalab.data.scenes import benchmark as scenes_benchmark
from tunalab.data.scenes.questions import QuestionKind, question_kind, questions_of
from tunalab.data.sources import check_pixels, corpus_class
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.evaluation import jsonl
from tunalab.evaluation.measure import Score, chance_of
from tunalab.evaluation.published import BENCHMARKS as PUBLISHED
from tunalab.plugins import Group, build, find, source_of
from tunalab.settings.loading import check_sampling, text_digest
from tunalab.settings.schema import BenchmarkConfig, RunConfig

if TYPE_CHECKING:  # of parts that come later, or import this one
    from tunalab.evaluation.generation.along import KeptImages, ScenePrompts

SPLIT = "test"
QUESTION_SEED = 0  # never the run's: all runs are asked the same questions
EASY_VQA = "easy_vqa"


def is_right(given: str, expected: str) -> bool:
    """Exact match but for case and white space: an answer that says more than was asked is wrong."""
    return " ".join(given.split()).casefold() == " ".join(expected.split()).casefold()


def answers_exactly(given: str, question: Question) -> bool:
    return any(is_right(given, expected) for expected in (question.answer, *question.also))


@dataclass(frozen=True, eq=False)
class Benchmark:
    """``published``: the benchmark whose skill it isolates, or which it is. ``level``: of difficulty, None where there is one.

    ``chance``: the share of right groups that guessing without the image reaches (``chance_of``).
    ``right``: whether a reply answers a question. ``of``: the items that it has in all, of which some are asked; None: all are.
    ``max_tokens``: limit of a reply; None: the run's. ``rule``: what ``right`` is, for the record.
    """

    name: str
    published: str
    level: int | None
    questions: Sequence[Question]
    chance: float
    right: Callable[[str, Question], bool] = answers_exactly
    of: int | None = None
    max_tokens: int | None = None
    rule: str = ""

    def describe(self) -> dict[str, int | str]:
        """For the record: how many items are asked, of how many, twelve hex digits of what they hold, how replies are judged."""
        items = len({question.group for question in self.questions})
        digest = hashlib.sha256()
        for one in self.questions:
            digest.update(repr((one.prompt, one.answer, one.group, one.options, one.also, one.image_HWC.shape)).encode())
            digest.update(one.image_HWC.tobytes())
        found: dict[str, int | str] = {"items": items, "of": self.of or items, "questions": digest.hexdigest()[:12]}
        return found | ({"rule": self.rule} if self.rule else {}) | ({"max_tokens": self.max_tokens} if self.max_tokens else {})


def benchmark_name(kind: str, level: int) -> str:
    """``count`` at level 1, ``count@3`` at level 3."""
    return kind if level == 1 else f"{kind}@{level}"


def benchmarks(config: RunConfig) -> list[Benchmark]:
    """Every benchmark that the evaluation settings ask for; 0 groups or questions leave a family out.

    Raises UserError: easy-VQA is not installed, or there are not as many different questions as asked for.
    """
    evaluation, size, placement = config.evaluation, config.data.image_size, config.data.placement
    found = []
    if evaluation.groups:
        levels, groups = sorted(set(evaluation.levels)), evaluation.groups
        found += [_scenes(kind, level, SPLIT, size, groups, placement=placement) for level in levels for kind in BENCHMARKS]
        kinds = [question_kind(key, config.data) for key in config.data.questions]
        found += [_of_kind(kind, level, SPLIT, size, groups, placement) for level in levels for kind in kinds]
    if evaluation.easy_vqa:
        found.append(_easy_vqa(size, evaluation.easy_vqa))
    return found + [outside(key, config, chosen.limit) for key, chosen in along(config).items() if is_questions(chosen)]


def along(config: RunConfig) -> dict[str, BenchmarkConfig]:
    """Those of ``evaluation.benchmarks`` that the run itself asks."""
    return config.evaluation.benchmarks if config.evaluation.asked == "along" else {}


def scene_prompts(config: RunConfig) -> "list[ScenePrompts]":
    """Of those that the run asks the ones whose images are scored at once."""
    return [_images(key, config) for key, chosen in along(config).items() if chosen.task == SCENE_PROMPTS]


def kept_images(config: RunConfig) -> "list[KeptImages]":
    """Of those that the run asks the ones whose images it keeps, for a scorer. Raises UserError, one line: prompts are missing."""
    tasks = {key: chosen.task for key, chosen in along(config).items()}
    return [_images(key, config) for key, task in tasks.items() if task in IMAGES and task != SCENE_PROMPTS]


def _images(key: str, config: RunConfig) -> Any:
    chosen = config.evaluation.benchmarks[key]
    return getattr(import_module(IMAGES[chosen.task]), chosen.task)(key, chosen, config)


def one_of(key: str, config: RunConfig) -> "Benchmark | ScenePrompts | KeptImages":
    """One of ``evaluation.benchmarks`` as it is asked along a run, by the run or later. Raises UserError: its data is missing."""
    chosen = config.evaluation.benchmarks[key]
    if is_questions(chosen):
        return outside(key, config, chosen.limit)
    images: ScenePrompts | KeptImages = _images(key, config)
    return images


def is_questions(chosen: BenchmarkConfig) -> bool:
    """Whether its items are questions; else prompts of images that the model makes."""
    return chosen.task not in IMAGES


def out_of_reach(config: RunConfig, tokenizer: Tokenizer, keys: Iterable[str]) -> list[str]:
    """A line for each benchmark of the user's own with right answers that no reply can be: too long, or not to be spelt.

    ``keys``: of ``evaluation.benchmarks``.
    """
    limit, lines = config.evaluation.max_answer_tokens, []
    for key in keys:
        chosen = config.evaluation.benchmarks[key]
        if chosen.task or chosen.rule == "option":  # of a task limit and verdict are its own; a letter is in every reach
            continue
        long: list[str] = []
        lost: list[str] = []
        asked = outside(key, config, chosen.limit).questions
        for question in asked:
            answers = {answer: tokenizer.encode(answer) for answer in (question.answer, *question.also)}
            spelt = [ids for answer, ids in answers.items() if is_right(tokenizer.decode(ids), answer)]
            if not spelt:
                lost.append(question.answer)
            elif min(map(len, spelt)) > limit:
                long.append(question.answer)
        setting, of = f"evaluation.benchmarks.{key}", f"of {len(asked)} answers"
        if long:
            longest = max(long, key=lambda answer: len(tokenizer.encode(answer)))
            lines.append(
                f"{setting}: {len(long)} {of} are longer than evaluation.max_answer_tokens={limit} ({_shortened(longest)}: "
                f"{len(tokenizer.encode(longest))} tokens) and can never be given: raise it"
            )
        if lost:
            first = _shortened(lost[0])
            lines.append(f"{setting}: {len(lost)} {of} cannot be spelt by this tokenizer ({first}): see decoder.tokenizer")
    return lines


def _shortened(text: str, most: int = 40) -> str:
    return repr(text if len(text) <= most else f"{text[: most - 3]}...")


def check_benchmarks(config: RunConfig, asking: bool = False) -> None:
    """Raises UserError, one line: a benchmark from outside cannot be found, or its name is taken or cannot be shown.

    Rules, classes and scorers are looked for where they are asked: along the run, or (``asking``) afterwards.
    """
    here = asking or config.evaluation.asked == "along"
    taken = {*BENCHMARKS, EASY_VQA}
    for group, members in (("data.questions", config.data.questions), ("evaluation.benchmarks", config.evaluation.benchmarks)):
        for key in members:
            if key in taken:
                raise UserError(f"{group}.{key}: a benchmark has this name (taken: {', '.join(sorted(taken))})")
            if not re.fullmatch(r"\w[\w -]*", key, re.ASCII):
                raise UserError(f"{group}.{key}: figures and MLflow call it so: letters, digits, blanks, _ and - are allowed")
            taken.add(key)
    if config.evaluation.asked == "later" and config.evaluation.benchmarks and config.evaluation.keep_points != "all":
        raise UserError("evaluation.asked=later asks the points that a run keeps: set evaluation.keep_points=all too")
    for key, chosen in config.evaluation.benchmarks.items():
        setting = f"evaluation.benchmarks.{key}"
        if chosen.task:
            _check_task(setting, chosen, here)
            if not is_questions(chosen):
                try:
                    check_sampling(replace(config.sampling, steps=chosen.steps))
                except UserError as error:
                    raise UserError(f"{setting}.steps={chosen.steps}: {error}") from error
        elif bool(chosen.path) == bool(chosen.name):
            raise UserError(f"{setting}: a file of questions (path), a class (name) or a task must be given, and not two of them")
        elif chosen.path and here:
            jsonl.rule(setting, chosen.rule)
        elif here:
            find(f"{setting}.name", chosen.name, OUTSIDE)


SCENE_PROMPTS = "scene_prompts"
IMAGES = {  # task -> where the function of its name is; parts that come later in the order are imported when they are asked for
    SCENE_PROMPTS: "tunalab.evaluation.generation.along",
    "geneval": "tunalab.interop.along",
    "dpg": "tunalab.interop.along",
}
TASKS = (*(name for name, published in PUBLISHED.items() if not published.judged), *IMAGES)


def _check_task(setting: str, chosen: BenchmarkConfig, here: bool) -> None:
    """Raises UserError, one line; also for a scorer that is not there: a run would notice it at its first point. ``here``: it is
    asked by this process.
    """
    if chosen.task not in TASKS:
        judged = chosen.task in PUBLISHED
        about = "is scored by a judge: `tunalab evaluate --parts published` asks it at the end" if judged else "is not known"
        raise UserError(f"{setting}.task={chosen.task} {about} (choices: {', '.join(TASKS)})")
    if chosen.name or (chosen.task == SCENE_PROMPTS and chosen.path):
        raise UserError(f"{setting}: a task takes no {'name' if chosen.name else 'path: its prompts are of scenes'}")
    if chosen.task != SCENE_PROMPTS and not chosen.path:
        raise UserError(f"{setting}.path is missing: the data of {chosen.task}")
    for key in ("scorer", "clip"):
        folder = getattr(chosen, key)
        if here and folder and not Path(folder).exists():
            raise UserError(f"{setting}.{key}={folder}: there is no such folder")


OUTSIDE = Group(
    "tunalab.benchmarks",
    "a benchmark: a class with questions",
    lambda found: callable(getattr(found, "questions", None)),
)


def outside(key: str, config: RunConfig, limit: int | None = None) -> Benchmark:
    """A benchmark of the user's own, of ``evaluation.benchmarks``. ``limit``: of its items, always the same ones; None: all.

    Raises UserError, one line: it cannot be found or made, it has no questions, or its chance is no share.
    """
    chosen = config.evaluation.benchmarks[key]
    if chosen.task:
        return _of_task(key, chosen.task, str(Path(chosen.path).absolute()), chosen.rules, Buckets.of(config.data), limit)
    if chosen.path:
        return _of_file(key, chosen.path, chosen.root, chosen.rule, Buckets.of(config.data), limit, _stamp(Path(chosen.path)))
    return _outside(key, chosen.name, tuple(chosen.arguments.items()), config.data.image_size, limit)


def outside_sources(config: RunConfig) -> dict[str, str]:
    """Setting -> where the class or function behind it came from, for the record."""
    found = {f"data.questions.{key}": question_kind(key, config.data).source for key in config.data.questions}
    for key in config.data.corpora:
        found[f"data.corpora.{key}"] = source_of(corpus_class(key, config.data))
    for key, chosen in along(config).items():
        setting = f"evaluation.benchmarks.{key}"
        if chosen.name:
            found[setting] = source_of(find(f"{setting}.name", chosen.name, OUTSIDE))
        elif not chosen.task and chosen.rule not in jsonl.RULES:
            found[f"{setting}.rule"] = source_of(jsonl.rule(setting, chosen.rule))
    return found


@lru_cache(maxsize=16)
def _of_task(key: str, task: str, path: str, rules: str, buckets: Buckets, limit: int | None) -> Benchmark:
    module = import_module("tunalab.interop.lmms.questions")
    made = module.published_questions(task, Path(path), rules, buckets, lambda items: jsonl.subset(items, limit))
    title, of = PUBLISHED[task].title, (made.of, made.max_tokens, rules)
    return Benchmark(key, title, None, made.questions, made.chance, made.right, *of)


def _stamp(path: Path) -> tuple[object, ...]:
    """Of the file's content: a notebook may change it, or the folder, while the process keeps what it has read."""
    return (path.absolute(), path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else ()


@lru_cache
def _digest_of_code(path: str) -> str:
    """As it was when it was loaded, which a process does once."""
    return text_digest(Path(path).read_text(encoding="utf-8"))


@lru_cache(maxsize=16)
def _of_file(
    key: str, path: str, root: str, rule: str, buckets: Buckets, limit: int | None, stamp: tuple[object, ...]
) -> Benchmark:
    setting = f"evaluation.benchmarks.{key}"
    right = jsonl.rule(setting, rule)
    questions, lines, total = jsonl.questions(setting, BenchmarkConfig(path=path, root=root, rule=rule), buckets, limit)
    line_of = dict(zip(questions, lines, strict=True))
    code = rule.partition(":")[0]
    judged = f"{rule} ({_digest_of_code(code)})" if Path(code).is_file() else rule

    def verdict(reply: str, question: Question) -> bool:
        found = right(reply, line_of[question])
        if isinstance(found, str):  # "False" would count as right
            raise UserError(f"{setting}.rule={rule}: it must say True or False of a reply, not {found!r}")
        return bool(found)

    return Benchmark(key, key, None, questions, jsonl.chance(lines), verdict, total, rule=judged)


@lru_cache(maxsize=16)
def _outside(key: str, name: str, arguments: tuple[tuple[str, object], ...], side: int, limit: int | None) -> Benchmark:
    setting = f"evaluation.benchmarks.{key}"
    made = build(f"{setting}.arguments", find(f"{setting}.name", name, OUTSIDE), dict(arguments), image_size=side)
    questions, every = [], list(made.questions())
    for number, one in enumerate(every):
        if not isinstance(one, Question):
            raise UserError(f"{setting}: item {number} of its questions is {str(one)[:60]!r}, not a Question")
        if wrong := _wrong_options(one):
            raise UserError(f"{setting}: question {number}: {wrong}")
    groups = [one.group for one in every]
    asked = jsonl.subset(groups, limit)
    for number, one in enumerate(every):
        if one.group not in asked:
            continue
        pixels_HWC = check_pixels(one.image_HWC, f"{setting}: question {number}")
        if pixels_HWC.shape[:2] != (side, side):
            pixels_HWC = cover(PillowImage.fromarray(pixels_HWC), (side, side))
        questions.append(replace(one, image_HWC=pixels_HWC))
    chance = getattr(made, "chance", None)
    if not isinstance(chance, int | float) or not 0 <= chance < 1:
        raise UserError(f"{setting}: its chance is {chance!r} (choices: a share from 0 to below 1)")
    if not questions:
        raise UserError(f"{setting}: it has no questions")
    judge = getattr(made, "is_right", is_right)
    total = len(set(groups))

    def verdict(reply: str, question: Question) -> bool:
        return any(judge(reply, answer) for answer in (question.answer, *question.also))

    return Benchmark(key, key, None, questions, float(chance), verdict, total)


def _wrong_options(question: Question) -> str:
    """Why a question's options are none, empty where they are sound or there are none."""
    options = question.options
    if not options:
        return ""
    if not all(isinstance(one, str) and one for one in options):
        return f"its options must be texts, got {options!r}"
    if len({*options}) < max(2, len(options)):
        return f"its options must be two or more different ones, got {', '.join(options)}"
    if question.answer not in options:
        return f"its answer {question.answer!r} is none of its options {', '.join(options)}"
    return f"every option is right: {', '.join(options)}" if {*options} <= {question.answer, *question.also} else ""


def of_kind(kind: QuestionKind, level: int, split: str, image_size: int, groups: int, placement: str = "grid") -> Benchmark:
    """Of a kind of question about scenes that is not ours. Raises UserError: it asks nothing, or wrongly."""
    questions, chance = questions_of(kind, level, split, image_size, QUESTION_SEED, groups, placement)
    return Benchmark(benchmark_name(kind.name, level), kind.name, level, questions, chance)


def scenes(
    kind: str, level: int, split: str, image_size: int, groups: int, fewer: bool = False, placement: str = "grid"
) -> Benchmark:
    """Raises UserError as data.scenes.benchmark, whose ``fewer`` and ``placement`` they are."""
    questions = scenes_benchmark(kind, level, split, image_size, QUESTION_SEED, groups, fewer, placement)
    return _benchmark(benchmark_name(kind, level), BENCHMARKS[kind], level, questions, split)


def easy_vqa(image_size: int, count: int) -> Benchmark:
    """Questions of the published test split, all of them where there are not so many. Raises UserError: it is not installed."""
    return _benchmark(EASY_VQA, "easy-VQA", None, easy_vqa_benchmark(image_size, count, QUESTION_SEED), SPLIT)


def _benchmark(name: str, published: str, level: int | None, questions: Sequence[Question], split: str) -> Benchmark:
    chance = chance_of(name, len({question.group for question in questions}), split)
    if chance is None:
        raise UserError(f"the chance of {name} in {split} was not measured (splits: test, composition)")
    return Benchmark(name, published, level, questions, chance)


# Rendering costs seconds and a run evaluates many times, so a process keeps the last settings' questions.
_scenes = lru_cache(maxsize=64)(scenes)
_easy_vqa = lru_cache(maxsize=2)(easy_vqa)
_of_kind = lru_cache(maxsize=16)(of_kind)


def score(benchmark: Benchmark, answers: Sequence[str], margins: Sequence[float | None] | None = None) -> Score:
    """The score of one answer a question, in order. ``margins``: of each question, None where its options are no few.

    Raises UserError when the benchmark has no questions or the answers are not as many: a share of what happens to be there would
    look like a result.
    """
    if not benchmark.questions:
        raise UserError(f"benchmark {benchmark.name} has no questions")
    if len(answers) != len(benchmark.questions):
        raise UserError(f"benchmark {benchmark.name}: {len(answers)} answers to {len(benchmark.questions)} questions")
    return Score.from_outcomes(right_groups(benchmark, answers), benchmark.chance, _least_margins(benchmark, margins))


def _least_margins(benchmark: Benchmark, margins: Sequence[float | None] | None) -> list[float] | None:
    """Of each group the smallest margin of its questions: a group is as right as the question that it is least sure of."""
    groups: dict[int, float] = {}
    for question, margin in zip(benchmark.questions, margins or (), strict=margins is not None):
        if margin is None:
            return None
        groups[question.group] = min(groups.get(question.group, math.inf), margin)
    return list(groups.values()) or None


def right_groups(benchmark: Benchmark, answers: Sequence[str]) -> list[bool]:
    """Whether all questions of a group are right, for every group in order of its first question."""
    groups: dict[int, bool] = {}
    for question, given in zip(benchmark.questions, answers, strict=True):
        groups[question.group] = groups.get(question.group, True) and bool(benchmark.right(given, question))
    return list(groups.values())
