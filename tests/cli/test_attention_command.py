from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import small_config

from tunalab.cli import main
from tunalab.inference.images import read_settings
from tunalab.trained import model as trained
from tunalab.trained.model import Model

QUESTION = ["--question", "what colour is the ring?", "--word", "ring"]


@pytest.fixture
def folder(tmp_path: Path, tiny_model, tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with an image, where two folders are models of different front-ends."""
    origin = {"run": "tiny", "weights": "raw", "steps": 1, "tokens": 1}
    models = {
        Path(name): Model(tiny_model(frontend), tokenizer, small_config(), origin)
        for name, frontend in (("one", "patch_embed"), ("two", "vae_siglip"))
    }
    monkeypatch.setattr("tunalab.trained.model.load", lambda path, device, raw: models[path])
    monkeypatch.setattr("tunalab.trained.model.model_config", lambda path: models[path].config)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    return tmp_path


def picture(name: str) -> np.ndarray:
    with Image.open(name) as image:
        return np.asarray(image)


def test_an_overlay_and_every_head(folder, capsys):
    assert main(["attention", "one", "--image", "photo.png", *QUESTION, "--grid", "--out", "maps/of.png"]) == 0
    printed = capsys.readouterr().out
    assert "answer:" in printed and "at the word 'ring' (token" in printed and "wrote maps/of-grid.png" in printed
    assert picture("maps/of.png").shape == (192, 192, 3)
    assert len(np.unique(picture("maps/of-grid.png"))) > 50
    settings = read_settings(Path("maps/of.png"))["attention"]
    assert settings["word"] == "ring" and settings["image"] == "photo.png" and settings["model"]["name"] == "tiny"


def test_layers_and_heads_on_request(folder):
    pictures = []
    for chosen in ([], ["--layer", "1"], ["--layer", "1", "--head", "3"], ["--layer", "0", "--head", "3"]):
        assert main(["attention", "one", "--image", "photo.png", *QUESTION, *chosen]) == 0  # the own picture is drawn anew
        pictures.append(picture("attention.png"))
    assert all(not np.array_equal(one, other) for n, one in enumerate(pictures) for other in pictures[:n])


def test_other_sizes(folder):
    assert main(["attention", "one", "--image", "photo.png", *QUESTION, "--size", "16x32"]) == 0
    assert picture("attention.png").shape == (96, 192, 3)


def test_examples_of_several_models(folder, capsys):
    assert main(["attention", "one", "two", "--examples", "5", "--out", "examples.png"]) == 0
    drawn = picture("examples.png")
    assert drawn.shape[1] == 5 * 200 + 8, "a column a question"
    assert drawn.shape[0] > 5 * 192, "questions, and two rows of each model"
    assert read_settings(Path("examples.png"))["attention"]["examples"] == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "photo.png"], "--question, --word: missing (or --examples N"),
        (["two", "--image", "photo.png", *QUESTION], "one model at a time, not 2"),
        (
            ["--image", "photo.png", *QUESTION[:3], "dog"],
            "the word 'dog' does not occur in the question (its tokens: what | colour",
        ),
        (["--image", "none.png", *QUESTION], "none.png: no such image file"),
        (["--image", "photo.png", *QUESTION, "--layer", "7"], "layer 7 is not there (choices: 0 to 1)"),
        (["--image", "photo.png", *QUESTION, "--head", "0"], "head 0 of which layer?"),
        (["--image", "photo.png", *QUESTION, "--size", "20"], "size 20x20 is not cut exactly"),
        (["--image", "photo.png", *QUESTION, "--out", "photo.png"], "photo.png is there and was not made by"),
        (["--image", "photo.png", *QUESTION, "--out", "photo.jpg"], "pictures are written as .png"),
        (["--image", "photo.png", "--question", "ring \udcff", "--word", "ring"], "is not text in UTF-8"),
        (["--examples", "2", "--word", "ring"], "leave out --word"),
        (["--examples", "0"], "--examples=0 is out of range"),
    ],
)
def test_mistakes_are_one_line(words, message, folder, capsys):
    before = Path("photo.png").read_bytes()
    assert main(["attention", "one", *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed and printed.count("\n") == 1
    assert not Path("attention.png").exists() and Path("photo.png").read_bytes() == before


def test_models_of_different_image_sizes_do_not_share_a_picture(folder, capsys):
    trained.load(Path("two"), None, False).config.data.image_size = 64
    assert main(["attention", "one", "two", "--examples", "2"]) == 2
    assert "different image sizes in one picture: one 32, two 64" in capsys.readouterr().err
