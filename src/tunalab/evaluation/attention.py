"""Questions that name one thing of a scene, with the visual tokens on which that thing lies.

Shapes: H W image pixels; T visual tokens, row-major.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from tunalab.data.scenes import Item, Scene, masks, render
from tunalab.data.scenes.questions import benchmark_scenes
from tunalab.data.scenes.sampling import check_image_size
from tunalab.data.scenes.vocabulary import COLOURS, SHAPES
from tunalab.data.sequence import ImageSpan
from tunalab.data.tokenizer import Tokenizer
from tunalab.evaluation.along import evaluation_mode
from tunalab.evaluation.benchmarks import QUESTION_SEED, SPLIT, benchmark_name
from tunalab.evaluation.measure import Measure, mean, share
from tunalab.evaluation.parts import AttentionSettings
from tunalab.evaluation.samples import draw_grid
from tunalab.evaluation.subject import Subject
from tunalab.frontends.contract import TargetSpace
from tunalab.inference.attention import averaged, cut_prompt, draw_map, enlarged, image_columns, last_rows, outlined, tokens_through
from tunalab.inference.prompts import Prompt, answer
from tunalab.model.unified import UnifiedModel

# The kinds that ask about one thing. Others ask about several (count), about what is not there (pattern), or name nothing (ocr).
KINDS = ("relations", "charts", "pairs", "search")
ROWS = ("first token", "word", "last token")  # of a question, at which attention is looked at
_SCENES = {"charts": 4}  # drawn for every question that is kept: of the charts, a third names a bar
_NAME = re.compile(rf"\b(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)}|bar)\b|\b({'|'.join(COLOURS)})\b")


@dataclass(frozen=True, eq=False)
class ThingQuestion:
    """``word``: the last of those that name the thing. ``thing_HW``: its visible pixels.

    ``cover_T``: the share of every token's area that the thing covers; ``others_T``: the same of every other thing of its size.
    """

    benchmark: str
    image_HWC: np.ndarray
    question: str
    word: str
    thing_HW: np.ndarray
    cover_T: np.ndarray
    others_T: list[np.ndarray]

    @property
    def area(self) -> float:
        """The thing's share of the image: what attention that prefers nothing gives it."""
        return float(self.cover_T.mean())

    @property
    def on_T(self) -> np.ndarray:
        """Tokens that lie on the thing: it covers at least half as much of them as of the one that it covers most."""
        return np.asarray(self.cover_T >= self.cover_T.max() / 2)


@lru_cache(maxsize=4)
def thing_questions(
    levels: tuple[int, ...], count: int, image_size: int, token_pixels: int, placement: str = "grid"
) -> tuple[ThingQuestion, ...]:
    """``count`` questions of every kind and level, the same for every model of one image and token size; of pairs one of the two
    images, as they are nearly the same.

    Raises UserError: unknown level, wrong image size, or not so many different scenes.
    """
    check_image_size(image_size)
    found = []
    for level in levels:
        for kind in KINDS:
            scenes = benchmark_scenes(kind, level, SPLIT, QUESTION_SEED, _SCENES.get(kind, 1) * count, placement=placement)
            named = ((scene, named_thing(scene)) for scene in scenes)
            kept = [(scene, name) for scene, name in named if name is not None][:count]
            found += [_thing_question(benchmark_name(kind, level), scene, *name, image_size, token_pixels) for scene, name in kept]
    return tuple(found)


def named_thing(scene: Scene) -> tuple[int, str] | None:
    """The thing that the prompt names first, by its number, and the last word of its name; None where no or several things are
    called so.
    """
    found = _NAME.search(scene.prompt)
    if found is None:
        return None
    colour, shape = found[1] or found[3], found[2]
    called = [n for n, item in enumerate(scene.items) if shape in (None, item.shape) and colour in (None, item.colour)]
    return (called[0], found[0].split()[-1]) if len(called) == 1 else None


