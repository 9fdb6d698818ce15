"""Requests of lmms-eval answered in batches, greedily; what is answered is kept, so that an interrupted task goes on.

Shapes: H W C image pixels and channels.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tunalab.data.buckets import Buckets
from tunalab.data.images import stretch
from tunalab.errors import UserError, first_line
from tunalab.evaluation.along import evaluation_mode
from tunalab.evaluation.subject import Subject
from tunalab.files import append_line, appended_lines
from tunalab.inference.prompts import answer_ids
from tunalab.settings.loading import text_digest

AT_ONCE = 128  # requests whose images are held in memory, and whose replies are written at a time
MAX_TOKENS = 512  # where a task names no limit: that of the official evaluation
DELIMITER = "\n\n"  # lmms-eval's separator of examples: its stop of every task that names none, in the midst of long replies


@dataclass(frozen=True, eq=False)
class Request:
    """One request. ``task`` and ``item`` say which; ``images`` decodes its images when they are needed."""

    task: str
    item: int
    text: str
    images: Callable[[], Sequence[Image.Image]]
    max_tokens: int = MAX_TOKENS
    stops: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, task: str, item: int, text: str, images: Callable[[], Sequence[Image.Image]], generation: Mapping[str, Any]
    ) -> "Request":
        """With the limit and the stops of lmms-eval's ``generation_kwargs``; decoding is greedy whatever else these hold."""
        until = generation.get("until") or ()
        stops = (until,) if isinstance(until, str) else tuple(until)
        limit = int(generation.get("max_new_tokens", MAX_TOKENS))
        return cls(task, item, text, images, limit, tuple(stop for stop in stops if stop != DELIMITER))

    @property
    def question(self) -> tuple[str, int, str, tuple[str, ...]]:
        """Equal for requests that differ in their limit alone."""
        return self.task, self.item, self.text, self.stops

    @property
    def key(self) -> str:
        """Of another question under the same number no reply is taken over."""
        about = json.dumps([self.task, self.item, self.text, self.max_tokens, self.stops])
        return f"{self.task}/{self.item}/{text_digest(about)}"


def reply(subject: Subject, requests: Sequence[Request], batch_tokens: int, kept_at: Path | None = None) -> list[str]:
    """The reply to every request. ``batch_tokens`` bounds the prompt tokens of a batch; replies do not depend on it.

    Requests that differ in their limit alone are answered once, under the largest.
    """
    # The request whose line an interrupted write cut off is answered again.
    replies: dict[str, str] = {} if kept_at is None else dict(map(json.loads, appended_lines(kept_at, torn="cut")))
    missing: dict[tuple[str, int, str, tuple[str, ...]], list[Request]] = {}
    for one in requests:
        if one.key not in replies:
            missing.setdefault(one.question, []).append(one)
    questions = list(missing.values())
    parts = [questions[start : start + AT_ONCE] for start in range(0, len(questions), AT_ONCE)]
    for part in subject.progress(parts, "replies", len(parts)):
        new = dict(_answer(subject, part, batch_tokens))
        replies |= new
        if kept_at is not None:
            for pair in new.items():
                append_line(kept_at, pair)
    return [replies[one.key] for one in requests]


def fit(image: Image.Image, buckets: Buckets) -> np.ndarray:
    """All of the image in the bucket nearest to its shape, (H, W, 3) uint8.

    As in the official evaluation it is stretched. In training it is cropped; here the object of the question might be cropped away.
    """
    size = buckets.unbounded().choose("image", image.height, image.width)
    return stretch(image.convert("RGB"), size, buckets.rule)


def _answer(subject: Subject, asked: Sequence[list[Request]], batch_tokens: int) -> Iterator[tuple[str, str]]:
    """Keys and replies; ``asked``: of each question its requests, which differ in their limit."""
    buckets = Buckets.of(subject.config.data)

    def limit(same: list[Request]) -> int:
        return max(one.max_tokens for one in same)

    for max_tokens, equal in groupby(sorted(asked, key=limit), key=limit):
        group = list(equal)
        questions = [(first_image(same[0], buckets), same[0].text) for same in group]
        with evaluation_mode(subject.model):
            answers = answer_ids(subject.model, subject.tokenizer, questions, max_tokens, batch_tokens)
        for same, ids in zip(group, answers, strict=True):
            for one in same:  # an answer under a smaller limit is the beginning of the one under a larger
                yield one.key, cut(subject.tokenizer.decode(ids[: one.max_tokens]), one.stops)


def first_image(one: Request, buckets: Buckets) -> np.ndarray | None:
    """One image, as in the official evaluation and in all that the models are trained on: further ones are not shown."""
    try:
        images = one.images()
        return fit(images[0], buckets) if images else None
    except (OSError, SyntaxError, ValueError) as error:  # as Pillow raises of damaged bytes
        raise UserError(f"{one.task}, item {one.item}: unreadable image: {first_line(error)}") from error


def cut(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text
