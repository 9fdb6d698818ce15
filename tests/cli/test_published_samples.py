"""`tunalab samples` on a trained run: benchmarks in their layouts, once."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.test_using import error, here, trained_run
from tests.training.conftest import quick_components, use_quick_components

from tunalab.cli import main
from tunalab.inference.images import read_settings

__all__ = ["here", "quick_components", "trained_run", "use_quick_components"]
PROMPT = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}


@pytest.fixture
def data(here: Path) -> Path:
    Path("meta.jsonl").write_text(json.dumps(PROMPT) + "\n")
    Path("edits.json").write_text(json.dumps({"7": {"id": "photo.png", "prompt": "make it red", "edit_type": "adjust"}}))
    Path("prompts").mkdir()
    Path("prompts/a1.txt").write_text("a red ring")
    return here


def test_benchmarks_in_their_layouts(data: Path, capsys) -> None:
    call = ["samples", "run", "geneval", "--data", "meta.jsonl", "--out", "geneval", "--n", "2", "--steps", "1"]
    assert main(call) == 0
    assert capsys.readouterr().out == "2 files in geneval, 00000/samples/0000.png to 00000/samples/0001.png\n"
    assert json.loads(Path("geneval/00000/metadata.jsonl").read_text()) == PROMPT
    assert main([*call, "--n", "3"]) == 0
    assert capsys.readouterr().out.endswith("0002.png, of which 2 were there\n")
    settings = read_settings(Path("geneval/00000/samples/0001.png"))
    assert settings is not None and (settings["prompt"], settings["seed"]) == ("a photo of a bench", 1)
    assert main(["samples", "run", "dpg", "--data", "prompts", "--out", "dpg", "--steps", "1"]) == 0
    with Image.open("dpg/a1.png") as grid:
        assert grid.size == (64, 64)
    assert main(["samples", "run", "imgedit", "--data", "edits.json", "--out", "imgedit", "--steps", "1"]) == 0
    with Image.open("imgedit/7.png") as edited:
        assert edited.size == (32, 32)


SAMPLES = ["samples", "run", "geneval", "--data", "meta.jsonl", "--out", "out"]
MISTAKES: dict[str, tuple[list[str], str]] = {
    "no data": (["samples", "run", "geneval", "--data", "nothing", "--out", "out"], "nothing cannot be read"),
    "no model": (["samples", "nowhere", *SAMPLES[2:]], "nowhere: no such folder"),
    "other settings": ([*SAMPLES, "--steps", "0"], "--steps=0 is out of range"),
    "no images": ([*SAMPLES, "--images", "nothing"], "--images nothing: no such folder"),
    "several edits": (["samples", "run", "imgedit", "--data", "edits.json", "--out", "out", "--n", "2"], "one image an edit"),
    "a size": ([*SAMPLES, "--size", "30x32"], "size 30x32 is not cut exactly"),
    "no image": (
        ["samples", "run", "imgedit", "--data", "edits.json", "--images", "prompts", "--out", "out"],
        "photo.png: no such",
    ),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_line_and_leaves_nothing(name: str, data: Path, capsys) -> None:
    call, words = MISTAKES[name]
    assert words in error(call, capsys)
    assert not Path("out").exists()
