"""Images of unknown origin, files or bytes -> square RGB arrays (image_HWC: height, width, 3 channels, uint8).

Only the orientation is of use. The rest (GPS, dates, profiles, comments) can be damaged, of
unexpected types or huge, and decoders that look at it refuse the picture or raise an error of
their own. Blocks that change pixels (palettes, transparency, Adobe's colour transform) stay.
WebP, GIF and BMP pass unchanged: their decoders never look inside such blocks.
"""

import contextlib
import ctypes
import errno
import io
import logging
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError, _imaging

from tunalab.data.buckets import LOG, OFFICIAL, Buckets, Size
from tunalab.data.documents import Reject
from tunalab.errors import one_line

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
_ON_THEIR_SIDE = (5, 6, 7, 8)


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
                drafted = None if image.size == stored else stored  # before loading, which turns a TIFF upright
                image.load()
                rgb = _to_rgb(where, image, _png_depth(plain))
            return _fitted(rgb, orientation, where, buckets, drafted)
        except DAMAGED as error:
            detail = one_line(error)
            if isinstance(error, UnidentifiedImageError):  # its own text shows only the address of the buffer
                kind = next((name for name, start in _STARTS.items() if re.match(start, data, re.DOTALL)), "")
                detail = f"a {kind} that is damaged, or of a rare kind" if kind else f"not one of {', '.join(FORMATS)}"
            raise Reject(f"{where}: unreadable image: {detail}") from error


def fit_image(image: Image.Image, where: str, buckets: Buckets) -> np.ndarray:
    """An image in memory as :func:`read_image` gives that of a file; ``where`` names it in reasons.

    Raises Reject, Unfit: as there.
    """
    _check_shape(where, image.size)
    try:
        return _fitted(_to_rgb(where, image, 8), image.getexif().get(_ORIENTATION, 1), where, buckets)
    except DAMAGED as error:  # a file that is read only now
        raise Reject(f"{where}: unreadable image: {' '.join(str(error).split()) or type(error).__name__}") from error


def _fitted(rgb: Image.Image, orientation: int, where: str, buckets: Buckets, drafted: Size | None = None) -> np.ndarray:
    """``drafted``: width and height of a picture that was decoded smaller, before it is turned upright."""
    # Not ImageOps.exif_transpose: it writes the metadata anew, and stops at tags of unexpected types.
    upright = rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
    stored = drafted if drafted is None or orientation in _ON_THEIR_SIDE else (drafted[1], drafted[0])
    return cover(upright, buckets.choose(where, upright.height, upright.width, stored), buckets.rule)


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
    if box == (0, 0, width, height) == (0, 0, *image.size):
        return np.array(image)
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
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# APNG's chunks go too: the picture is the default image, which any PNG reader shows.
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# JFIF and Adobe say in which colours a JPEG is stored.
_JPEG_PIXELS = (0xE0, 0xEE)
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_TIFF_PIXELS = frozenset(
    (
        *(256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320),
        *(322, 323, 324, 325, 332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532, 50674),
    )
)
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I"}  # types of a tag -> struct
_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>\s*)([0-9])")
# As ImageMagick writes them; an APP1 holds EXIF or XMP.
_RAW_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
# What Pillow raises on damaged bytes; it has no exception of its own for all of them.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    ArithmeticError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_MAX_TEXT = 2**20  # of a compressed text that could hold the orientation


def split_metadata(data: bytes) -> tuple[bytes, int]:
    """The file without its metadata, and the orientation (EXIF's 1 to 8) in which to show it.

    A TIFF keeps its orientation, because its decoder applies it: here that counts as 1. A file too
    damaged to be taken apart comes back as it is, for the decoder to judge.
    """
    try:
        if data.startswith(_PNG):
            return _split_png(data)
        if data.startswith(_JPEG):
            return _split_jpeg(data)
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _plain_tiff(data), 1
    except (struct.error, IndexError):
        return data, 1
    return data, _riff_orientation(data) if data.startswith(b"RIFF") else 1


