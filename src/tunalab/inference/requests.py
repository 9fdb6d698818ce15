"""What is requested of a trained model: answers, and image files that say how they were made.

Making images can be interrupted: a file is written as soon as its batch is done, and one that is there
with the requested settings is kept.

Shapes: H W C image pixels and channels.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tqdm import tqdm

import tunalab
from tunalab.data.buckets import Buckets, Size
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.inference.generation import clamps, evaluations, sample_batches
from tunalab.inference.images import (
    VERSION,
    ImageLike,
    check_replaceable,
    check_size,
    check_utf8,
    input_buckets,
    output_size,
    read_input,
    save_image,
)
from tunalab.inference.prompts import answer, device_of, edit_prompt, edit_sampling, image_prompt, unconditional_prompt
from tunalab.model.unified import UnifiedModel
from tunalab.settings.loading import check_sampling
from tunalab.settings.schema import SETTINGS, ObjectiveConfig, RunConfig, SamplingConfig
from tunalab.terminal import progress_bar

BAR_DELAY = 3.0  # seconds after which progress is shown


def find_device(name: str | None, option: str = "--device ") -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:<n>``; None: a CUDA device if there is one. Raises UserError, naming ``option``, for another."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choices = ["cpu", *(["cuda"] if torch.cuda.is_available() else []), *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    if name not in choices:
        raise UserError(f"{option}{name} is not there (choices: {', '.join(choices)})")
    return torch.device(name)


def precision(config: RunConfig, device: torch.device) -> str:
    """bf16 or fp32, as in training (config.precision)."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" else "fp32"


@contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, products are computed in ``precision``, weights and sums in float32.

    Raises UserError where the device has too little memory.
    """
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    except torch.OutOfMemoryError as error:
        raise UserError("the device has too little memory: take a smaller --batch-tokens or --size, or --device cpu") from error


# Images of texts.


@dataclass(frozen=True, eq=False)
class Source:
    """An image to be edited, (H, W, 3) uint8, already in the size of the images that are made of it."""

    name: str
    pixels_HWC: np.ndarray

    @property
    def size(self) -> Size:
        height, width = self.pixels_HWC.shape[:2]
        return height, width

    @cached_property
    def about(self) -> dict[str, str]:
        return {"name": self.name, "sha256": hashlib.sha256(self.pixels_HWC.tobytes()).hexdigest()}


def whole(what: str, value: Any) -> int:
    """Raises UserError, naming ``what``, for what is no whole number, of Python or numpy."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"{what}={value!r} is no whole number")
    return int(value)


