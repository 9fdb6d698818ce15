"""What a stage's rows hold on average: from a sample of the run's own stream, or from assumed lengths of documents.

A plan must not need the data: full-scale sources are assumed, and the plan says so.
"""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path

from tunalab.data.buckets import Buckets, Size
from tunalab.data.documents import PREFIX, Kind
from tunalab.data.drawings.art import FILE
from tunalab.data.sequence import has_turns, visual_grid
from tunalab.data.sources import kind_of
from tunalab.data.stream import open_stream
from tunalab.data.tokenizer import Tokenizer
from tunalab.model.flops import Work
from tunalab.settings.loading import sources_of
from tunalab.settings.schema import DataConfig, RunConfig

IMAGE_FRAME = 3  # tokens around the visual tokens of an image: boi, time, eoi
SAMPLE_STEPS = 4
ASSUMED_FILL = 0.97  # share of a row's places that hold tokens
DRAWN = ("scenes", "easy_vqa", "questions")  # sources that need no files of the user's: sampled by default


@dataclass(frozen=True)
class Shape:
    """A document on average: ``text`` tokens (bos and eos among them), of which ``labels`` are predicted; images."""

    text: float
    labels: float
    looked_at: int = 0
    generated: int = 0

    @property
    def images(self) -> int:
        return self.looked_at + self.generated


# Ours: no source states them. A caption of some 75 words; FineVision's 89 million turns and 9.5 billion tokens of answers over 24
# million samples; an instruction of a sentence; web text of a few paragraphs.
ASSUMED: dict[Kind, Shape] = {
    "caption": Shape(text=115, labels=100, looked_at=1),
    "text_to_image": Shape(text=102, labels=0, generated=1),
    "vqa": Shape(text=500, labels=395, looked_at=1),
    "edit": Shape(text=25, labels=0, looked_at=1, generated=1),
    "text": Shape(text=1000, labels=999),
}


# Tokens that turns of a chat add with Qwen2.5's tokenizer (decoder.chat): to a document, where an image stands before text, and
# to every turn but the first.
CHAT, CHAT_LINE, CHAT_TURN = 28, 1, 9
TURNS = {"vqa": 89 / 24}  # a document, of FineVision as above; else one


def shape_of(kind: Kind, chat: str) -> Shape:
    """A document that is assumed, in the turns of ``chat``; plain text has none."""
    shape = ASSUMED[kind]
    if kind == "text" or not has_turns(chat, shape.generated > 0):
        return shape
    return replace(shape, text=shape.text + CHAT + CHAT_LINE * shape.looked_at + CHAT_TURN * (TURNS.get(kind, 1) - 1))


@dataclass(frozen=True)
class Workload:
    """``per_token``: work per token on average; ``fill``: share of places that hold tokens; ``source``: where both are from."""

    per_token: Work
    fill: float
    source: str


def workload(config: RunConfig, stage: str, tokenizer: Tokenizer | None, token_pixels: int) -> Workload:
    """Of a stage: sampled with a ``tokenizer``, else assumed. Raises UserError when a source cannot be opened."""
    if tokenizer is not None and config.stages[stage].tokens:
        return sampled(config, stage, tokenizer, token_pixels)
    return assumed(config.stages[stage].mix, config.data, token_pixels, config.decoder.chat)


def needs_no_files(config: RunConfig) -> bool:
    """Whether every source of the run is drawn or installed with the package, so that sampling costs nothing."""
    drawn = (*DRAWN, "drawings") if (Path(config.data.drawings) / FILE).is_file() else DRAWN
    return all(name.removeprefix(PREFIX).partition("/")[0] in drawn for stage in config.stages.values() for name in stage.mix)


def kinds_of(config: RunConfig) -> list[Kind]:
    """Kinds of documents in the run's mixes, in the order of ASSUMED."""
    found = {kind_of(name, config.data) for name in sources_of(config.stages)}
    return [kind for kind in ASSUMED if kind in found]


