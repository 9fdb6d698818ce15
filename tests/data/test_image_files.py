"""Image files: what they become, and every way in which they are refused."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from tunalab.data import images as image_files
from tunalab.data.buckets import Buckets
from tunalab.data.documents import Reject, Unfit
from tunalab.data.images import decode_image, read_image

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray | PillowImage.Image, **options: object) -> Path:
    image = pixels if isinstance(pixels, PillowImage.Image) else PillowImage.fromarray(pixels)
    image.save(path, **options)
    return path


def square(side: int) -> Buckets:
    """Whatever has to be cropped or enlarged."""
    return Buckets.square(side).unbounded()


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 100) + b"IDAT"


def test_square_image_of_the_right_size_is_unchanged(tmp_path: Path) -> None:
    pixels = NOISE[:32, :32]
    got = read_image(save(tmp_path / "a.png", pixels), 32)
    assert got.dtype == np.uint8 and got.flags.writeable and (got == pixels).all()


@pytest.mark.parametrize("size", [8, 32, 100])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (7, 200), (33, 33)])
def test_any_size_becomes_a_square(tmp_path: Path, shape: tuple[int, int], size: int) -> None:
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert read_image(save(tmp_path / "a.png", pixels), square(size)).shape == (size, size, 3)


def test_centre_is_cropped_without_distortion_or_padding(tmp_path: Path) -> None:
    pixels = np.full((32, 96, 3), 255, np.uint8)
    pixels[:, :32], pixels[:, 64:] = (255, 0, 0), (0, 0, 255)
    got = read_image(save(tmp_path / "a.png", pixels), square(16))
    assert (got == 255).all()  # the white middle third alone: no red, no blue, no black
    got = read_image(save(tmp_path / "b.png", pixels.transpose(1, 0, 2)), square(16))
    assert (got == 255).all()


@pytest.mark.parametrize("side", [40, 100])
def test_a_circle_stays_round(tmp_path: Path, side: int) -> None:
    y, x = np.mgrid[:side, : 2 * side]
    disc = ((y - side / 2 + 0.5) ** 2 + (x - side + 0.5) ** 2 < (side / 3) ** 2) * np.uint8(255)
    got = read_image(save(tmp_path / "a.png", disc), 32)[:, :, 0] > 127
    height, width = got.any(1).sum(), got.any(0).sum()
    assert height == width and abs(width - 32 * 2 / 3) <= 2


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff"])
def test_formats(tmp_path: Path, name: str) -> None:
    got = read_image(save(tmp_path / name, np.full((64, 64, 3), (200, 100, 50), np.uint8)), 16)
    assert np.abs(got.astype(int) - (200, 100, 50)).max() <= 4


def test_large_jpeg_is_close_to_its_average(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 1024).astype(np.uint8)
    pixels = np.repeat(np.broadcast_to(ramp, (1024, 1024))[..., None], 3, axis=2)
    got = read_image(save(tmp_path / "a.jpg", np.ascontiguousarray(pixels), quality=95), 32)
    expected = pixels.reshape(32, 32, 32, 32, 3).mean((1, 3))
    assert np.abs(got - expected).max() <= 3


def test_jpeg_is_not_decoded_below_the_size_asked_for(tmp_path: Path) -> None:
    cells = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)  # a chequerboard of 8 pixels a cell
    got = read_image(save(tmp_path / "a.jpg", cells.repeat(8, 0).repeat(8, 1), quality=95), 64)[:, :, 0]
    assert np.abs(got.astype(int) - cells.repeat(2, 0).repeat(2, 1)).max() <= 3


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:8] = 255  # white at the top of the stored image
    exif = PillowImage.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    got = read_image(save(tmp_path / "a.png", pixels, exif=exif), 32)
    assert (got == np.rot90(pixels, -1)).all() and got[:, -8:].min() == 255


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:8] = (10, 20, 30, 255)
    got = read_image(save(tmp_path / "a.png", rgba), 16)
    assert (got[:8] == (10, 20, 30)).all() and (got[8:] == 255).all()


def test_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    image = PillowImage.fromarray(np.repeat([[0], [1]], 16, axis=1).astype(np.uint8).repeat(8, axis=0), mode="P")
    image.putpalette([10, 20, 30, 0, 0, 0])
    got = read_image(save(tmp_path / "a.png", image, transparency=1), 16)
    assert (got[:8] == (10, 20, 30)).all() and (got[8:] == 255).all()


@pytest.mark.parametrize("mode", ["L", "LA", "1", "CMYK"])
def test_modes(tmp_path: Path, mode: str) -> None:
    name = "a.jpg" if mode == "CMYK" else "a.png"
    image = PillowImage.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    assert read_image(save(tmp_path / name, image), 16).min() >= 250


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    got = read_image(save(tmp_path / "a.png", grey), 16)
    assert (got[:, :, 0] == np.arange(256).reshape(16, 16)).all()


def test_unknown_range_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Reject, match="mode F"):
        read_image(save(tmp_path / "a.tiff", NOISE[:, :, 0].astype(np.float32)), 16)


def test_missing_folder_empty_text_and_too_long(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image at all")
    for name, reason in {
        "missing.png": "no such image file",
        "": "no such image file",
        "empty.png": "not one of PNG",
        "text.png": "not one of PNG",
        "nul\0.png": "no such image file",
        "x" * 5000: "cannot be read",
    }.items():
        with pytest.raises(Reject, match=reason):
            read_image(tmp_path / name, 16)


def test_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(Reject, match="no such image file"):
        read_image(tmp_path / "pipe.png", 16)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff"])
def test_truncated(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, NOISE)
    data = path.read_bytes()
    for share in (0.1, 0.5, 0.8):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(Reject, match=name):
            read_image(path, 16)


def test_flipped_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rejected = 0
    for name in ("a.png", "a.jpg", "a.gif", "a.bmp", "a.webp"):
        data = np.frombuffer(save(tmp_path / name, NOISE).read_bytes(), np.uint8)
        for _ in range(100):
            damaged = data.copy()
            damaged[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
            (tmp_path / name).write_bytes(damaged.tobytes())
            try:
                assert read_image(tmp_path / name, 16).shape == (16, 16, 3)
            except Reject:
                rejected += 1
    assert rejected > 50


def test_programs_are_not_started(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    PillowImage.fromarray(NOISE).save(buffer, "EPS")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    with pytest.raises(Reject, match="not one of"):
        read_image(tmp_path / "a.png", 16)


def test_absurd_shapes(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "a.png", np.zeros((10, 320, 3), np.uint8)), square(16)).shape == (16, 16, 3)
    for shape in ((10, 321), (321, 10)):
        with pytest.raises(Reject, match="longer than 32 times"):
            read_image(save(tmp_path / "b.png", np.zeros((*shape, 3), np.uint8)), square(16))


def test_a_square_has_the_bounds_of_the_settings(tmp_path: Path) -> None:
    """Half of a picture is left, and no pixel becomes more than two by two: unless no bounds are asked for."""
    for shape, expected in {
        (32, 64): None,
        (32, 65): "65x32 would lose 50.8% to the nearest size (32 high, 32 wide), more than 50.0% (data.max_crop)",
        (32, 1024): "1024x32 would lose 96.9% to",
        (65, 32): "32x65 would lose",
        (16, 16): None,
        (
            15,
            16,
        ): "16x15 would be enlarged 2.13 times for the nearest size (32 high, 32 wide), more than 2 times (data.max_upscale)",
        (1, 1): "1x1 would be enlarged 32 times",
    }.items():
        path = save(tmp_path / "a.png", np.zeros((*shape, 3), np.uint8))
        assert read_image(path, square(32)).shape == (32, 32, 3)
        if expected is None:
            assert read_image(path, 32).shape == (32, 32, 3)
            continue
        with pytest.raises(Unfit) as caught:
            read_image(path, 32)
        assert str(caught.value).startswith(f"{path}: {expected}")
    with pytest.raises(Unfit, match=r"a.jpg \(1600x400, decoded smaller\): \d+x\d+ would lose 75.0%"):
        read_image(save(tmp_path / "a.jpg", np.zeros((400, 1600, 3), np.uint8)), 32)


@pytest.mark.parametrize("side", [9_000, 20_000, 2**31 - 1])
def test_bombs_are_not_decoded(tmp_path: Path, side: int) -> None:
    # 9,000 is judged by our limit, the others by Pillow's; none of these files has a single pixel.
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    with pytest.raises(Reject, match="pixels|decompression bomb"):
        read_image(tmp_path / "a.png", 16)


def test_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", NOISE)
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", path.stat().st_size)
    read_image(path, 16)
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(Reject, match="more than"):
        read_image(path, 16)


def test_faults_of_the_machine_are_not_rejects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", NOISE)

    def too_many_open_files(self: Path) -> bytes:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", too_many_open_files)
    with pytest.raises(OSError, match="Too many open files"):
        read_image(path, 16)


def grey_tiff(bits: int, white: int, values: np.ndarray) -> bytes:
    """Rows of 12 bits are packed; ``white``: the tag that says which end of the numbers is white (0: the low one)."""
    height, width = values.shape
    bitten = "".join(f"{value:0{bits}b}" for value in values.ravel().tolist())
    pixels = values.astype("<u2").tobytes() if bits == 16 else int(bitten, 2).to_bytes(len(bitten) // 8, "big")
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, white), (273, 8), (277, 1), (278, height), (279, len(pixels))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + bytes(4)


@pytest.mark.parametrize(("bits", "white"), [(12, 1), (16, 0), (16, 1)])
def test_grey_tiffs_of_more_than_8_bits(bits: int, white: int) -> None:
    grey = np.arange(256).reshape(16, 16)
    stored = (grey if white else 255 - grey) << (bits - 8)
    assert (decode_image(grey_tiff(bits, white, stored), "a", 16) == grey[:, :, None]).all()


@pytest.mark.parametrize(("alpha", "expected"), [(0, (30, 20, 10)), (255, (30, 20, 10)), (None, (255, 255, 255))])
def test_the_fourth_byte_of_a_bmp(alpha: int | None, expected: tuple[int, int, int]) -> None:
    """One that nobody filled hides nothing; None: it was filled, for half of the picture."""
    pixels = np.full((16, 16, 4), (10, 20, 30, alpha or 0), np.uint8)
    pixels[8:, :, 3] = 255 if alpha is None else alpha
    header = struct.pack("<IiiHHIIiiII", 108, 16, 16, 1, 32, 3, pixels.nbytes, 0, 0, 0, 0)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    data = b"BM" + struct.pack("<IHHI", 122 + pixels.nbytes, 0, 0, 122) + header + masks + pixels.tobytes()
    got = decode_image(data, "a", 16)
    assert (got[8:] == expected).all() and (got[:8] == (30, 20, 10)).all()  # stored from the bottom up


def test_a_picture_of_a_rare_kind_is_not_said_to_be_none() -> None:
    with pytest.raises(Reject, match="a TIFF that is damaged, or of a rare kind"):
        decode_image(grey_tiff(12, 0, np.zeros((16, 16), int)), "a", 16)
    for data in (b"RIFF\1\0\0\0WAVEfmt ", b"BM is a text"):
        with pytest.raises(Reject, match="not one of PNG"):
            decode_image(data, "a", 16)