@dataclass(frozen=True)
class GenerationRequest:
    """How images are requested, on the command line and in Python; None: as the model's configuration says.

    ``n`` images of each text, of the seeds ``seed``, ``seed`` + 1, ... ``steps`` of the ``sampler`` (euler | heun). ``guidance``:
    scale of classifier-free guidance (1: none), away from the text ``negative``. ``shift`` of the sampler's times: above 1, more of
    the steps are near the noise. ``clamp`` of 1 - t (none | official). ``size``: 64, or "384x512" for height x width, in pixels.

    Raises UserError, naming the field, for a value that may not be.
    """

    n: int = 1
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    sampler: str | None = None
    shift: float | None = None
    clamp: str | None = None
    size: str | int | None = None

    prefix: ClassVar[str] = ""  # of the names of fields in errors

    def __post_init__(self) -> None:
        for name in ("n", "seed", "steps"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole(f"{self.prefix}{name}", value))
        for name in ("guidance", "shift"):
            if (value := getattr(self, name)) is not None:
                if isinstance(value, bool) or not isinstance(value, Real):
                    raise UserError(f"{self.prefix}{name}={value!r} is no number")
                if not isinstance(value, int | float):  # numpy's own do not go into the settings that files hold
                    object.__setattr__(self, name, float(value))
        if self.n < 1:
            raise UserError(f"{self.prefix}n={self.n} is out of range (from 1)")
        SETTINGS["seed"].declared.check(f"{self.prefix}seed", self.seed)
        last = f"{self.prefix}seed={self.seed} {self.prefix}n={self.n}: the last seed"
        SETTINGS["seed"].declared.check(last, self.seed + self.n - 1)

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.n))

    def sampling(self, config: RunConfig, edits: bool = False) -> SamplingConfig:
        """The model's own sampler but for what is given."""
        own = config.sampling
        steps = self._within("steps", self.steps, own.steps)
        guidance = self._within("guidance", self.guidance, own.guidance)
        # Of edits too, in the way in which the model guides them. 0 there would mean another way.
        of_edits = (self.guidance or own.edit_guidance) if own.edit_guidance else 0.0
        negative = own.negative_prompt if self.negative is None else self.negative
        check_utf8(f"{self.prefix}negative", negative)
        method = self._within("sampler", self.sampler, own.method, "method")
        clamp = self._within("clamp", self.clamp, own.clamp)
        shift = self._within("shift", self.shift, own.shift)
        given = replace(own, method=method, clamp=clamp, steps=steps, guidance=guidance, edit_guidance=of_edits, shift=shift)
        sampling = replace(given, negative_prompt=negative)
        check_sampling(sampling)
        if edits and self.guidance == 0 and own.edit_guidance:
            raise UserError(
                f"{self.prefix}guidance=0: edits of this model are guided from their source (choices: above 0; 1 is no guidance)"
            )
        return sampling

    def output_size(self, config: RunConfig) -> Size:
        return output_size(config.data, self.size)

    def source(self, image: ImageLike, config: RunConfig) -> Source:
        """An image to be edited, as the model sees it."""
        name = Path(image).name if isinstance(image, str | Path) else ""
        return Source(name, read_input(image, input_buckets(config.data, self.size)))

    def _within(self, name: str, given: Any, default: Any, key: str = "") -> Any:
        if given is None:
            return default
        SETTINGS[f"sampling.{key or name}"].declared.check(f"{self.prefix}{name}", given)
        return given


@dataclass(frozen=True, eq=False)
class ImageFile:
    """A file with the images of ``text``, one per seed (several stand in a square, row by row), edits where there is a ``source``.

    ``model``, plain: which one makes it (trained.model.Model.identity). ``precision``: bf16 or fp32.
    """

    path: Path
    text: str
    seeds: Sequence[int]
    size: Size
    sampling: SamplingConfig
    precision: str
    model: dict[str, Any]
    source: Source | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What the file says of itself."""
        sampling, source = self.sampling, self.source
        own = source is not None and sampling.edit_guidance
        settings: dict[str, Any] = {
            "prompt": self.text,
            "seed": self.seeds[0] if len(self.seeds) == 1 else list(self.seeds),
            "size": f"{self.size[0]}x{self.size[1]}",
            **({} if source is None else {"source": source.about}),
            "sampler": sampling.method,
            "steps": sampling.steps,
            **({"edit_guidance": own} if own else {"guidance": sampling.guidance}),
        }
        # Only where they change the image: images of 20 plain steps are those of versions without these settings.
        changes = {
            "negative_prompt": sampling.negative_prompt != "",
            "grid": sampling.grid != "steps",
            "shift": sampling.shift != 1,
            "clamp": clamps(replace(sampling, clamp="official")),
        }
        settings |= {name: getattr(sampling, name) for name, matters in changes.items() if matters}
        return settings | {"precision": self.precision, "model": self.model, VERSION: tunalab.__version__}

    def is_there(self) -> bool:
        """Raises UserError when something else, or something damaged, is in its place."""
        return check_replaceable(self.path, self.settings)


def make_missing(
    model: UnifiedModel, tokenizer: Tokenizer, objective: ObjectiveConfig, files: Sequence[ImageFile], batch_tokens: int = 16384
) -> int:
    """Make the files that are not there yet; returns how many were there.

    ``batch_tokens`` bounds the prompt and image tokens held at a time. ``model`` is in evaluation mode.

    Raises UserError, before anything is made: tokens do not cut a size exactly, a file is in the place of another image.
    Later: a file cannot be written, the device has too little memory.
    """
    for size in {one.size for one in files}:
        check_size(model.frontend.space, size)
    missing = [one for one in files if not one.is_there()]
    with image_bar(sum(len(one.seeds) for one in missing), files[0].sampling) as bar:
        for one, pixels_HWC in made_images(model, tokenizer, objective, missing, batch_tokens, bar.update):
            save_image(one.path, pixels_HWC, one.settings)
    return len(files) - len(missing)


def made_images(
    model: UnifiedModel,
    tokenizer: Tokenizer,
    objective: ObjectiveConfig,
    files: Sequence[ImageFile],
    batch_tokens: int = 16384,
    progress: Callable[[int], object] = lambda images: None,
) -> Iterator[tuple[ImageFile, np.ndarray]]:
    """Each file with its pixels (H, W, 3) uint8, as soon as they are done; nothing is written.

    The files share sampling and precision. ``progress`` as in :func:`sample_batches`.
    """
    groups: dict[tuple[Size, bool], list[ImageFile]] = {}
    for one in files:  # edits are sampled in their own way
        groups.setdefault((one.size, one.source is not None), []).append(one)
    space = model.frontend.space
    for (size, edits), group in groups.items():
        sampling = edit_sampling(group[0].sampling) if edits else group[0].sampling
        cells = [(number, place) for number, one in enumerate(group) for place in range(len(one.seeds))]
        keys = [(one.text, one.source) for one in group]
        prompts = {
            key: image_prompt(tokenizer, space, key[0])
            if key[1] is None
            else edit_prompt(tokenizer, space, key[1].pixels_HWC, key[0])
            for key in dict.fromkeys(keys)
        }
        unconditional = {
            source: unconditional_prompt(tokenizer, space, sampling, None if source is None else source.pixels_HWC)
            for source in dict.fromkeys(source for _, source in keys)
        }
        done: dict[int, dict[int, np.ndarray]] = {}
        with computing(group[0].precision, device_of(model)):
            batches = sample_batches(
                model,
                [prompts[keys[number]] for number, _ in cells],
                [unconditional[keys[number][1]] for number, _ in cells],
                size,
                sampling,
                objective,
                [group[number].seeds[place] for number, place in cells],
                batch_tokens,
                progress,
            )
            for numbers, images_NHWC in batches:
                for cell, pixels_HWC in zip(numbers, images_NHWC, strict=True):
                    number, place = cells[cell]
                    done.setdefault(number, {})[place] = pixels_HWC
                    if len(done[number]) == len(group[number].seeds):
                        images = done.pop(number)
                        yield group[number], square([images[place] for place in range(len(images))])


def square(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images (H, W, 3) of one size as a square of as many rows as columns, row by row. Raises ValueError: no square number."""
    side = math.isqrt(len(images))
    grid = np.stack(images).reshape(side, side, *images[0].shape)
    return np.concatenate(np.concatenate(grid, axis=1), axis=1)