def _thing_question(benchmark: str, scene: Scene, thing: int, word: str, image_size: int, token_pixels: int) -> ThingQuestion:
    masks_NHW = masks(scene, image_size)
    cover_NT = [cover(mask_HW, token_pixels) for mask_HW in masks_NHW]

    def size(item: Item) -> tuple[int, int]:
        return item.rx, item.ry

    like = [n for n, item in enumerate(scene.items) if n != thing and size(item) == size(scene.items[thing]) and masks_NHW[n].any()]
    image_HWC = render(scene, image_size)
    return ThingQuestion(benchmark, image_HWC, scene.prompt, word, masks_NHW[thing], cover_NT[thing], [cover_NT[n] for n in like])


def row_prompt(tokenizer: Tokenizer, space: TargetSpace, one: ThingQuestion, row: str) -> Prompt:
    """The prompt of a question up to one of ``ROWS``."""
    tokens = {
        "first token": 1,
        "word": tokens_through(tokenizer, one.question, one.word),
        "last token": len(tokenizer.encode(one.question)),
    }
    return cut_prompt(tokenizer, space, one.image_HWC, one.question, tokens[row])


def cover(mask_HW: np.ndarray, token_pixels: int) -> np.ndarray:
    """The share of every visual token's square that a mask covers (T)."""
    H, W = mask_HW.shape
    cut = mask_HW.reshape(H // token_pixels, token_pixels, W // token_pixels, token_pixels)
    return np.asarray(cut.mean(axis=(1, 3)).ravel())


# How much of the decoder's attention to the image lies on the thing that a question names.
#
# Measured on scenes, where the thing's pixels are known, of the map averaged over all layers and heads and of the best
# single head, at three tokens of the question: its first, which cannot know what will be named; the word that names the
# thing, as in the published maps; and its last, from which the answer is predicted. Every measure stands beside what
# attention that prefers nothing reaches.
#
# Shapes: N questions, Y layers, H heads, T visual tokens, S tokens seen; M maps of a question: the average, then every
# head's.

KIND = "attention"
COLUMNS = ("image", "time token", "bos, boi, eoi", "question")  # what it goes to
AVERAGE = 0  # among the maps of a question
ALL = "all"  # questions together


@dataclass(frozen=True, eq=False)
class OnThings:
    """By question and map: ``share_NM`` of the attention to the image that lies on the thing; ``hit_NM``: whether the largest
    weight does; ``other_NM``: the share on another thing of that size, the mean of all (NaN: there is none). Averaged attention to
    each of ``COLUMNS``: ``column_N4``, and ``uniform_N4`` if every token seen got the same.
    """

    share_NM: np.ndarray
    hit_NM: np.ndarray
    other_NM: np.ndarray
    column_N4: np.ndarray
    uniform_N4: np.ndarray


def measure(subject: Subject, settings: AttentionSettings) -> list[Measure]:
    """Raises UserError: no such level, or not so many different scenes."""
    space = subject.model.frontend.space
    data = subject.config.data
    questions = thing_questions(tuple(settings.levels), settings.questions, data.image_size, space.token_pixels, data.placement)
    measures = []
    for row in ROWS:
        found_on = look(subject, questions, row)
        measures += on_things(questions, found_on, row, subject.model.decoder.config.num_attention_heads)
        for column, uniform, name in zip(found_on.column_N4.T, found_on.uniform_N4.T, COLUMNS, strict=True):
            measures.append(mean(KIND, ALL, column, metric=f"attention to {name}, {row}", chance=float(uniform.mean())))
    return measures


def look(subject: Subject, questions: Sequence[ThingQuestion], row: str) -> OnThings:
    """What a model's attention does at one of ``ROWS`` of each question."""
    space = subject.model.frontend.space
    prompts = [row_prompt(subject.tokenizer, space, one, row) for one in questions]
    found: dict[int, tuple[np.ndarray, ...]] = {}
    with evaluation_mode(subject.model):
        for number, weights_YHS in subject.progress(last_rows(subject.model, prompts), f"attention, {row}", len(questions)):
            span = prompts[number].spans[0]
            uniform_YHS = np.full_like(weights_YHS, 1 / weights_YHS.shape[-1])
            on_columns = by_column(weights_YHS, span), by_column(uniform_YHS, span)
            found[number] = (*on_thing(questions[number], image_columns(weights_YHS, span)), *on_columns)
    return OnThings(*(np.stack(values) for values in zip(*(found[number] for number in range(len(questions))), strict=True)))


def on_thing(question: ThingQuestion, image_YHT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share on the thing, hit, mean share on another of its size: of the average, then of every head, layer by layer (M).

    Of a map with several largest weights one is drawn, so that one that prefers nothing points as often as chance says.
    """
    maps_MT = np.concatenate([averaged(image_YHT)[None], image_YHT.reshape(-1, image_YHT.shape[-1])]).astype(np.float64)
    total_M = np.maximum(maps_MT.sum(axis=1), np.finfo(np.float32).tiny)  # a head may look past the image altogether
    share_M, hit_M = maps_MT @ question.cover_T / total_M, question.on_T[pointed_at(maps_MT, question.image_HWC)]
    if not question.others_T:
        return share_M, hit_M, np.full(len(maps_MT), np.nan)
    return share_M, hit_M, maps_MT @ np.mean(question.others_T, axis=0) / total_M


def pointed_at(maps_MT: np.ndarray, image_HWC: np.ndarray) -> np.ndarray:
    """The token of the largest weight (M). Ties are drawn from a generator that the image seeds: the same for every model.

    The first of them would always be the token at the top left, where things seldom lie.
    """
    largest_MT = maps_MT == maps_MT.max(axis=1, keepdims=True)
    pointed_M = largest_MT.argmax(axis=1)
    tied = np.flatnonzero(largest_MT.sum(axis=1) > 1)
    draw = np.random.default_rng(zlib.crc32(image_HWC.tobytes()))
    pointed_M[tied] = [draw.choice(np.flatnonzero(largest_MT[m])) for m in tied]
    return pointed_M


def by_column(weights_YHS: np.ndarray, span: ImageSpan) -> np.ndarray:
    """The averaged attention to each of ``COLUMNS``."""
    weights_S = weights_YHS.mean(axis=(0, 1))
    image = slice(span.offset + 1, span.offset + span.length)
    frame = weights_S[: span.offset].sum() + weights_S[image.stop]
    return np.array([weights_S[image].sum(), weights_S[span.offset], frame, weights_S[image.stop + 1 :].sum()])


def on_things(questions: Sequence[ThingQuestion], found_on: OnThings, row: str, heads: int) -> list[Measure]:
    """Of every benchmark and of all together: of the average, and of the head that is best on every other question, on the rest."""
    area_N = np.array([one.area for one in questions])
    names = [one.benchmark for one in questions]
    reported_N = np.array([names[:n].count(name) % 2 == 1 for n, name in enumerate(names)])
    best = 1 + int((found_on.share_NM[~reported_N, 1:] / area_N[~reported_N, None]).mean(axis=0).argmax())
    choice = f"layer {(best - 1) // heads}, head {(best - 1) % heads}: of all, the greatest lift on the other half of the questions"
    measures = []
    for name in dict.fromkeys([*names, ALL]):
        of_name_N = np.array([name in (one, ALL) for one in names])
        average = np.flatnonzero(of_name_N), AVERAGE, f"{row}, average", "mean over all layers and heads"
        best_head = np.flatnonzero(of_name_N & reported_N), best, f"{row}, best head", choice
        for numbers, at, where, note in (average, best_head):
            measures += _of_questions(questions, found_on, name, numbers, at, where, note)
    return measures


def _of_questions(
    questions: Sequence[ThingQuestion], found_on: OnThings, benchmark: str, numbers: np.ndarray, at: int, where: str, note: str
) -> list[Measure]:
    """Of some questions and one of their maps."""
    shares, areas = found_on.share_NM[numbers, at], np.array([questions[n].area for n in numbers])
    hits = [bool(hit) for hit in found_on.hit_NM[numbers, at]]
    on = float(np.mean([questions[n].on_T.mean() for n in numbers]))
    # All attention on the token that the thing covers most.
    most = np.array([questions[n].cover_T.max() for n in numbers])
    lift, best_lift = shares / areas, float((most / areas).mean())
    measures = [
        mean(
            KIND,
            benchmark,
            shares,
            metric=f"share on the thing, {where}",
            chance=float(areas.mean()),
            ceiling=float(most.mean()),
            note=note,
        ),
        mean(KIND, benchmark, lift, metric=f"lift on the thing, {where}", chance=1.0, ceiling=best_lift, note=note),
        share(KIND, benchmark, hits, metric=f"pointing, {where}", chance=on, ceiling=1.0, note=note),
    ]
    beside = [n for n in numbers if questions[n].others_T]
    if beside:
        others, area = found_on.other_NM[beside, at].tolist(), float(np.mean([np.mean(questions[n].others_T) for n in beside]))
        measures.append(mean(KIND, benchmark, others, metric=f"share on others, {where}", chance=area, note=note))
    return measures


# Pictures of attention: of one question every head, and the same questions for several models.
#
# Shapes: H W image pixels, C 3 channels; Y layers, H heads, T visual tokens.

LEVEL = 1
Captioned = list[tuple[np.ndarray, str]]


def draw_heads(image_HWC: np.ndarray, image_YHT: np.ndarray, grid: tuple[int, int]) -> Image.Image:
    """A row a layer, a column a head."""
    layers, heads = image_YHT.shape[:2]
    cells = np.stack([draw_map(image_HWC, map_T, grid) for of_layer in image_YHT for map_T in of_layer])
    return draw_grid(cells, [f"layer {layer}, head {head}" for layer in range(layers) for head in range(heads)], columns=heads)


def example_questions(count: int, image_size: int, token_pixels: int) -> list[ThingQuestion]:
    """The first questions of each kind in turn, at the easiest level."""
    each = -(-count // len(KINDS))
    questions = thing_questions((LEVEL,), each, image_size, token_pixels)
    return [questions[kind * each + number] for number in range(each) for kind in range(len(KINDS))][:count]


def shown_questions(questions: Sequence[ThingQuestion]) -> Captioned:
    """Every image with the named thing outlined, and its question, the word in brackets."""
    return [
        (outlined(enlarged(one.image_HWC), enlarged(one.thing_HW)), one.question.replace(one.word, f"[{one.word}]", 1))
        for one in questions
    ]


def shown_attention(
    name: str,
    model: UnifiedModel,
    tokenizer: Tokenizer,
    questions: Sequence[ThingQuestion],
    max_tokens: int,
    layer: int | None = None,
    head: int | None = None,
) -> list[Captioned]:
    """Every image under the model's attention, with the answer that it gives: at the word, then at the question's last token.

    Raises UserError: no such layer or head.
    """
    space = model.frontend.space
    with evaluation_mode(model):
        answers = answer(model, tokenizer, [(one.image_HWC, one.question) for one in questions], max_tokens)
    shown: list[Captioned] = []
    for row in ("word", "last token"):
        prompts = [row_prompt(tokenizer, space, one, row) for one in questions]
        with evaluation_mode(model):
            weights = dict(last_rows(model, prompts))
        cells = []
        for number, one in enumerate(questions):
            map_T = averaged(image_columns(weights[number], prompts[number].spans[0]), layer, head)
            picture_HWC = draw_map(one.image_HWC, map_T, space.grid(*one.image_HWC.shape[:2]))
            share = f"{map_T @ one.cover_T / map_T.sum():.0%} on it, area {one.area:.0%}"
            cells.append((outlined(picture_HWC, enlarged(one.thing_HW)), f"{name}, {row}: {share}; answer: {answers[number]}"))
        shown.append(cells)
    return shown


def draw_examples(rows: Sequence[Captioned]) -> Image.Image:
    """Rows of equal length under each other."""
    cells = [cell for row in rows for cell in row]
    return draw_grid(np.stack([image for image, _ in cells]), [caption for _, caption in cells], columns=len(rows[0]))
