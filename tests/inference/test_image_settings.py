"""Images in files that say how they were made."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tunalab.errors import UserError
from tunalab.inference.images import KEYWORD, differences, read_settings, save_image

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
SETTINGS = {"prompt": 'a "red" ring', "seed": 3, "guidance": 2.5, "model": {"name": "run", "tokens": None, "steps": 10}}


@pytest.mark.parametrize("prompt", ['a "red" ring', "", "größer", "赤い輪 \N{RED APPLE}", "two\nlines\t\0"])
def test_pixels_and_settings_come_back(prompt: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "one.png"
    save_image(path, PIXELS, {**SETTINGS, "prompt": prompt})
    assert read_settings(path) == {**SETTINGS, "prompt": prompt}
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB") and np.array_equal(np.asarray(image), PIXELS)
        assert json.loads(image.text[KEYWORD])["seed"] == 3, "as any reader of PNG finds it"
    assert [file.name for file in path.parent.iterdir()] == ["one.png"]


def test_settings_that_json_has_no_word_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        save_image(tmp_path / "one.png", PIXELS, {"guidance": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", [None, "no JSON", "[1]", "3"])
def test_an_image_made_otherwise_has_no_settings(text: str | None, tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    if text is not None:
        chunks.add_text(KEYWORD, text)
    Image.fromarray(PIXELS).save(tmp_path / "one.png", pnginfo=chunks)
    assert read_settings(tmp_path / "one.png") is None


def test_damage_anywhere_is_found(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    save_image(path, PIXELS, SETTINGS)
    whole = path.read_bytes()
    for place in range(8, len(whole), 37):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        for harmed in (bytes(flipped), whole[:place]):
            path.write_bytes(harmed)
            with pytest.raises(UserError, match=r"one.png: damaged, or no PNG"):
                read_settings(path)


def test_what_cannot_be_read_or_written_is_one_line(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "photo.png", "JPEG")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name, words in {"nothing": "no such file", "photo.png": "no PNG", "file": "no PNG", "folder": "no PNG"}.items():
        with pytest.raises(UserError, match=f"{name}: .*{words}"):
            read_settings(tmp_path / name)
    with pytest.raises(UserError, match="one.png cannot be written: "):
        save_image(tmp_path / "file" / "one.png", PIXELS, SETTINGS)


def test_differences_name_the_setting_and_both_values() -> None:
    now = {**SETTINGS, "seed": 4, "model": {"name": "run", "tokens": 5, "steps": 10}, "source": {"name": "a.png"}}
    assert list(differences(SETTINGS, now)) == [
        "model.tokens null there, 5 now",
        "seed 3 there, 4 now",
        'source null there, {"name": "a.png"} now',
    ]
    assert list(differences(now, now)) == []
    (long,) = differences({"prompt": "x" * 500}, {"prompt": ""})
    assert len(long) < 100
