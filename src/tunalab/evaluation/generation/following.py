"""Generation: the share of images that show what their prompt asks, in GenEval's six categories, and of dense prompts' details.

The images that prompts are answered with, sampled once for all parts of an evaluation that look
at them.

Prompts are captions of held-out scenes (prompts.py); what an image shows is read by a parser
(parser.py), whose own accuracy is measured beside it, clean, under noise and blur, and after the
space that the model generates in.

``scene prompts``: right images by category much as GenEval decides (prompts.py), four of every
prompt. ``overall`` is the mean over categories, its interval from drawing prompts again within
each. Images of one prompt are not independent, so everywhere an item is a prompt, the mean of its
images. ``dense prompts``: questions about the scene graph, a question counting 0 where one that
it depends on is answered with no (prompts.py): the mean over an image's questions, then over
images; also by kind of question. As in DPG-Bench nobody asks what else is there, so nothing is
rejected by its residual.

``residual of right images``: how far those that are called right lie from what was read of them,
drawn again: 0 for renders, up to 1, above which an image is rejected (``rejected by residual``:
how many are). A model that paints what the parser likes shows here.

Chance is what perfect images reach that were made for other prompts of the category, the ceiling
what the parser gives to perfect images of the prompts themselves. Split ``round trip``: the same
for perfect images that went through the model's space.

Shapes: P prompts, S samples of each, H W C pixels.
"""

import io
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from tunalab.data.scenes import Scene, render
from tunalab.data.scenes.graph import place
from tunalab.data.scenes.sampling import stream
from tunalab.errors import UserError
from tunalab.evaluation.generation import prompts as dense
from tunalab.evaluation.generation.accuracy import ROUND_TRIP, accuracy, round_trip
from tunalab.evaluation.generation.parser import Found, Parsed, check_size, parse
from tunalab.evaluation.generation.prompts import CATEGORIES, DENSE, Prompt, prompts, right
from tunalab.evaluation.measure import Measure, mean, share, wilson
from tunalab.evaluation.parts import GenerationSettings, PromptSettings
from tunalab.evaluation.samples import draw_grid
from tunalab.evaluation.subject import Subject, kept_array
from tunalab.files import write_atomically

RENDERS = "renders"  # the split of perfect images
CHUNK = 16  # prompts whose images are kept together: so much is sampled again after an interruption


@dataclass(frozen=True, eq=False)
class Generated:
    """uint8 images (P, S, H, W, 3) of the prompts, the same order for every model."""

    prompts: tuple[Prompt, ...]
    images_PSHWC: np.ndarray


def chosen_prompts(settings: PromptSettings, series: int = 0) -> tuple[Prompt, ...]:
    """Raises UserError when there are not so many, or none is asked for."""
    found = [prompt for category in CATEGORIES for prompt in prompts(category, settings.split, settings.prompts, series)]
    found += prompts(DENSE, settings.split, settings.dense, series)
    if not found:
        raise UserError("prompts=0 and dense=0 leave nothing to generate")
    return tuple(found)


