"""Images of a benchmark are made once, whatever their sizes; what a model makes of a text does not hang on the layout."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import small_config

from tunalab.data.images import read_image
from tunalab.errors import UserError
from tunalab.inference.images import read_settings
from tunalab.inference.requests import GenerationRequest
from tunalab.interop.samples import Item, Picture, make_items
from tunalab.trained.model import Model

REQUEST = GenerationRequest(steps=1, guidance=1.5, sampler="euler")


@pytest.fixture
def model(tiny_model, tokenizer):
    config = small_config()
    config.data.image_size, config.data.buckets = 16, ["16x16", "16x24"]
    return Model(tiny_model("patch_embed"), tokenizer, config, {"run": "run", "weights": "raw"})


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def picture(path: Path, width: int) -> Picture:
    Image.fromarray(np.random.default_rng(width).integers(0, 256, (20, width, 3), dtype=np.uint8)).save(path)
    return Picture(path.name, partial(read_image, path))


def test_a_grid_holds_the_images_of_its_seeds(model, tmp_path):
    items = [Item("a.png", "a red ring", (0, 1, 2, 3)), Item("b/c.png", "a blue cross", (2,))]
    assert make_items(model, items, REQUEST, tmp_path / "grid", batch_tokens=30) == 0
    singles, _ = model.write_images(["a red ring", "a blue cross"], replace(REQUEST, n=4), tmp_path / "single")
    parts = [pixels(path) for path in singles]
    expected = np.vstack([np.hstack(parts[:2]), np.hstack(parts[2:4])])
    assert len({part.tobytes() for part in parts}) == 8
    assert np.abs(pixels(tmp_path / "grid/a.png") - expected).max() <= 1
    assert np.abs(pixels(tmp_path / "grid/b/c.png") - parts[6]).max() <= 1
    settings = read_settings(tmp_path / "grid/a.png")
    assert settings is not None and settings["seed"] == [0, 1, 2, 3] and settings["size"] == "16x16"


def test_what_is_there_is_kept_and_what_is_another_is_one_line(model, tmp_path, monkeypatch):
    beside = []
    items = [Item(f"{n}.png", f"text {n}", (0,), beside=beside.append) for n in range(3)]
    make_items(model, items[:2], REQUEST, tmp_path)
    assert beside == [tmp_path] * 2
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert make_items(model, items, REQUEST, tmp_path) == 2
    assert {path: path.read_bytes() for path in before} == before and (tmp_path / "2.png").exists()
    monkeypatch.setattr("tunalab.interop.samples.save_image", None)
    new = [Item("new.png", "new", (0,)), *items]
    with pytest.raises(UserError, match="0.png is there, made otherwise .steps 1 there, 2 now.: choose another folder"):
        make_items(model, new, replace(REQUEST, steps=2), tmp_path)
    assert not (tmp_path / "new.png").exists(), "nothing is made before a mistake is told"


def test_edits_have_the_size_of_their_picture(model, tmp_path):
    pictures = [picture(tmp_path / f"{width}.png", width) for width in (20, 30, 21)]
    items = [Item(f"{n}.png", "make it red", (0,), one) for n, one in enumerate(pictures)]
    out = tmp_path / "out"
    assert make_items(model, items, REQUEST, out) == 0
    assert [pixels(out / f"{n}.png").shape[:2] for n in range(3)] == [(16, 16), (16, 24), (16, 16)]
    assert (pixels(out / "0.png") != pixels(out / "2.png")).any(), "edits of different pictures"
    (out / "2.png").unlink()
    assert make_items(model, items, REQUEST, out) == 2
    (tmp_path / "30.png").write_bytes(b"")
    (out / "0.png").unlink()
    with pytest.raises(UserError, match="30.png: unreadable image"):
        make_items(model, items, REQUEST, out)
    assert not (out / "0.png").exists()


def test_a_size_that_tokens_do_not_cut(model, tmp_path):
    items = [Item("a.png", "text", (0,), picture(tmp_path / "a.png", 20))]
    with pytest.raises(UserError, match="size 20x20 is not cut exactly"):
        make_items(model, items, replace(REQUEST, size=20), tmp_path / "out")
