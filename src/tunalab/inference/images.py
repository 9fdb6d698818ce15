"""Images that are given to a model, and image files that say how they were made.

Shapes: H W C image pixels and channels.
"""

import io
import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from torch import Tensor

from tunalab.data.buckets import Buckets, Size
from tunalab.data.documents import Reject
from tunalab.data.images import fit_image, read_image
from tunalab.errors import UserError
from tunalab.files import listed, write_atomically
from tunalab.frontends.contract import TargetSpace
from tunalab.settings.layers import unequal
from tunalab.settings.loading import parse_size
from tunalab.settings.schema import DataConfig

KEYWORD = "tunalab"  # of the text chunk of a PNG that holds the settings
VERSION = "tunalab"  # the one setting that may differ in a file that is kept
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")  # of image files in a folder

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
Settings = Mapping[str, Any]  # plain: what JSON holds

# What is given to a model: images, texts, sizes.


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


def each_image(images: ImageLike | Sequence[ImageLike] | None) -> tuple[list[ImageLike | None], bool]:
    """The images of a batch (a list, or an array or tensor of one dimension more), and whether it is one."""
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4 or isinstance(images, list | tuple):
        return list(images), True
    return [images], False  # type: ignore[list-item]


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


def check_utf8(what: str, text: str) -> None:
    """Raises UserError, naming ``what``, for what is no text, and for the bytes of a terminal that are none."""
    if not isinstance(text, str):
        raise UserError(f"{what} {text!r} is no text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} {ascii(text)} is not text in UTF-8") from error


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


# PNG files with the settings that they were made with, as JSON in a text chunk, which viewers show too.


def save_image(path: Path, image: np.ndarray | Image.Image, settings: Settings) -> None:
    """Write an RGB image, (H, W, 3) uint8 or of Pillow, with its settings as a PNG, whole or not at all; its folder is made.

    Raises UserError when the file cannot be written.
    """
    text = json.dumps(settings, ensure_ascii=False, allow_nan=False)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(KEYWORD, text)  # tEXt; where Latin-1 does not do, iTXt
    png = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(png, "PNG", pnginfo=chunks)
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


def differences(there: Settings, now: Settings) -> list[str]:
    """Which settings differ, each with both values; those of the part a.b are named a.b."""

    def short(value: Any) -> str:
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else f"{text[:57]}..."

    return [f"{key} {short(one)} there, {short(other)} now" for key, one, other in unequal(there, now)]


def check_replaceable(path: Path, settings: Settings) -> bool:
    """Whether a file is there that was made with these settings.

    Raises UserError when something else, or something damaged, is in its place.
    """
    if not path.exists():
        return False
    remedy = "choose another folder, or remove it"
    try:
        there = read_settings(path)
    except UserError as error:
        raise UserError(f"{error}: {remedy}") from error
    if there is None:
        raise UserError(f"{path} is there and does not say how it was made: {remedy}")
    if different := differences({**there, VERSION: None}, {**settings, VERSION: None}):
        raise UserError(f"{path} is there, made otherwise ({'; '.join(different)}): {remedy}")
    return True