def image_bar(images: int, sampling: SamplingConfig) -> "tqdm[Any]":
    """A bar whose ``update`` is the ``progress`` of :func:`made_images`."""
    return _bar(images * evaluations(sampling), f"{images} images")


def _bar(total: int, what: str) -> "tqdm[Any]":
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} so far, {remaining} left"
    return progress_bar(total=total, desc=what, bar_format=form, delay=BAR_DELAY)


# Answers.


def answers(
    model: UnifiedModel,
    tokenizer: Tokenizer,
    questions: Sequence[tuple[ImageLike | None, str]],
    buckets: Buckets,
    max_tokens: int,
    precision: str,
    batch_tokens: int = 4096,
    batch: int = 64,
) -> Iterator[str]:
    """The greedy answer to every (image or None, question), in order; ``batch`` questions are answered at a time.

    Raises UserError: an image cannot be read, the device has too little memory, no token may be given.
    """
    if whole("max_tokens", max_tokens) < 1:
        raise UserError(f"max_tokens={max_tokens} is out of range (from 1)")
    with _bar(len(questions), f"{len(questions)} questions") as bar:
        for first in range(0, len(questions), batch):
            some = questions[first : first + batch]
            images: dict[object, np.ndarray | None] = {None: None}  # each is read once, and encoded once
            keys = [image if isinstance(image, str | Path | None) else id(image) for image, _ in some]
            for key, (image, _) in zip(keys, some, strict=True):
                if image is not None and key not in images:
                    images[key] = read_input(image, buckets)
            pairs = [(images[key], text) for key, (_, text) in zip(keys, some, strict=True)]
            with computing(precision, device_of(model)):
                found = answer(model, tokenizer, pairs, max_tokens, batch_tokens)
            yield from found
            bar.update(len(some))