def orientation_of(exif: bytes, xmp: bytes = b"") -> int:
    """What a block of EXIF says, else one of XMP; 1 where neither can be understood."""
    found: object = None
    try:
        exif_tags = Image.Exif()
        exif_tags.load(exif)
        found = exif_tags.get(_ORIENTATION)
    except DAMAGED:
        pass  # as if there were none
    if found is None and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    if isinstance(found, bytes) and len(found) == 1:  # of type BYTE
        found = found[0]
    return next((number for number in range(1, 9) if number == found), 1)


def _split_png(data: bytes) -> tuple[bytes, int]:
    kept, exif, profile, xmp = [_PNG], b"", b"", b""
    at = len(_PNG)
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind in _PNG_PIXELS:
            kept.append(data[at:end])
        elif kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            body = data[at + 8 : end - 4]
            if struct.pack(">I", zlib.crc32(kind + body)) == data[end - 4 : end]:
                exif = body if kind == b"eXIf" else exif
                name, _, text = body.partition(b"\0")
                if name in _RAW_PROFILES:
                    profile = _png_text(kind, text)
                elif name == b"XML:com.adobe.xmp":
                    xmp = _png_text(kind, text)
        at = end
        if kind == b"IEND":
            break
    raw = _raw_profile(profile)
    return b"".join(kept), orientation_of(exif or raw, xmp or raw)


def _png_text(kind: bytes, text: bytes) -> bytes:
    """A text without its own header; empty if it cannot be unpacked."""
    packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    body = text[1:] if kind == b"zTXt" else text[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else text
    try:
        return zlib.decompressobj().decompress(body, _MAX_TEXT) if packed else body
    except zlib.error:
        return b""


def _raw_profile(text: bytes) -> bytes:
    try:
        return bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:]))
    except ValueError:
        return b""


def _split_jpeg(data: bytes) -> tuple[bytes, int]:
    kept, exif, xmp = [data[:2]], b"", b""
    at = 2
    while True:
        if data[at] != 0xFF or data[at + 1] == 0x00:
            break  # no block: from here on as it is
        if data[at + 1] == 0xFF:  # filling before a block
            at += 1
            continue
        kind = data[at + 1]
        if kind in (_JPEG_SCAN, _JPEG_END):
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        body, block = data[at + 4 : at + 2 + length], data[at : at + 2 + length]
        if kind == 0xE1:
            if body.startswith(_EXIF):  # a long one stands in several blocks
                exif += body.removeprefix(_EXIF)
            xmp = body if body.startswith(_XMP) else xmp
        elif not (0xE0 <= kind <= 0xEF or kind == 0xFE) or kind in _JPEG_PIXELS:
            kept.append(block)
        at += 2 + length
    return b"".join([*kept, data[at:]]), orientation_of(exif, xmp)


def _plain_tiff(data: bytes) -> bytes:
    """With another directory at its end, which holds the tags of its pixels alone."""
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    entries = [data[at + 2 + 12 * number :][:12] for number in range(count)]
    kept = [entry for entry in entries if _of_pixels(entry, order)]
    filling = b"\0" * (len(data) % 2)
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)  # no further pages
    return data[:4] + struct.pack(f"{order}I", len(data) + len(filling)) + data[8:] + filling + directory


def _of_pixels(entry: bytes, order: str) -> bool:
    tag, kind, count = struct.unpack_from(f"{order}HHI", entry)
    if tag != _ORIENTATION:
        return tag in _TIFF_PIXELS
    if count != 1 or kind not in _TIFF_INTEGERS:
        return False
    (value,) = struct.unpack_from(order + _TIFF_INTEGERS[kind], entry, 8)
    return 1 <= value <= 8


def _riff_orientation(data: bytes) -> int:
    """Of a WebP, whose blocks stand side by side."""
    blocks: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind in (b"EXIF", b"XMP "):
            blocks[kind] = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return orientation_of(blocks.get(b"EXIF", b""), blocks.get(b"XMP ", b""))