def generated(subject: Subject, settings: PromptSettings) -> Generated:
    """Sampled with the run's settings of sampling; what the evaluation's folder holds of them already is read.

    An image's seed depends on its prompt and number alone, so that more prompts leave the others' images as they are.
    """
    chosen = chosen_prompts(settings)
    config = subject.config
    check_size(config.data.image_size)
    of_prompts = {entry.name: getattr(settings, entry.name) for entry in fields(PromptSettings)}
    what = {"prompts": of_prompts, "sampling": asdict(config.sampling), "size": config.data.image_size}
    folder = subject.shared("images", what)
    firsts = range(0, len(chosen), CHUNK)
    chunks = []
    for first in subject.progress(firsts, "images", len(firsts)):
        path = folder / f"{first:06d}.npy"
        if not path.exists():
            texts = [prompt.text for prompt in chosen[first : first + CHUNK] for _ in range(settings.samples)]
            numbers = list(range(settings.samples)) * (len(texts) // settings.samples)
            seeds = [zlib.crc32(text.encode()) + number for text, number in zip(texts, numbers, strict=True)]
            content = io.BytesIO()
            np.save(content, subject.images(texts, seeds))
            write_atomically(path, content.getvalue())
        chunks.append(kept_array(path))
    images_NHWC = np.concatenate(chunks)
    return Generated(chosen, images_NHWC.reshape(len(chosen), settings.samples, *images_NHWC.shape[1:]))


def renders(chosen: Sequence[Prompt], image_size: int) -> np.ndarray:
    """What the prompts describe, as images (P, H, W, 3) uint8."""
    return np.stack([render(prompt.scene, image_size) for prompt in chosen])


def displaced_renders(chosen: Sequence[Prompt], count: int, image_size: int, series: int = 0) -> np.ndarray:
    """``count`` perfect images of each caption (P, S, H, W, 3) uint8, the things in their slots displaced anew as their level
    displaces; another ``series`` is drawn independently."""
    return np.stack([[render(scene, image_size) for scene in displaced(prompt.scene, count, series)] for prompt in chosen])


def displaced(scene: Scene, count: int, series: int = 0) -> list[Scene]:
    """``count`` scenes of one caption."""
    rng = stream("displaced", scene.content, series)
    level = scene.level
    return [
        replace(scene, items=tuple(place(rng, level, item.shape, item.colour, item.size, item.slot) for item in scene.items))
        for _ in range(count)
    ]


MOST = 12  # prompts of a category; one sample of each


def write_pictures(folder: Path, images: Generated, samples: Sequence[Sequence[Parsed]]) -> None:
    """A PNG a category. ``samples``: what was read of every image of every prompt."""
    for category in (*CATEGORIES, DENSE):
        chosen = [number for number, prompt in enumerate(images.prompts) if prompt.category == category][:MOST]
        if not chosen:
            continue
        captions = []
        for number in chosen:
            prompt, parsed = images.prompts[number], samples[number][0]
            verdict = "" if category == DENSE else "RIGHT " if right(category, prompt.scene, parsed) else "WRONG "
            captions.append(f"{prompt.text} = {verdict}{describe(parsed)}")
        draw_grid(images.images_PSHWC[chosen, 0], captions, columns=6).save(folder / f"{category}.png")


def describe(parsed: Parsed) -> str:
    """In a caption's form, with the place in units of a thing that is in no slot."""
    return f"on {parsed.background}: " + ", ".join(_phrase(one) for one in parsed.found)


def _phrase(found: Found) -> str:
    item = found.item
    place = item.slot or f"at {item.x},{item.y}"
    return " ".join(word for word in (item.size, item.colour, item.shape, place) if word)


KIND = "generation"
PROMPTS, DENSE_PROMPTS = "scene prompts", "dense prompts"  # benchmarks
OVERALL = "overall"
RESIDUAL, REJECTED = "residual of right images", "rejected by residual"
ITEM = "an item is a prompt, the mean of its images"
_RESAMPLES = 2000
_SEED = 0


def measure(subject: Subject, settings: GenerationSettings) -> list[Measure]:
    """Pictures of the images with what was read of them go to ``subject.folder``."""
    prompts = chosen_prompts(settings)
    truth_NHWC = renders(prompts, subject.config.data.image_size)
    perfect = parse(truth_NHWC)
    images = generated(subject, settings)
    P, S = images.images_PSHWC.shape[:2]
    read = parse(images.images_PSHWC.reshape(P * S, *truth_NHWC.shape[1:]))
    samples = [read[number * S : (number + 1) * S] for number in range(P)]
    write_pictures(subject.folder, images, samples)
    found = _follow(prompts, perfect, samples, settings.split) + _residuals(prompts, samples, settings.split)
    through = [[one] for one in parse(round_trip(subject.model, truth_NHWC))]
    found += [
        replace(one, note="perfect images after the space the model generates in and back")
        for one in _follow(prompts, perfect, through, ROUND_TRIP)
        if one.metric == OVERALL
    ]
    return found + (
        accuracy(subject.model, settings.parser_scenes, subject.config.data.image_size) if settings.parser_scenes else []
    )


def _follow(prompts: Sequence[Prompt], perfect: Sequence[Parsed], samples: Sequence[Sequence[Parsed]], split: str) -> list[Measure]:
    """``perfect``: what is read of the prompts' renders; ``samples``: of the images to be judged."""
    found = []
    of = {name: [n for n, prompt in enumerate(prompts) if prompt.category == name] for name in (*CATEGORIES, DENSE)}
    if of[CATEGORIES[0]]:
        found += _categories({name: of[name] for name in CATEGORIES}, prompts, perfect, samples, split)
    if of[DENSE]:
        scenes = [prompts[n].scene for n in of[DENSE]]
        found += _dense(scenes, [perfect[n] for n in of[DENSE]], [samples[n] for n in of[DENSE]], split)
    return found


def _residuals(prompts: Sequence[Prompt], samples: Sequence[Sequence[Parsed]], split: str) -> list[Measure]:
    """How far images of GenEval's categories lie from what was read of them, drawn again: of those that are right, and how many are
    rejected by it."""
    pairs = [(prompt, one) for prompt, images in zip(prompts, samples, strict=True) for one in images if prompt.category != DENSE]
    if not pairs:
        return []
    residuals = [one.residual for prompt, one in pairs if right(prompt.category, prompt.scene, one)]
    rejected = share(KIND, PROMPTS, [one.residual > 1 for _, one in pairs], metric=REJECTED, split=split)
    found = [replace(rejected, items=[], note="images of which the parsed scene, drawn again, leaves too much unexplained")]
    if residuals:  # the items differ from model to model
        note = "the most that the parsed scene, drawn again, leaves of a right image in one place, as a share of what is rejected"
        found.append(replace(mean(KIND, PROMPTS, residuals, metric=RESIDUAL, split=split, note=note), items=[]))
    return found


def _categories(
    of: dict[str, list[int]],
    prompts: Sequence[Prompt],
    perfect: Sequence[Parsed],
    samples: Sequence[Sequence[Parsed]],
    split: str,
) -> list[Measure]:
    found, by_category = [], []
    for category, numbers in of.items():
        verdicts_PS = np.array([[right(category, prompts[n].scene, one) for one in samples[n]] for n in numbers])
        other = [right(category, prompts[n].scene, perfect[m]) for n in numbers for m in numbers if m != n]
        ceiling = float(np.mean([right(category, prompts[n].scene, perfect[n]) for n in numbers]))
        chance = float(np.mean(other)) if other else None
        shares_P = verdicts_PS.mean(axis=1)
        found.append(by_prompt(PROMPTS, shares_P.tolist(), metric=category, split=split, chance=chance, ceiling=ceiling))
        by_category.append(shares_P)
    low, high = resampled_mean(by_category)
    chances = [one.chance for one in found if one.chance is not None]
    overall = Measure(
        KIND,
        PROMPTS,
        OVERALL,
        float(np.mean([shares_P.mean() for shares_P in by_category])),
        sum(len(shares_P) for shares_P in by_category),
        split,
        low,
        high,
        float(np.mean(chances)) if chances else None,
        float(np.mean([one.ceiling for one in found])),
        note=f"mean over the six categories; {ITEM}",
        items=[round(float(item), 6) for item in np.concatenate(by_category)],
    )
    return [*found, overall]


def by_prompt(
    benchmark: str, shares: list[float], *, metric: str, split: str, chance: float | None = None, ceiling: float | None = None
) -> Measure:
    """The mean of a share of every prompt. Where none or all are right nothing scatters, and the interval is Wilson's."""
    one = mean(KIND, benchmark, shares, metric=metric, split=split, chance=chance, ceiling=ceiling, note=ITEM)
    if one.low is None and one.value in (0, 1):
        low, high = wilson(round(one.value * one.n), one.n)
        return replace(one, low=low, high=high)
    return one


def resampled_mean(by_category: Sequence[np.ndarray]) -> tuple[float, float]:
    """The 95% interval of the mean over categories of the mean over prompts, the prompts of each category drawn again."""
    draws = np.random.default_rng(_SEED)
    means = [shares_P[draws.integers(len(shares_P), size=(_RESAMPLES, len(shares_P)))].mean(axis=1) for shares_P in by_category]
    low, high = np.quantile(np.mean(means, axis=0), (0.025, 0.975))
    return float(low), float(high)


def _dense(scenes: Sequence[Scene], perfect: Sequence[Parsed], samples: Sequence[Sequence[Parsed]], split: str) -> list[Measure]:
    of_scenes = [dense.questions(scene) for scene in scenes]
    given = [[dense.answers(questions, one) for one in images] for questions, images in zip(of_scenes, samples, strict=True)]
    other = [
        np.mean(dense.answers(questions, one)) for n, questions in enumerate(of_scenes) for m, one in enumerate(perfect) if m != n
    ]
    ceiling = [np.mean(dense.answers(questions, one)) for questions, one in zip(of_scenes, perfect, strict=True)]
    found = [
        by_prompt(
            DENSE_PROMPTS,
            [float(np.mean([np.mean(answers) for answers in images])) for images in given],
            metric=OVERALL,
            split=split,
            chance=float(np.mean(other)) if other else None,
            ceiling=float(np.mean(ceiling)),
        )
    ]
    for kind in dense.KINDS:
        of_kind = [[n for n, question in enumerate(questions) if question.kind == kind] for questions in of_scenes]
        shares = [
            float(np.mean([[answers[n] for n in chosen] for answers in images]))
            for chosen, images in zip(of_kind, given, strict=True)
            if chosen
        ]
        if shares:
            found.append(by_prompt(DENSE_PROMPTS, shares, metric=kind, split=split))
    return found
