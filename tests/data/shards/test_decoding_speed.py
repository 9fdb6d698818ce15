"""512-px pictures of a tar shard per CPU second, beside webdataset's own reader in the same process."""

import io
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tunalab.data.sources import build_source
from tunalab.settings.schema import DataConfig, WebDatasetConfig

pytestmark = pytest.mark.slow


def shard(path: Path, pictures: int) -> None:
    """JPEGs as photographs compress: smooth, with a little noise."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(pictures):
            smooth = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((512, 512), Image.Resampling.BICUBIC)
            noisy = np.clip(np.asarray(smooth) + rng.normal(0, 6, (512, 512, 1)), 0, 255).astype(np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(noisy).save(encoded, "JPEG", quality=90)
            for ending, content in (("jpg", encoded.getvalue()), ("txt", b"a picture of something")):
                member = tarfile.TarInfo(f"{number:05d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def resized(image: Image.Image) -> np.ndarray:
    """As users of webdataset bring a picture to a square of 512 px."""
    rgb = image.convert("RGB")
    scale = 512 / min(rgb.size)
    larger = rgb.resize((max(512, round(rgb.width * scale)), max(512, round(rgb.height * scale))), Image.Resampling.BICUBIC)
    left, top = (larger.width - 512) // 2, (larger.height - 512) // 2
    return np.array(larger.crop((left, top, left + 512, top + 512)))


def test_a_512_px_picture_costs_no_more_than_with_plain_webdataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    webdataset = pytest.importorskip("webdataset")
    shard(tmp_path / "a.tar", 60)
    data = DataConfig(image_size=512, webdataset={"web": WebDatasetConfig(urls=[str(tmp_path / "a.tar")])})
    corpus = build_source("webdataset/web", data, 0)

    def ours() -> Iterator[Any]:
        for index in range(10**6):
            yield corpus.document(index)

    def theirs(decode: str) -> Iterator[Any]:
        while True:
            samples = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode(decode).to_tuple("jpg", "txt")
            yield from samples if decode == "rgb8" else samples.map_tuple(resized, str)

    rates: dict[str, list[float]] = {"ours": [], "decoded": [], "decoded and resized": []}
    readers = dict(zip(rates, (ours(), theirs("rgb8"), theirs("pil")), strict=True))
    for reader in readers.values():
        next(reader)
    for _ in range(13):  # in turns, as other processes slow all of them
        for name, reader in readers.items():
            began = time.process_time()
            for _ in range(30):
                next(reader)
            rates[name].append(30 / (time.process_time() - began))
    ratios = {name: median(a / b for a, b in zip(rates["ours"], rates[name], strict=True)) for name in rates}
    with capsys.disabled():
        print({name: f"{ratio:.2f}" for name, ratio in ratios.items()}, "ours per CPU second over webdataset's")
    # It measured .93 to .97 and 1.08 to 1.25; the bounds leave room for other machines, not for the two copies that were there.
    assert ratios["decoded"] > 0.7 and ratios["decoded and resized"] > 0.85, ratios
