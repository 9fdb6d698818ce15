"""Metadata of sound pictures, damaged, odd or huge: the picture is read, upright.

Files damaged anywhere are read or rejected.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import PngImagePlugin

from tunalab.data.documents import Reject
from tunalab.data.images import decode_image, split_metadata

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
PICTURE = PillowImage.fromarray(PIXELS)
# As shown: stored pixels turned by what each orientation says.
SHOWN: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}
ORIENTATION = (0x0112, 3, struct.pack("<H", 6))
FORMATS = ["PNG", "JPEG", "WEBP"]


def encoded(format: str, image: PillowImage.Image = PICTURE, **options: object) -> bytes:
    buffer = io.BytesIO()
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    image.save(buffer, format, **{**lossless.get(format, {}), **options})
    return buffer.getvalue()


def exif(*entries: tuple[int, int, bytes]) -> bytes:
    """A block of EXIF with entries (tag, type, value as stored); sub-directories follow none."""
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
    head, body = b"II*\0" + struct.pack("<IH", 8, len(entries)), b""
    start = 8 + 2 + 12 * len(entries) + 4
    for tag, kind, value in sorted(entries):
        count = len(value) // sizes.get(kind, 1)
        stored = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", start + len(body))
        body += value + b"\0" * (len(value) % 2) if len(value) > 4 else b""
        head += struct.pack("<HHI", tag, kind, count) + stored
    return head + bytes(4) + body


def chunk(kind: bytes, body: bytes, damage: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ damage)


def with_chunks(*chunks: bytes, image: PillowImage.Image = PICTURE) -> bytes:
    """A PNG with more chunks before its pixels."""
    data = encoded("PNG", image)
    return data[:33] + b"".join(chunks) + data[33:]


def read(data: bytes, side: int = 32) -> np.ndarray:
    return decode_image(data, "a", side)


def near(got: np.ndarray, expected: np.ndarray, format: str) -> bool:
    """Whether they are equal but for a JPEG's rounding: any other orientation differs by some 80 on average."""
    return bool(np.abs(got.astype(int) - expected).mean() < (20 if format == "JPEG" else 1e-9))


