"""Images of unknown origin, files or bytes -> square RGB arrays (image_HWC: height, width, 3 channels, uint8)."""

import contextlib
import ctypes
import errno
import io
import logging
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError, _imaging

from tunalab.data.buckets import LOG, OFFICIAL, Buckets, Size
from tunalab.data.documents import Reject
from tunalab.data.image_metadata import DAMAGED, split_metadata

# Named, because Pillow's other readers start programs (EPS) or are rarely what a data set means.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_STARTS = {
    "PNG": rb"\x89PNG\r\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8",
    "BMP": rb"BM.{4}\0{4}",
    "TIFF": rb"II\*\0|MM\0\*",
}
MAX_FILE_BYTES = 256 * 2**20
# Below the count at which Pillow itself warns, so that one limit decides, with our reason.
MAX_PIXELS = 64 * 2**20
MAX_ASPECT = 32

# Errors of the file system that speak of this one path. Others (too many open files, a dead disk) are not the
# sample's fault: counting them as rejects would make the order of documents depend on the machine.
_PATH_ERRNOS = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.EINVAL,
}

# What Pillow logs, and libtiff prints, about a damaged file is in the reason of its reject. On the
# terminal it would be lines for each such sample.
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(OSError, AttributeError):  # a Pillow without libtiff, or with one that cannot be reached
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

_BITS, _COLOURS, _WHITE_IS_ZERO = 258, 262, 0  # tags of a TIFF, and a value of the second

# EXIF's numbers of orientations that are not upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Path, image_size: int | Buckets) -> np.ndarray:
    """The image at ``path``: upright, on white, (H, W, 3) uint8, a square of side ``image_size`` or of the bucket it belongs to.

    It is resized to cover that size and the centre kept: nothing is distorted or padded. A number
    stands for the square of a run without buckets, with the bounds of the settings' defaults.

    Raises:
        Reject: the file is missing, unreadable, damaged, too large or of an absurd shape.
        Unfit: too much of it would be cropped, or it is too small.
    """
    return decode_image(_read_bytes(path), str(path), image_size)


def decode_image(data: bytes, where: str, image_size: int | Buckets) -> np.ndarray:
    """The image that an encoded file's bytes hold, as :func:`read_image` gives it; ``where`` names it in reasons.

    Raises:
        Reject: the bytes are damaged, too many or of an absurd shape.
        Unfit: too much of the image would be cropped, or it is too small.
    """
    if len(data) > MAX_FILE_BYTES:
        raise Reject(f"{where}: image file of more than {MAX_FILE_BYTES // 2**20} MiB")
    buckets = Buckets.square(image_size) if isinstance(image_size, int) else image_size
    with warnings.catch_warnings():
        # Pillow warns about odd metadata and about sizes that are judged below; either would be printed per sample.
        warnings.simplefilter("ignore")
        try:
            plain, orientation = split_metadata(data)
            with Image.open(io.BytesIO(plain), formats=FORMATS) as image:
                stored = image.size
                _check_shape(where, stored)
                # JPEG only: decode at a fraction of the size, still at least twice what may be asked for. Official code does not.
                if buckets.rule != OFFICIAL:
                    image.draft("RGB", (2 * buckets.longest, 2 * buckets.longest))
                drafted = "" if image.size == stored else f" ({stored[0]}x{stored[1]}, decoded smaller)"
                image.load()
                rgb = _to_rgb(where, image, _png_depth(plain))
            # Not ImageOps.exif_transpose: it writes the metadata anew, and stops at tags of unexpected types.
            upright = rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
            size = buckets.choose(where + drafted, upright.height, upright.width)
            return cover(upright, size, buckets.rule)
        except DAMAGED as error:
            detail = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):  # its own text shows only the address of the buffer
                kind = next((name for name, start in _STARTS.items() if re.match(start, data, re.DOTALL)), "")
                detail = f"a {kind} that is damaged, or of a rare kind" if kind else f"not one of {', '.join(FORMATS)}"
            raise Reject(f"{where}: unreadable image: {detail}") from error


def cover(image: Image.Image, size: Size, rule: str = LOG) -> np.ndarray:
    """The centre of an RGB image in the shape of ``size`` (height, width), resized to it: (height, width, 3) uint8.

    ``rule``: of ``data.bucket_rule``. Official: resized whole, rounded to whole pixels, then cropped.
    """
    height, width = size
    if rule == OFFICIAL:
        scale = max(width / image.width, height / image.height)
        whole = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (whole.width - width) // 2, (whole.height - height) // 2
        return np.array(whole.crop((left, top, left + width, top + height)))
    kept_width = max(1, min(image.width, image.height * width // height))
    kept_height = max(1, min(image.height, image.width * height // width))
    left, top = (image.width - kept_width) // 2, (image.height - kept_height) // 2
    return _resized(image, size, (left, top, left + kept_width, top + kept_height))


def stretch(image: Image.Image, size: Size, rule: str = LOG) -> np.ndarray:
    """All of an RGB image, resized to ``size`` (height, width) whatever its shape: (height, width, 3) uint8."""
    if rule == OFFICIAL:
        return np.array(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return _resized(image, size, (0, 0, image.width, image.height))


def _resized(image: Image.Image, size: Size, box: tuple[int, int, int, int]) -> np.ndarray:
    """Whole-number ratios average the pixels of each cell. Others use the triangle filter, which Pillow widens
    with the ratio: a box there would weigh neighbouring pixels unevenly.
    """
    height, width = size
    left, top, right, bottom = box
    whole = (right - left) % width == 0 and (bottom - top) % height == 0
    resample = Image.Resampling.BOX if whole else Image.Resampling.BILINEAR
    return np.array(image.resize((width, height), resample, box=box))


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():  # also a pipe, which would wait for ever
            raise Reject(f"{path}: no such image file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Reject(f"{path}: image file of more than {MAX_FILE_BYTES // 2**20} MiB")
        return path.read_bytes()
    except OSError as error:
        if error.errno not in _PATH_ERRNOS:
            raise
        raise Reject(f"{path}: cannot be read: {error.strerror}") from error


def _check_shape(where: str, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise Reject(f"{where}: {width}x{height} has more than {MAX_PIXELS} pixels")
    if max(size) > MAX_ASPECT * min(size):
        raise Reject(f"{where}: {width}x{height} is longer than {MAX_ASPECT} times its short side")


def _png_depth(data: bytes) -> int:
    """Bits of a sample in a PNG, 8 in any other file."""
    return data[24] if data.startswith(b"\x89PNG") and len(data) > 24 else 8


def _to_rgb(where: str, image: Image.Image, depth: int) -> Image.Image:
    """On white. ``depth``: bits of a sample as stored, the scale of a PNG's transparent value."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        # Pillow clips at 255 on conversion, which would turn most of such an image white.
        grey = np.asarray(image)
        tags = getattr(image, "tag_v2", {})  # of a TIFF, which may have 12 bits, and 0 for white
        shown = grey >> (tags.get(_BITS, (16,))[0] - 8)
        if tags.get(_COLOURS) == _WHITE_IS_ZERO:
            shown = 255 - shown
        if isinstance(transparent, int):
            shown = np.where(grey == transparent, 255, shown)
        return Image.fromarray(shown.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise Reject(f"{where}: pixels of mode {image.mode} have no known range")
    if image.mode == "L" and depth < 8 and isinstance(transparent, int):
        image.info["transparency"] = transparent * 255 // (2**depth - 1)  # as Pillow scaled the pixels
    if image.mode == "RGB" and depth == 16 and isinstance(transparent, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # a fourth byte that nobody filled: screenshots are stored so
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
