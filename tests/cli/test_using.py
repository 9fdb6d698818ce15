"""`tunalab generate`, `edit` and `ask` on a trained run, and on its export."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.training.conftest import MIX, quick_components, quick_config, use_quick_components

import tunalab
from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.inference.images import read_settings
from tunalab.inference.requests import GenerationRequest
from tunalab.settings.loading import config_hash
from tunalab.settings.schema import RunConfig, SamplingConfig
from tunalab.trained.model import load

__all__ = ["quick_components", "use_quick_components"]
CONFIG = quick_config(
    stages={"pretrain": {"tokens": 300, "mix": MIX}},
    sampling={"method": "euler", "steps": 2, "guidance": 1.5},
    evaluation={"points": 1, "groups": 0, "easy_vqa": 0, "loss_documents": 0, "psnr_images": 0, "sample_prompts": 0},
)


@pytest.fixture(scope="module")
def trained_run(quick_components: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tunalab.training.run import train

    folder = tmp_path_factory.mktemp("runs") / "tuna2-seed0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNALAB_COMPONENTS", str(quick_components))
        assert train(CONFIG, folder) == 0
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_run: Path) -> Path:
    """A folder with the run ``run`` and a photograph of a size of its own."""
    (tmp_path / "run").symlink_to(trained_run)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error(call: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a mistake."""
    capsys.readouterr()
    assert main(call) == 2
    out, err = capsys.readouterr()
    (line,) = err.strip().splitlines()
    assert not out and line.startswith("error: ")
    return line


def test_generate_keeps_what_is_there_whether_the_model_is_a_run_or_its_export(here: Path, capsys) -> None:
    Path("more.txt").write_text("a blue cross\n\na green ring\n")
    call = ["generate", "run", "a red ring", "--prompts", "more.txt", "--n", "2", "--seed", "7", "--out", "out"]
    assert main(call) == 0
    assert capsys.readouterr().out == "6 images in out, 0001-seed7.png to 0003-seed8.png\n"
    settings = read_settings(Path("out/0003-seed8.png"))
    assert settings is not None and settings["model"].pop("steps") > 0 and settings["model"].pop("tokens") >= 300
    assert settings == {
        "prompt": "a green ring",
        "seed": 8,
        "size": "32x32",
        "sampler": "euler",
        "steps": 2,
        "guidance": 1.5,
        "precision": "fp32",
        "model": {"name": Path("run").resolve().name, "config_hash": config_hash(CONFIG), "revision": 2, "weights": "averaged"},
        "tunalab": tunalab.__version__,
    }
    files = {path: path.read_bytes() for path in Path("out").iterdir()}
    load(Path("run"), "cpu").save_pretrained(Path("export"))
    Path("out/0002-seed7.png").unlink()
    assert main(["generate", "export", *call[2:], "--grid"]) == 0
    assert "of which 5 were there\nwrote out/grid.png\n" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in Path("out").iterdir() if path.name != "grid.png"} == files
    # Words may stand behind options, and options may be the model's own.
    given = ["--sampler", "euler", "--steps", "2", "--guidance", "1.5", "--size", "32", "--device", "cpu"]
    assert main(["generate", "run", "--out", "out", "--seed", "7", *given, "a red ring", "a blue cross", "--grid"]) == 0
    assert "2 images in out, 0001-seed7.png to 0002-seed7.png, of which 2 were there" in capsys.readouterr().out
    assert read_settings(Path("out/grid.png")) == {"grid": ["0001-seed7.png", "0002-seed7.png"]}


def test_what_was_made_otherwise_is_never_written_over(here: Path, capsys) -> None:
    call = ["generate", "run", "a red ring", "--out", "out"]
    assert main(call) == 0
    before = Path("out/0001-seed0.png").read_bytes()
    for option, words in {
        "--guidance=3": "guidance 1.5 there, 3.0 now",
        "--negative=a ring": 'negative_prompt null there, "a ring" now',
        "--steps=3": "steps 2 there, 3 now",
        "--size=16x32": 'size "32x32" there, "16x32" now',
        "--raw": 'model.weights "averaged" there, "raw" now',
    }.items():
        line = error([*call, option, "--n", "2"], capsys)
        assert f"0001-seed0.png is there, made otherwise ({words}): choose another folder, or remove it" in line
    Image.new("RGB", (4, 4)).save("out/grid.png")
    assert "out/grid.png is there and no grid of tunalab" in error([*call, "--grid"], capsys)
    assert {path.name for path in Path("out").iterdir()} == {"0001-seed0.png", "grid.png"}
    assert Path("out/0001-seed0.png").read_bytes() == before


def test_the_size_is_height_times_width(here: Path) -> None:
    assert main(["generate", "run", "a red ring", "--size", "16x40", "--out", "out"]) == 0
    with Image.open("out/0001-seed0.png") as image:
        assert (image.height, image.width) == (16, 40)