def row_share(kind: Kind, data: DataConfig, token_pixels: int, chat: str = "none") -> dict[str, float]:
    """Of a row full of one kind of document: the share of its tokens that each part of the model works on."""
    shape, visual = shape_of(kind, chat), statistics.mean(visual_tokens(data, token_pixels))
    length = shape.text + shape.images * (IMAGE_FRAME + visual)
    return {
        "front-end": shape.images * visual / length,
        "decoder": 1.0,
        "labels": shape.labels / length,
        "flow head": float(shape.generated > 0),
        "predictions": shape.generated * visual / length,
    }


def visual_tokens(data: DataConfig, token_pixels: int) -> list[int]:
    """Visual tokens of an image, for every bucket."""
    return [rows * columns for rows, columns in (visual_grid(*size, token_pixels) for size in Buckets.of(data).sizes)]


def assumed(mix: Mapping[str, float], data: DataConfig, token_pixels: int, chat: str = "none") -> Workload:
    """Documents of assumed lengths, weighted as the mix weighs documents; every bucket is taken to be as frequent as any other."""
    works = [_document(shape_of(kind_of(source, data), chat), data, token_pixels) for source in mix]
    return Workload(average(works, list(mix.values())), ASSUMED_FILL, "assumed lengths of documents")


def sampled(config: RunConfig, stage: str, tokenizer: Tokenizer, token_pixels: int) -> Workload:
    """The first steps of the stage's own stream. Raises UserError when its sources cannot be opened."""
    one_batch_a_step = replace(config.data, accumulate=1, step_tokens=0)
    alone = replace(config, stages={stage: config.stages[stage]}, data=one_batch_a_step)
    with tempfile.TemporaryDirectory() as folder:
        stream = open_stream(alone, tokenizer, token_pixels, Path(folder) / "rejects.jsonl")
        batches = [batch for step in islice(stream, SAMPLE_STEPS) for batch in step.batches]
    works = [Work.of(batch) for batch in batches]
    places = sum(batch.ids_BL.numel() for batch in batches)
    fill = sum(work.tokens for work in works) / places
    return Workload(average(works, [1.0] * len(works)), fill, f"{len(works)} batches of the run's own data")


def average(works: Sequence[Work], weights: Sequence[float]) -> Work:
    """Work per token, of work that comes in these proportions."""

    def total(name: str) -> float:
        return sum(weight * getattr(work, name) for work, weight in zip(works, weights, strict=True))

    tokens = total("tokens")
    images: dict[Size, float] = {}
    for work, weight in zip(works, weights, strict=True):
        for size, count in work.images.items():
            images[size] = images.get(size, 0.0) + weight * count / tokens
    numbers = {item.name: total(item.name) / tokens for item in fields(Work) if item.name != "images"}
    return Work(images=images, **numbers)


def _document(shape: Shape, data: DataConfig, token_pixels: int) -> Work:
    sizes, visual = Buckets.of(data).sizes, visual_tokens(data, token_pixels)
    mean = statistics.mean(visual)
    fixed = shape.text + IMAGE_FRAME * shape.images
    length = fixed + shape.images * mean
    # The variances of independent images add up: pairs go with the mean of the square, not the square of the mean.
    causal = (length**2 + length + shape.images * statistics.pvariance(visual)) / 2
    within_images = shape.images * statistics.mean(tokens * (tokens + 1) / 2 for tokens in visual)  # a time token and its tokens
    pairs = causal + within_images
    generates = shape.generated > 0
    return Work(
        tokens=length,
        labels=shape.labels,
        generating_tokens=length if generates else 0.0,
        images={size: shape.images / len(sizes) for size in sizes} if shape.images else {},
        generated_images=shape.generated,
        generated_visual=shape.generated * mean,
        pairs=pairs,
        generating_pairs=pairs if generates else 0.0,
    )