@pytest.mark.parametrize("format", [*FORMATS, "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_applied(format: str, orientation: int) -> None:
    block = PillowImage.Exif()
    block[0x0112] = orientation
    got = read(encoded(format, exif=block))
    assert near(got, SHOWN.get(orientation, SHOWN[1])(PIXELS), format)


# Tags that readers look at, of every type that EXIF knows, and of one that it does not.
ODD = [
    (tag, kind, value)
    for tag in (0x010F, 0x011A, 0x0128, 0x013B, 0x8769, 0x8825, 0x9286)
    for kind, value in (
        *((1, b"\1\2"), (2, b"words\0"), (2, b"\xff\xfe"), (3, b"\1\0"), (4, b"\xff\xff\xff\xff"), (5, b"\1\0\0\0\0\0\0\0")),
        *(
            (5, b""),
            (7, b"\0\1\2\3"),
            (9, b"\xff\xff\xff\xff"),
            (10, bytes(8)),
            (11, b"\0\0\xc0\x7f"),
            (12, b"\xff" * 8),
            (99, b"??"),
        ),
    )
]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("entry", ODD, ids=lambda entry: f"{entry[0]:x}-{entry[1]}")
def test_tags_of_unexpected_types_beside_an_orientation(format: str, entry: tuple[int, int, bytes]) -> None:
    block = b"Exif\0\0" + exif(ORIENTATION, entry)
    assert near(read(encoded(format, exif=block)), SHOWN[6](PIXELS), format)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "entries",
    [
        [(1, 5, b"\1\0\0\0\1\0\0\0"), (2, 2, b"48.2\0")],
        [(1, 2, b""), (2, 7, b"\0" * 3), (3, 3, b"\1\0"), (4, 2, b"16 E\0")],
        [(29, 3, b"\1\0"), (7, 2, b"noon\0")],
    ],
)
def test_places_as_text_or_numbers(format: str, entries: list[tuple[int, int, bytes]]) -> None:
    """A directory of GPS behind the first one, whose fields are of unexpected types."""
    first = exif(ORIENTATION, (0x8825, 4, bytes(4)))
    gps = exif(*entries)[8:]
    at = first.index(struct.pack("<HHI", 0x8825, 4, 1)) + 8
    block = first[:at] + struct.pack("<I", len(first)) + first[at + 4 :] + gps
    assert near(read(encoded(format, exif=b"Exif\0\0" + block)), SHOWN[6](PIXELS), format)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((3, b"\6\0"), 6),
        ((4, b"\6\0\0\0"), 6),
        ((1, b"\6"), 6),
        ((5, b"\6\0\0\0\1\0\0\0"), 6),
        ((5, bytes(8)), 1),
        ((2, b"6\0"), 1),
        ((3, b"\6\0\6\0"), 6),
        ((3, b"\x09\0"), 1),
        ((3, b"\0\0"), 1),
        ((12, b"\xff" * 8), 1),
        ((3, b""), 1),
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_an_orientation_of_any_type(format: str, value: tuple[int, bytes], expected: int) -> None:
    block = b"Exif\0\0" + exif((0x0112, *value))
    assert near(read(encoded(format, exif=block)), SHOWN[expected](PIXELS), format)


GARBAGE = [
    b"",
    b"\0",
    b"no exif",
    b"II*\0",
    b"II*\0\xff\xff\xff\xff",
    b"MM\0*\0\0\0\x08\xff\xff",
    exif(ORIENTATION)[:11],
    b"\xff" * 300,
]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("block", GARBAGE, ids=range(len(GARBAGE)))
def test_a_damaged_block_is_as_none(format: str, block: bytes) -> None:
    if format == "PNG":
        data = with_chunks(chunk(b"eXIf", block))
    elif format == "JPEG":
        plain = encoded("JPEG")
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(block)) + b"Exif\0\0" + block + plain[2:]
    else:
        data = encoded("WEBP", exif=block or b"\0")
    assert near(read(data), PIXELS, format)


TEXT_MEMORY = 2**20  # Pillow's limit of all texts is 64 times as high, which would only make the test slow
TEXT_BOMB = zlib.compress(bytes(2**26))  # Pillow unpacks at most 2^20
ODD_CHUNKS = {
    "eXIf with a wrong sum": chunk(b"eXIf", exif(ORIENTATION), damage=1),
    "tEXt with a wrong sum": chunk(b"tEXt", b"a\0b", damage=1),
    "tEXt without a name": chunk(b"tEXt", b"\0"),
    "tEXt over the limit": chunk(b"tEXt", b"a\0" + b"b" * (TEXT_MEMORY + 1)),
    "many zTXt": b"".join(chunk(b"zTXt", b"%d\0\0" % n + zlib.compress(bytes(2**20 - 1))) for n in range(2)),
    "zTXt over the limit": chunk(b"zTXt", b"a\0\0" + TEXT_BOMB),
    "zTXt of an unknown method": chunk(b"zTXt", b"a\0\7abc"),
    "zTXt that is none": chunk(b"zTXt", b"a\0\0abc"),
    "iTXt over the limit": chunk(b"iTXt", b"a\0\1\0\0\0" + TEXT_BOMB),
    "iTXt not UTF-8": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\xff\0\xff\0\xff\xfe"),
    "iTXt cut off": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1"),
    "XMP over the limit": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + TEXT_BOMB),
    "iCCP over the limit": chunk(b"iCCP", b"a\0\0" + TEXT_BOMB),
    "iCCP of an unknown method": chunk(b"iCCP", b"a\0\7abc"),
    "iCCP cut off": chunk(b"iCCP", b"a"),
    "a profile that is no hex": chunk(b"tEXt", b"Raw profile type exif\0\n\n\nzz"),
    "gAMA cut off": chunk(b"gAMA", b"\0"),
    "cHRM cut off": chunk(b"cHRM", b"\0"),
    "sRGB cut off": chunk(b"sRGB", b""),
    "pHYs cut off": chunk(b"pHYs", b"\0"),
    "pHYs with a wrong sum": chunk(b"pHYs", bytes(9), damage=1),
    "acTL cut off": chunk(b"acTL", b"\0"),
    "fcTL of nothing": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", b"\xff" * 26),
    "an unknown chunk with a wrong sum": chunk(b"prVT", b"abc", damage=1),
}


