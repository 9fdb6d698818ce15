"""The device and the precision that a trained model computes with."""

import hashlib
import io
import json
import math
import struct
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor
from tqdm import tqdm

import tunalab
from tunalab.data.buckets import Buckets, Size
from tunalab.data.documents import Reject
from tunalab.data.images import fit_image, read_image
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.files import listed, write_atomically
from tunalab.frontends.contract import TargetSpace
from tunalab.inference.generation import clamps, evaluations, sample_batches
from tunalab.inference.prompts import Prompt, answer, device_of, edit_prompt, edit_sampling, image_prompt, unconditional_prompt
from tunalab.model.unified import UnifiedModel
from tunalab.settings.layers import unequal
from tunalab.settings.loading import check_sampling, parse_size
from tunalab.settings.schema import SETTINGS, DataConfig, ObjectiveConfig, RunConfig, SamplingConfig
from tunalab.terminal import progress_bar


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


def mixed(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Inside, products are computed in ``precision``; weights and sums stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


# Images in files that say how they were made: PNG with the settings as JSON in a text chunk, which picture viewers show
# too.
#
# Shapes: H W C image pixels and channels.

KEYWORD = "tunalab"  # of the chunk

Settings = Mapping[str, Any]  # plain: what JSON holds


def save_image(path: Path, pixels_HWC: np.ndarray, settings: Settings) -> None:
    """Write RGB uint8 (H, W, 3) with its settings as a PNG, whole or not at all; its folder is made.

    Raises UserError when the file cannot be written.
    """
    text = json.dumps(settings, ensure_ascii=False, allow_nan=False)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(KEYWORD, text)  # tEXt; where Latin-1 does not do, iTXt
    png = io.BytesIO()
    Image.fromarray(pixels_HWC, "RGB").save(png, "PNG", pnginfo=chunks)
    try:
        write_atomically(path, png.getvalue())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings that :func:`save_image` wrote into an undamaged file; None of a PNG that was made otherwise.

    Raises UserError: the file is missing, is no PNG or is damaged.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info.get(KEYWORD)
            image.verify()  # the sum of every chunk
    except (OSError, SyntaxError, ValueError, struct.error) as error:  # Pillow has no exception of its own for all damage
        reason = "no such file" if isinstance(error, FileNotFoundError) else "damaged, or no PNG"
        raise UserError(f"{path}: {reason}") from error
    try:
        settings = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return settings if isinstance(settings, dict) else None


def differences(there: Settings, now: Settings) -> Iterator[str]:
    """Which settings differ, each with both values; those of the part a.b are named a.b."""
    for key, one, other in unequal(there, now):
        yield f"{key} {_shown(one)} there, {_shown(other)} now"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Image files that are asked for: what each will hold, the settings it will tell, and whether it is there already.
#
# Shapes: H W C image pixels and channels.

VERSION = "tunalab"  # the setting by which files may differ and still be the same image


@dataclass(frozen=True, eq=False)
class Source:
    """An image to be edited, (H, W, 3) uint8, already in the size of the images asked for."""

    name: str
    pixels_HWC: np.ndarray

    @property
    def size(self) -> Size:
        height, width = self.pixels_HWC.shape[:2]
        return height, width


@dataclass(frozen=True, eq=False)
class Wanted:
    """One file of the images of a text, an image a seed (several stand in a square, row by row), and the settings it will hold."""

    path: Path
    text: str
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    source: Source | None = None

    def is_there(self) -> bool:
        """Raises UserError when something else, or something damaged, is in its place."""
        if not self.path.exists():
            return False
        way_out = "choose another folder, or remove it"
        try:
            settings = read_settings(self.path)
        except UserError as error:
            raise UserError(f"{error}: {way_out}") from error
        if settings is None:
            raise UserError(f"{self.path} is there and does not say how it was made: {way_out}")
        different = list(differences({**settings, VERSION: None}, {**self.settings, VERSION: None}))
        if different:
            raise UserError(f"{self.path} is there, made otherwise ({'; '.join(different)}): {way_out}")
        return True


@dataclass(frozen=True, eq=False)
class Manner:
    """How images are made: by which ``model`` (plain), of which size, by which sampler, in bf16 or fp32."""

    model: dict[str, Any]
    size: Size
    sampling: SamplingConfig
    precision: str

    def wanted(self, path: Path, text: str, seeds: Sequence[int], source: Source | None = None) -> Wanted:
        settings: dict[str, Any] = {"prompt": text, "seed": seeds[0] if len(seeds) == 1 else list(seeds)}
        settings["size"] = f"{self.size[0]}x{self.size[1]}"
        if source is not None:
            pixels = hashlib.sha256(source.pixels_HWC.tobytes()).hexdigest()
            settings["source"] = {"name": source.name, "sha256": pixels}
        sampling: dict[str, Any] = {"sampler": self.sampling.method, "steps": self.sampling.steps}
        own = source is not None and self.sampling.edit_guidance
        sampling |= {"edit_guidance": own} if own else {"guidance": self.sampling.guidance}
        if self.sampling.negative_prompt:
            sampling["negative_prompt"] = self.sampling.negative_prompt
        # Told where they change the image alone: images of 20 plain steps are those of versions without these settings.
        sampling |= {"grid": self.sampling.grid} if self.sampling.grid != "steps" else {}
        sampling |= {"shift": self.sampling.shift} if self.sampling.shift != 1 else {}
        sampling |= {"clamp": self.sampling.clamp} if clamps(replace(self.sampling, clamp="official")) else {}
        settings |= sampling | {"precision": self.precision, "model": self.model, VERSION: tunalab.__version__}
        return Wanted(path, text, tuple(seeds), settings, source)


def square(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images (H, W, 3) of one size as a square of as many rows as columns, row by row. Raises ValueError: no square number."""
    side = math.isqrt(len(images))
    grid = np.stack(images).reshape(side, side, *images[0].shape)
    return np.concatenate(np.concatenate(grid, axis=1), axis=1)


# What is asked of a trained model: images of every text with every seed, each in a file of its own, and answers about
# images.
#
# Making images can be interrupted: a file is written as soon as its batch is done, and one that is there with the
# settings asked for is kept.
#
# Shapes: H W C image pixels and channels.

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")  # of image files in a folder
BAR_DELAY = 3.0  # seconds after which work is long


@dataclass(frozen=True)
class GenerationRequest:
    """How images are requested of a model, the same on the command line and in Python; None: as the model's configuration says.

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


def check_utf8(what: str, text: str) -> None:
    """Raises UserError, naming ``what``, for the bytes of a terminal that are none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} {ascii(text)} is not text in UTF-8") from error


@dataclass(frozen=True, eq=False)
class ImageOrder:
    """An image of every text with every seed; with a ``source`` the texts say how it is edited. The others: :class:`Manner`."""

    model: dict[str, Any]
    texts: Sequence[str]
    seeds: Sequence[int]
    size: Size
    sampling: SamplingConfig
    precision: str
    source: Source | None = None

    @property
    def manner(self) -> Manner:
        return Manner(self.model, self.size, self.sampling, self.precision)

    def images(self, folder: Path) -> list[Wanted]:
        """All images, text by text, with the files they become: numbers of texts count from 1."""
        return [
            self.manner.wanted(folder / f"{number:04d}-seed{seed}.png", text, [seed], self.source)
            for number, text in enumerate(self.texts, start=1)
            for seed in self.seeds
        ]


def make_images(
    model: UnifiedModel,
    tokenizer: Tokenizer,
    objective: ObjectiveConfig,
    order: ImageOrder,
    folder: Path,
    batch_tokens: int = 16384,
) -> tuple[list[Path], int]:
    """Make what is not there yet. All files, in the order of :meth:`ImageOrder.images`, and how many of them were there.

    ``batch_tokens`` bounds the prompt and image tokens held at a time. ``model`` is in evaluation mode.

    Raises UserError, before anything is made: tokens do not cut the size exactly, a file is in the place of another image.
    Later: a file cannot be written, the device has too little memory.
    """
    check_size(model.frontend.space, order.size)
    wanted = order.images(folder)
    missing = [one for one in wanted if not one.is_there()]
    with image_bar(sum(len(one.seeds) for one in missing), order.sampling) as bar:
        make_wanted(model, tokenizer, objective, order.manner, missing, batch_tokens, bar.update)
    return [one.path for one in wanted], len(wanted) - len(missing)


def make_wanted(
    model: UnifiedModel,
    tokenizer: Tokenizer,
    objective: ObjectiveConfig,
    manner: Manner,
    wanted: Sequence[Wanted],
    batch_tokens: int = 16384,
    progress: Callable[[int], object] = lambda images: None,
) -> None:
    """Make files, whatever is in their places, each written as soon as its images are done.

    ``progress`` as in :func:`sample_batches`. Raises UserError as :func:`make_images` does later.
    """
    for one, pixels_HWC in made_images(model, tokenizer, objective, manner, wanted, batch_tokens, progress):
        save_image(one.path, pixels_HWC, one.settings)


def made_images(
    model: UnifiedModel,
    tokenizer: Tokenizer,
    objective: ObjectiveConfig,
    manner: Manner,
    wanted: Sequence[Wanted],
    batch_tokens: int = 16384,
    progress: Callable[[int], object] = lambda images: None,
) -> Iterator[tuple[Wanted, np.ndarray]]:
    """As :func:`make_wanted`, without files: each of ``wanted`` with its pixels (H, W, 3) uint8, as soon as they are done."""
    # Edits are sampled in their own way, whatever else is requested.
    for edits in (False, True):
        some = [one for one in wanted if (one.source is not None) == edits]
        sampling = edit_sampling(manner.sampling) if edits else manner.sampling
        if some:
            yield from _made_alike(model, tokenizer, objective, replace(manner, sampling=sampling), some, batch_tokens, progress)


def _made_alike(
    model: UnifiedModel,
    tokenizer: Tokenizer,
    objective: ObjectiveConfig,
    manner: Manner,
    wanted: Sequence[Wanted],
    batch_tokens: int,
    progress: Callable[[int], object],
) -> Iterator[tuple[Wanted, np.ndarray]]:
    """As :func:`made_images`, of edits alone or of none, with their guidance in ``manner``."""
    space = model.frontend.space
    cells = [(number, place) for number, one in enumerate(wanted) for place in range(len(one.seeds))]
    keys = [(one.text, one.source) for one in wanted]
    prompts = {key: _prompt(key[1], tokenizer, space, key[0]) for key in dict.fromkeys(keys)}
    nothing = {
        source: unconditional_prompt(tokenizer, space, manner.sampling, None if source is None else source.pixels_HWC)
        for source in dict.fromkeys(source for _, source in keys)
    }
    made: dict[int, dict[int, np.ndarray]] = {}
    with mixed(manner.precision, device_of(model)), enough_memory():
        batches = sample_batches(
            model,
            [prompts[keys[number]] for number, _ in cells],
            [nothing[keys[number][1]] for number, _ in cells],
            manner.size,
            manner.sampling,
            objective,
            [wanted[number].seeds[place] for number, place in cells],
            batch_tokens,
            progress,
        )
        for numbers, images_NHWC in batches:
            for cell, pixels_HWC in zip(numbers, images_NHWC, strict=True):
                number, place = cells[cell]
                made.setdefault(number, {})[place] = pixels_HWC
                one = wanted[number]
                if len(made[number]) == len(one.seeds):
                    images = made.pop(number)
                    yield one, square([images[place] for place in range(len(images))])


def _prompt(source: Source | None, tokenizer: Tokenizer, space: TargetSpace, text: str) -> Prompt:
    return image_prompt(tokenizer, space, text) if source is None else edit_prompt(tokenizer, space, source.pixels_HWC, text)


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

    Raises UserError: an image cannot be read, the device has too little memory.
    """
    with _bar(len(questions), f"{len(questions)} questions") as bar:
        for first in range(0, len(questions), batch):
            some = questions[first : first + batch]
            images: dict[Hashable, np.ndarray] = {}  # each is read once, and encoded once
            for image, _ in some:
                if image is not None and _key(image) not in images:
                    images[_key(image)] = read_input(image, buckets)
            pairs = [(None if image is None else images[_key(image)], text) for image, text in some]
            with mixed(precision, device_of(model)), enough_memory():
                given = answer(model, tokenizer, pairs, max_tokens, batch_tokens)
            yield from given
            bar.update(len(some))


def find_images(path: Path) -> list[Path]:
    """An image file itself; of a folder the image files right in it, by name. Raises UserError where there are none."""
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path}: no such image file or folder of images")
        return [path]
    found = [file for file in listed(path) if file.suffix.lower() in ENDINGS]
    if not found:
        raise UserError(f"{path} holds no images ({' '.join(ENDINGS)})")
    return found


def read_input(image: ImageLike, buckets: Buckets) -> np.ndarray:
    """An image as a model sees it, (H, W, 3) uint8 (data/images.py).

    A file by its path, a PIL image, an array (H, W, 3) or (H, W), or a tensor (3, H, W), of uint8 or of real numbers from 0 to 1.
    Raises UserError where training rejects it, and for any other array.
    """
    try:
        if isinstance(image, str | Path):
            return read_image(Path(image), buckets)
        return fit_image(image if isinstance(image, Image.Image) else _picture(image), "image", buckets)
    except Reject as reject:
        raise UserError(str(reject)) from reject


def each_image(images: ImageLike | Sequence[ImageLike] | None) -> tuple[list[ImageLike | None], bool]:
    """The images of a batch (a list, or an array or tensor of one dimension more), and whether it is one."""
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4 or isinstance(images, list | tuple):
        return list(images), True
    return [images], False  # type: ignore[list-item]


def _key(image: ImageLike) -> Hashable:
    return image if isinstance(image, str | Path) else id(image)


def _picture(image: np.ndarray | Tensor) -> Image.Image:
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    if not isinstance(image, np.ndarray):
        raise UserError(f"an image of type {type(image).__name__} (choices: path, PIL image, array, tensor)")
    pixels = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    shape, real = pixels.shape, np.issubdtype(pixels.dtype, np.floating)
    if real and pixels.size and pixels.min() >= 0 and pixels.max() <= 1:
        pixels = np.rint(255 * pixels).astype(np.uint8)
    if pixels.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
        of = f" from {pixels.min():.3g} to {pixels.max():.3g}" if real and pixels.size else ""
        raise UserError(
            f"an image of shape {tuple(image.shape)} and {image.dtype}{of} (choices: array (H, W, 3) or (H, W), tensor (3, H, W), "
            "of uint8 or of real numbers from 0 to 1)"
        )
    return Image.fromarray(pixels)


def read_texts(path: Path, what: str) -> list[str]:
    """The lines of a file that are not blank. Raises UserError: it cannot be read, is no UTF-8, or has no such line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 (byte {error.start})") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise UserError(f"{path} is empty: a {what} a line is needed")
    return texts


def input_buckets(data: DataConfig, size: str | int | None) -> Buckets:
    """What images become that are given to a model: ``size`` ("64", "384x512": height, width), else what they become in training.

    A single size takes every image, for the user, or the benchmark, has no other image to give.

    Raises UserError for a size that is none or out of range.
    """
    if size is None:
        buckets = Buckets.of(data)
        return buckets if data.buckets else buckets.unbounded()
    square = f"{size}x{size}" if str(size).isdecimal() else str(size)
    return Buckets(((parse_size("size", square),),), rule=data.bucket_rule)


def output_size(data: DataConfig, size: str | int | None) -> Size:
    """The size of images that are made: ``size`` as :func:`input_buckets` takes it, else the square, or nearly, of training."""
    return input_buckets(data, size).unbounded().choose("", data.image_size, data.image_size)


def check_size(space: TargetSpace, size: Size) -> None:
    """Raises UserError, naming the nearest sizes, for one that tokens do not cut exactly."""
    token = space.token_pixels
    if any(side % token for side in size):
        below, above = ([max(1, round_(side / token)) * token for side in size] for round_ in (math.floor, math.ceil))
        near = " or ".join(dict.fromkeys(f"{height}x{width}" for height, width in (below, above)))
        raise UserError(f"size {size[0]}x{size[1]} is not cut exactly by this model's tokens of {token} pixels (nearest: {near})")


@contextmanager
def enough_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError("the device has too little memory: take a smaller --batch-tokens or --size, or --device cpu") from error


def image_bar(images: int, sampling: SamplingConfig) -> "tqdm[Any]":
    """A bar to be told what :func:`make_wanted` tells of its progress."""
    return _bar(images * evaluations(sampling), f"{images} images")


def _bar(total: int, what: str) -> "tqdm[Any]":
    """Time left, on stderr, of work that is long."""
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} so far, {remaining} left"
    return progress_bar(total=total, desc=what, bar_format=form, delay=BAR_DELAY)