def test_edit_brings_the_image_to_the_size_of_training_or_the_one_asked_for(here: Path, capsys) -> None:
    assert main(["edit", "run", "photo.png", "remove the ring", "make it red", "--n", "2", "--grid", "--out", "out"]) == 0
    assert capsys.readouterr().out == "4 images in out, 0001-seed0.png to 0002-seed1.png\nwrote out/grid.png\n"
    settings = read_settings(Path("out/0002-seed1.png"))
    assert settings is not None and settings["prompt"] == "make it red" and settings["source"]["name"] == "photo.png"
    assert main(["edit", "run", "photo.png", "make it red", "--size", "48x16", "--out", "wide"]) == 0
    for path, size in {"out/0001-seed0.png": (32, 32), "wide/0001-seed0.png": (48, 16)}.items():
        with Image.open(path) as image:
            assert (image.height, image.width) == size
    Image.new("RGB", (40, 50)).save("photo.png")
    line = error(["edit", "run", "photo.png", "remove the ring", "--out", "out"], capsys)
    assert "made otherwise (source.sha256 " in line


def test_ask_answers_a_line_each(here: Path, capsys) -> None:
    Path("folder").mkdir()
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (40, 30), "red").save(Path("folder") / name)
    Path("more.txt").write_text("how many?\n")
    short = ["--max-tokens", "3"]
    assert main(["ask", "run", "photo.png", "what is it?", "--questions", "more.txt", *short]) == 0
    plain = capsys.readouterr().out.splitlines()
    assert len(plain) == 2
    assert main(["ask", "run", "--json", *short, "photo.png", "what is it?", "how many?"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [" ".join(line["answer"].split()) for line in lines] == plain
    assert [(line["image"], line["question"]) for line in lines] == [("photo.png", "what is it?"), ("photo.png", "how many?")]
    assert main(["ask", "run", "folder", "what is it?", "--json", *short]) == 0
    assert [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()] == ["folder/a.jpg", "folder/b.png"]
    assert main(["ask", "run", "--no-image", "two and two?", "--json", *short]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["image"] is None and line["question"] == "two and two?"


def test_a_damaged_checkpoint_is_passed_over_aloud_or_one_line(here: Path, trained_run: Path, capsys) -> None:
    shutil.copytree(trained_run, "copy")
    newest = sorted(Path("copy/checkpoints").iterdir())[-1]
    shutil.copytree(newest, newest.with_name("step-999999999"))
    cut(newest.with_name("step-999999999"))
    capsys.readouterr()
    assert main(["ask", "copy", "photo.png", "what is it?", "--max-tokens", "1"]) == 0
    out, err = capsys.readouterr()
    assert "warning: checkpoint copy/checkpoints/step-999999999 is damaged" in err and "warning" not in out
    cut(newest)
    assert main(["ask", "copy", "photo.png", "what is it?"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: run copy cannot be loaded: every checkpoint in it is damaged"
    shutil.rmtree("copy/checkpoints")
    assert "it holds no checkpoint" in error(["generate", "copy", "a ring", "--out", "out"], capsys)


def cut(folder: Path) -> None:
    path = max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])


def test_an_export_has_one_kind_of_weights(here: Path, capsys) -> None:
    for name, raw in (("averaged", False), ("raw", True)):
        load(Path("run"), "cpu", raw=raw).save_pretrained(Path(name))
    assert "averaged holds averaged weights alone" in error(["generate", "averaged", "a ring", "--out", "out", "--raw"], capsys)
    assert main(["generate", "raw", "a ring", "--out", "out", "--raw"]) == 0
    assert main(["generate", "run", "a ring", "--out", "out", "--raw"]) == 0
    assert "1 were there" in capsys.readouterr().out


GENERATE, EDIT, ASK = ["generate", "run", "a ring", "--out", "out"], ["edit", "run", "--out", "out"], ["ask", "run"]
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "no such model": (["generate", "nowhere", "a ring", "--out", "out"], ["nowhere: no such folder"]),
    "a file as model": (["ask", "photo.png", "photo.png", "what?"], ["photo.png: no such folder"]),
    "neither": (["generate", ".", "a ring", "--out", "out"], [". is neither an exported folder", "nor a run directory"]),
    "no prompt": (["generate", "run", "--out", "out"], ["no prompt"]),
    "no instruction": ([*EDIT, "photo.png"], ["no instruction"]),
    "no question": ([*ASK, "photo.png"], ["no question"]),
    "a second image": ([*ASK, "photo.png", "line.png", "what?"], ["line.png is no question: one image, or a folder of images"]),
    "no image": (ASK, ["no image", "--no-image"]),
    "empty file": (["generate", "run", "--prompts", "empty.txt", "--out", "out"], ["empty.txt is empty"]),
    "no such file": ([*GENERATE, "--prompts", "nothing.txt"], ["nothing.txt cannot be read"]),
    "not UTF-8": (["generate", "run", "a \udcff", "--out", "out"], [r"'a \udcff' is not text in UTF-8"]),
    "n": ([*GENERATE, "--n", "0"], ["--n=0 is out of range (from 1)"]),
    "seed": ([*GENERATE, "--seed", "-1"], ["--seed=-1 is out of range"]),
    "last seed": ([*GENERATE, "--seed", "2147483647", "--n", "2"], ["the last seed=2147483648 is out of range"]),
    "guidance": ([*GENERATE, "--guidance", "-1"], ["--guidance=-1.0 is out of range (from 0)"]),
    "negative": ([*GENERATE, "--negative", "a \udcff"], [r"--negative 'a \udcff' is not text in UTF-8"]),
    "no guidance": ([*GENERATE, "--guidance", "nan"], ["--guidance=nan is out of range"]),
    "steps": ([*GENERATE, "--steps", "0"], ["--steps=0 is out of range (from 1)"]),
    "shift": ([*GENERATE, "--shift", "0"], ["--shift=0.0 is out of range (from 0.01 to 100)"]),
    "size": ([*GENERATE, "--size", "30x32"], ["size 30x32", "tokens of 8 pixels", "24x32 or 32x32"]),
    "no size": ([*GENERATE, "--size", "big"], ["size=big", "HEIGHTxWIDTH"]),
    "batch": ([*GENERATE, "--batch-tokens", "0"], ["--batch-tokens=0 is out of range"]),
    "device": ([*GENERATE, "--device", "tpu"], ["--device tpu", "cpu"]),
    "max tokens": ([*ASK, "photo.png", "what?", "--max-tokens", "0"], ["--max-tokens=0 is out of range"]),
    "folder": (["generate", "run", "a ring", "--out", "empty.txt"], ["empty.txt/0001-seed0.png cannot be written"]),
    "missing image": ([*EDIT, "nothing.png", "remove it"], ["nothing.png: no such image file"]),
    "unreadable image": ([*EDIT, "empty.txt", "remove it"], ["empty.txt: unreadable image"]),
    "absurd image": ([*EDIT, "line.png", "remove it"], ["line.png: 5000x1 is longer than 32 times its short side"]),
    "asked about": ([*ASK, "line.png", "what?"], ["line.png: 5000x1 is longer"]),
    "asked about nothing": ([*ASK, "nothing.png", "what?"], ["nothing.png: no such image file"]),
    "strange option": ([*GENERATE, "--guidence", "3"], ["--guidence"]),
}


def test_a_request_lies_over_the_models_own_sampler() -> None:
    own = SamplingConfig("heun", 7, 2.0, "a ring", 5.0, grid="points", shift=3.0, clamp="official")
    config = RunConfig(sampling=own)
    assert GenerationRequest().sampling(config) == own
    edits_too = replace(own, method="euler", guidance=3.0, negative_prompt="", edit_guidance=3.0)
    requested = GenerationRequest(guidance=3.0, negative="", sampler="euler").sampling(config)
    assert requested == edits_too, "edits too, which this model guides in their own way"
    assert GenerationRequest(shift=1.0, clamp="none").sampling(config) == replace(own, shift=1.0, clamp="none")
    with pytest.raises(UserError, match="sampling.steps=1 with sampling.grid=points is no step"):
        GenerationRequest(steps=1).sampling(config)
    assert GenerationRequest(guidance=0.0).sampling(config) == replace(own, guidance=0.0)
    without = replace(own, edit_guidance=0.0)
    assert GenerationRequest(guidance=3.0).sampling(RunConfig(sampling=without)) == replace(without, guidance=3.0)


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_line_and_makes_nothing(name: str, here: Path, capsys) -> None:
    Path("empty.txt").touch()
    Image.new("RGB", (5000, 1)).save("line.png")
    call, words = MISTAKES[name]
    line = error(call, capsys)
    for word in words:
        assert word in line
    assert not Path("out").exists()


def test_an_older_configuration_is_one_line(here: Path, trained_run: Path, capsys) -> None:
    Path("old").mkdir()
    shutil.copyfile(trained_run / "config.yaml", "old/config.yaml")
    text = Path("old/config.yaml").read_text()
    edits: dict[str, Callable[[str], str]] = {
        "revision=1: this version computes revision 2": lambda text: text.replace("revision: 2", "revision: 1"),
        "unknown key 'frontent'": lambda text: text.replace("frontend:", "frontent:"),
        "old/config.yaml is not readable YAML": lambda text: text + "\n  : [",
    }
    for words, change in edits.items():
        Path("old/config.yaml").write_text(change(text))
        assert words in error(["generate", "old", "a ring", "--out", "out"], capsys)