@pytest.mark.parametrize("name", ODD_CHUNKS)
def test_odd_chunks_of_a_png(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the pixels and behind them, and beside an orientation, which holds."""
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", TEXT_MEMORY)
    odd = ODD_CHUNKS[name]
    assert (read(with_chunks(odd)) == PIXELS).all()
    plain = encoded("PNG")
    assert (read(plain[:-12] + odd + plain[-12:]) == PIXELS).all()
    assert (read(with_chunks(odd, chunk(b"eXIf", exif(ORIENTATION)))) == SHOWN[6](PIXELS)).all()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", [b"exif", b"APP1"])  # ImageMagick's, by its age
def test_orientations_in_texts_of_a_png(packed: bool, name: bytes) -> None:
    xmp = b'<x tiff:Orientation="6"/>'
    profile = b"\nexif\n%8d\n" % len(exif(ORIENTATION)) + exif(ORIENTATION).hex().encode() + b"\n"
    body = b"\1\0\0\0" + zlib.compress(xmp) if packed else b"\0\0\0\0" + xmp
    assert (read(with_chunks(chunk(b"iTXt", b"XML:com.adobe.xmp\0" + body))) == SHOWN[6](PIXELS)).all()
    kind, text = (b"zTXt", b"\0" + zlib.compress(profile)) if packed else (b"tEXt", profile)
    assert (read(with_chunks(chunk(kind, b"Raw profile type " + name + b"\0" + text))) == SHOWN[6](PIXELS)).all()


@pytest.mark.parametrize(
    "xmp", ["<x tiff:Orientation='6'/>", '<x tiff:Orientation = "6"/>', "<tiff:Orientation> 6</tiff:Orientation>"]
)
@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_orientations_as_writers_of_xmp_quote_them(format: str, xmp: str) -> None:
    assert near(read(encoded(format, xmp=xmp.encode())), SHOWN[6](PIXELS), format)


@pytest.mark.parametrize("filling", [1, 2, 7])
def test_filling_before_the_blocks_of_a_jpeg(filling: int) -> None:
    data = encoded("JPEG", exif=b"Exif\0\0" + exif(ORIENTATION))
    at = data.index(b"\xff\xe1")
    assert near(read(data[:at] + b"\xff" * filling + data[at:]), SHOWN[6](PIXELS), "JPEG")


JPEG_BLOCKS = {
    "XMP": (0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="1"\xff\xff'),
    "ICC": (0xE2, b"ICC_PROFILE\0"),
    "MPF": (0xE2, b"MPF\0" + b"\xff" * 30),
    "MPF of no pages": (0xE2, b"MPF\0" + exif((0xB001, 4, b"\2\0\0\0"))),
    "Photoshop": (0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
    "Photoshop, cut off": (0xED, b"Photoshop 3.0\x008BIM\x03"),
    "comment": (0xFE, b"\xff" * 20),
}


@pytest.mark.parametrize("name", JPEG_BLOCKS)
def test_odd_blocks_of_a_jpeg(name: str) -> None:
    kind, body = JPEG_BLOCKS[name]
    plain = encoded("JPEG", exif=b"Exif\0\0" + exif(ORIENTATION))
    data = plain[:2] + b"\xff" + bytes([kind]) + struct.pack(">H", 2 + len(body)) + body + plain[2:]
    assert near(read(data), SHOWN[6](PIXELS), "JPEG")


@pytest.mark.parametrize("entry", [*ODD, (0x02BC, 3, b"\1\0"), (0x8773, 2, b"abc\0")], ids=lambda entry: f"{entry[0]:x}-{entry[1]}")
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_odd_tags_of_a_tiff(compression: str, entry: tuple[int, int, bytes]) -> None:
    """Its metadata stand among the tags that describe the pixels."""
    data = encoded("TIFF", compression=compression)
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    known = [data[at + 2 + 12 * number :][:12] for number in range(count)]
    known = [one for one in known if struct.unpack_from("<H", one)[0] not in (entry[0], 0x0112)]
    tag, kind, value = entry
    odd = [struct.pack("<HHI", tag, kind, max(1, len(value))) + value[:4].ljust(4, b"\0"), struct.pack("<HHII", 0x0112, 3, 1, 6)]
    directory = struct.pack("<H", len(known) + 2) + b"".join(sorted([*known, *odd], key=lambda one: struct.unpack("<H", one[:2])))
    data = data[:4] + struct.pack("<I", len(data)) + data[8:] + directory + bytes(4)
    assert (read(data) == SHOWN[6](PIXELS)).all()


def test_what_changes_pixels_stays() -> None:
    cmyk = encoded("JPEG", PICTURE.convert("CMYK"), exif=b"Exif\0\0" + exif(ORIENTATION))
    plain, orientation = split_metadata(cmyk)
    assert orientation == 6 and b"Exif" not in plain and b"Adobe" in plain
    palette = PICTURE.quantize(16)
    data = encoded("PNG", palette, transparency=3)
    assert b"PLTE" in split_metadata(data)[0] and b"tRNS" in split_metadata(data)[0]


def grey_png(depth: int, values: np.ndarray, transparent: int) -> bytes:
    """Rows of grey values of ``depth`` bits, one of them transparent."""
    height, width = values.shape
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    else:
        rows = []
        for row in values:
            bits = "".join(f"{value:0{depth}b}" for value in row.tolist())
            rows.append(int(bits, 2).to_bytes(len(bits) // 8, "big"))
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)),
            chunk(b"tRNS", struct.pack(">H", transparent)),
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b""),
        )
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_any_depth_is_white(depth: int) -> None:
    count = 2 ** min(depth, 4)
    scale = (2**depth - 1) // (count - 1)  # from black to white in the steps there are
    values = np.arange(256).reshape(16, 16) % count * scale
    hidden = scale * (count // 2 - 1)
    got = read(grey_png(depth, values, hidden), 16)
    expected = np.where(values == hidden, 255, np.round(values * (255 / (2**depth - 1))))
    assert (got == expected[:, :, None]).all()


def test_the_transparent_colour_of_16_bits_is_white() -> None:
    values = np.zeros((16, 16, 3), ">u2")
    values[:8] = (0x1234, 0x5600, 0x789A)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    hidden = chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0x5600, 0x789A))
    got = read(b"\x89PNG\r\n\x1a\n" + header + hidden + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""), 16)
    assert (got[:8] == 255).all() and (got[8:] == 0).all()


def sources() -> dict[str, bytes]:
    """Pictures of every format and of the ways in which each is stored, with metadata."""
    block = PillowImage.Exif()
    block[0x0112], block[0x010F], block[0x011A], block[0x0128] = 6, "maker", 72.0, 2
    block.get_ifd(0x8825)[1] = "N"
    block.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    texts = PngImagePlugin.PngInfo()
    texts.add_text("a", "b" * 50)
    texts.add_text("c", "d" * 300, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    small = PICTURE.resize((24, 16))
    grey16 = PillowImage.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257)

    def animated(format: str) -> bytes:
        return encoded(format, save_all=True, append_images=[PICTURE.rotate(90)])

    found = {
        "png": encoded("PNG", exif=block, pnginfo=texts, icc_profile=b"x" * 200),
        "png, palette": encoded("PNG", PICTURE.quantize(16), transparency=3),
        "png, 16 bits": encoded("PNG", grey16),
        "png, animated": animated("PNG"),
        "jpg": encoded("JPEG", exif=block, icc_profile=b"x" * 200, comment=b"hello"),
        "jpg, progressive": encoded("JPEG", progressive=True, exif=block),
        "jpg, cmyk": encoded("JPEG", PICTURE.convert("CMYK")),
        "jpg, pages": animated("MPO"),
        "webp": encoded("WEBP", exif=block, icc_profile=b"x" * 200, xmp=b"<x/>"),
        "webp, lossy": encoded("WEBP", lossless=False),
        "webp, animated": animated("WEBP"),
        "gif": encoded("GIF", comment=b"hi"),
        "gif, animated": animated("GIF"),
        "bmp": encoded("BMP", small),
        "bmp, palette": encoded("BMP", small.quantize(16)),
        "tif, 1 bit": encoded("TIFF", PICTURE.convert("1"), compression="group4"),
        "tif, palette": encoded("TIFF", PICTURE.quantize(16)),
        "tif, 16 bits": encoded("TIFF", grey16),
        "tif, pages": animated("TIFF"),
        "tif, alpha": encoded("TIFF", PICTURE.convert("RGBA"), compression="tiff_lzw"),
    }
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        found[f"tif, {compression}"] = encoded("TIFF", compression=compression, exif=block)
    return found


def right_sums(data: bytes) -> bytes:
    """A damaged PNG whose check sums fit what it holds now: only so do its readers look into damaged chunks."""
    fixed, at = bytearray(data), 8
    while at + 12 <= len(fixed):
        end = at + 8 + struct.unpack_from(">I", fixed, at)[0]
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, numbers made extreme, parts lost, added or cut off; mostly near the ends."""
    wrong = bytearray(data)
    way = rng.choice(("byte",) * 6 + ("number",) * 2 + ("lost", "added", "cut"))
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        if not wrong:
            break
        near_start, near_end = range(min(400, len(wrong))), range(max(0, len(wrong) - 400), len(wrong))
        at = rng.choice(rng.choice((near_start, near_end, range(len(wrong)))))
        if way == "byte":
            wrong[at] = rng.choice((rng.randrange(256), 0, 1, 128, 255))
        elif way == "number":
            number = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", rng.randbytes(2) + bytes(2)))
            wrong[at : at + 4] = number[: len(wrong) - at]
        elif way == "lost":
            del wrong[at : at + rng.randrange(1, 30)]
        elif way == "added":
            wrong[at:at] = rng.randbytes(rng.randrange(1, 30))
        else:
            del wrong[max(20, at) :]
    fixed = data.startswith(b"\x89PNG") and rng.random() < 0.7
    return right_sums(bytes(wrong)) if fixed else bytes(wrong)


def mutations(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    rng, known = random.Random(seed), sources()
    for number in range(count):
        name = list(known)[number % len(known)]
        yield name, damaged(known[name], rng)


def check_mutations(count: int, seed: int, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    """Pixels or one line, whatever is damaged; nothing printed, nothing warned of."""
    read_whole = 0
    for name, data in mutations(count, seed):
        try:
            assert read(data).shape == (32, 32, 3), name
            read_whole += 1
        except Reject as reject:
            assert str(reject).startswith("a: ") and "\n" not in str(reject), name
    assert 0.1 * count < read_whole < 0.9 * count, "damage must reach the pixels of some and spare others"
    assert capfd.readouterr() == ("", "") and not recwarn.list


def test_damaged_anywhere(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    check_mutations(600, 0, capfd, recwarn)


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(1, 6))
def test_damaged_anywhere_many_times(seed: int, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    check_mutations(2000, seed, capfd, recwarn)


def damaged_metadata(count: int, seed: int) -> None:
    """Whatever a block of EXIF, or a chunk of a PNG, holds: the picture itself is whole, so it is read."""
    rng = random.Random(seed)
    whole = exif(ORIENTATION, *ODD[:: len(ODD) // 6])
    for number in range(count):
        block = damaged(whole, rng)[:60_000]
        if number % 2:
            kind = rng.choice((b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"acTL", b"fcTL"))
            data, format = with_chunks(chunk(kind, block[rng.randrange(20) :])), "PNG"
        else:
            plain = encoded("JPEG")
            data, format = plain[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(block)) + b"Exif\0\0" + block + plain[2:], "JPEG"
        got = read(data)
        assert any(near(got, turned(PIXELS), format) for turned in SHOWN.values())


def test_damaged_metadata() -> None:
    damaged_metadata(300, 0)


@pytest.mark.fuzz
def test_damaged_metadata_many_times() -> None:
    damaged_metadata(10_000, 1)
