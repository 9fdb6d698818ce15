"""What an image file says besides its pixels, taken off before a decoder reads it.

Only the orientation is of use. The rest (GPS, dates, profiles, comments) can be damaged, of
unexpected types or huge, and decoders that look at it refuse the picture or raise an error of their
own. Blocks that change pixels (palettes, transparency, Adobe's colour transform) stay. WebP, GIF
and BMP pass unchanged: their decoders never look inside such blocks.
"""

import re
import struct
import zlib

from PIL import Image

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
        known = Image.Exif()
        known.load(exif)
        found = known.get(_ORIENTATION)
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
