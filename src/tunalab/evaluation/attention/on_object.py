"""How much of the decoder's attention to the image lies on the thing that a question names.

Measured on scenes, where the thing's pixels are known, of the map averaged over all layers and heads and of the best single head,
at three tokens of the question: its first, which cannot know what will be named; the word that names the thing, as in the published
maps; and its last, from which the answer is predicted. Every measure stands beside what attention that prefers nothing reaches.

Shapes: N questions, Y layers, H heads, T visual tokens, S tokens seen; M maps of a question: the average, then every head's.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunalab.data.sequence import ImageSpan
from tunalab.evaluation.attention.asked import ROWS, Asked, asked_things, row_prompt
from tunalab.evaluation.measure import Measure, mean, share
from tunalab.evaluation.mode import evaluation_mode
from tunalab.evaluation.settings import AttentionSettings
from tunalab.evaluation.subject import Subject
from tunalab.inference.attention_maps import averaged, image_columns, last_rows

KIND = "attention"
COLUMNS = ("image", "time token", "bos, boi, eoi", "question")  # what it goes to
AVERAGE = 0  # among the maps of a question
ALL = "all"  # questions together


@dataclass(frozen=True, eq=False)
class Seen:
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
    asked = asked_things(tuple(settings.levels), settings.questions, subject.config.data.image_size, space.token_pixels)
    measures = []
    for row in ROWS:
        seen = look(subject, asked, row)
        measures += on_things(asked, seen, row, subject.model.decoder.config.num_attention_heads)
        for column, uniform, name in zip(seen.column_N4.T, seen.uniform_N4.T, COLUMNS, strict=True):
            measures.append(mean(KIND, ALL, column, metric=f"attention to {name}, {row}", chance=float(uniform.mean())))
    return measures


def look(subject: Subject, asked: Sequence[Asked], row: str) -> Seen:
    """What a model's attention does at one of ``ROWS`` of each question."""
    space = subject.model.frontend.space
    prompts = [row_prompt(subject.tokenizer, space, one, row) for one in asked]
    found: dict[int, tuple[np.ndarray, ...]] = {}
    with evaluation_mode(subject.model):
        for number, weights_YHS in subject.progress(last_rows(subject.model, prompts), f"attention, {row}", len(asked)):
            span = prompts[number].spans[0]
            uniform_YHS = np.full_like(weights_YHS, 1 / weights_YHS.shape[-1])
            on_columns = by_column(weights_YHS, span), by_column(uniform_YHS, span)
            found[number] = (*on_thing(asked[number], image_columns(weights_YHS, span)), *on_columns)
    return Seen(*(np.stack(values) for values in zip(*(found[number] for number in range(len(asked))), strict=True)))


def on_thing(asked: Asked, image_YHT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share on the thing, hit, mean share on another of its size: of the average, then of every head, layer by layer (M).

    Of a map with several largest weights one is drawn, so that one that prefers nothing points as often as chance says.
    """
    maps_MT = np.concatenate([averaged(image_YHT)[None], image_YHT.reshape(-1, image_YHT.shape[-1])]).astype(np.float64)
    total_M = np.maximum(maps_MT.sum(axis=1), np.finfo(np.float32).tiny)  # a head may look past the image altogether
    share_M, hit_M = maps_MT @ asked.cover_T / total_M, asked.on_T[pointed_at(maps_MT, asked.image_HWC)]
    if not asked.others_T:
        return share_M, hit_M, np.full(len(maps_MT), np.nan)
    return share_M, hit_M, maps_MT @ np.mean(asked.others_T, axis=0) / total_M


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


def on_things(asked: Sequence[Asked], seen: Seen, row: str, heads: int) -> list[Measure]:
    """Of every benchmark and of all together: of the average, and of the head that is best on every other question, on the rest."""
    area_N = np.array([one.area for one in asked])
    names = [one.benchmark for one in asked]
    reported_N = np.array([names[:n].count(name) % 2 == 1 for n, name in enumerate(names)])
    best = 1 + int((seen.share_NM[~reported_N, 1:] / area_N[~reported_N, None]).mean(axis=0).argmax())
    choice = f"layer {(best - 1) // heads}, head {(best - 1) % heads}: of all, the greatest lift on the other half of the questions"
    measures = []
    for name in dict.fromkeys([*names, ALL]):
        of_name_N = np.array([name in (one, ALL) for one in names])
        average = np.flatnonzero(of_name_N), AVERAGE, f"{row}, average", "mean over all layers and heads"
        best_head = np.flatnonzero(of_name_N & reported_N), best, f"{row}, best head", choice
        for numbers, at, where, note in (average, best_head):
            measures += _of_questions(asked, seen, name, numbers, at, where, note)
    return measures


def _of_questions(
    asked: Sequence[Asked], seen: Seen, benchmark: str, numbers: np.ndarray, at: int, where: str, note: str
) -> list[Measure]:
    """Of some questions and one of their maps."""
    shares, areas = seen.share_NM[numbers, at], np.array([asked[n].area for n in numbers])
    hits = [bool(hit) for hit in seen.hit_NM[numbers, at]]
    on = float(np.mean([asked[n].on_T.mean() for n in numbers]))
    most = np.array([asked[n].cover_T.max() for n in numbers])  # where all attention goes to the token that the thing covers most
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
    beside = [n for n in numbers if asked[n].others_T]
    if beside:
        others, area = seen.other_NM[beside, at].tolist(), float(np.mean([np.mean(asked[n].others_T) for n in beside]))
        measures.append(mean(KIND, benchmark, others, metric=f"share on others, {where}", chance=area, note=note))
    return measures
