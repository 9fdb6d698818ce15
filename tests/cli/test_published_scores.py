"""`tunalab score` on images of a trained run: figures in a file and in the run's record, mistakes in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.test_published_samples import PROMPT, data
from tests.cli.test_using import error, here, trained_run
from tests.interop.generation.conftest import clip_folder, mask2former
from tests.training.conftest import quick_components, use_quick_components

from tunalab.cli import main
from tunalab.evaluation.whole import read_evaluated
from tunalab.inference.images import save_image
from tunalab.records.record import RECORD_FILE, read_record

__all__ = ["clip_folder", "data", "here", "mask2former", "quick_components", "trained_run", "use_quick_components"]
HEAD = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
DPG = ["score", "dpg", "dpg", "--data", "dpg_bench.csv", "--model", "run", "--out", "dpg.json"]


ROW = "a1,prompt,,1,0,entity,whole,entity - whole (ring),Is there a ring?\n"


@pytest.fixture
def models(data: Path, clip_folder: Path, mask2former: Path) -> None:
    """Scorers under short names, and what they need to know."""
    Path("clip").symlink_to(clip_folder)
    Path("detector").symlink_to(mask2former)
    Path("dpg_bench.csv").write_text(HEAD + ROW)
    Path("meta.jsonl").write_text(json.dumps({**PROMPT, "include": [{"class": "dog", "count": 1}]}) + "\n")


def test_scores_go_into_a_file_and_the_record(models: None, trained_run: Path, capsys) -> None:
    quick = ["--steps", "1", "--guidance", "1"]
    assert main(["samples", "run", "geneval", "--data", "meta.jsonl", "--out", "geneval", "--n", "2", *quick]) == 0
    assert main(["samples", "run", "dpg", "--data", "prompts", "--out", "dpg", *quick]) == 0
    capsys.readouterr()
    assert main([*DPG, "--record", "run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("DPG-Bench, all items overall: ") and "wrote run/record.json" in out
    assert "tunalab tuna2-seed0, not official" in out
    result = read_evaluated(Path("dpg.json"))
    assert result.part == "score-dpg" and result.measures[0].metric == "overall" and result.origin["run"] == "tuna2-seed0"
    assert result in read_record(trained_run / RECORD_FILE).evaluation
    assert main(["score", "clip", "dpg", "--model", "clip", "--out", "clip.json"]) == 0
    assert "CLIP score cosine: " in capsys.readouterr().out
    measure, _ = read_evaluated(Path("clip.json")).measures
    assert (measure.kind, measure.n, measure.note) == ("generation", 1, f"open_clip {Path('clip').resolve().name}")
    call = ["score", "geneval", "geneval", "--data", "meta.jsonl", "--model", "detector", "--clip", "clip", "--out", "geneval.json"]
    assert main(call) == 0
    assert "GenEval single_object: 0.000" in capsys.readouterr().out
    measures = read_evaluated(Path("geneval.json")).measures
    assert [measure.metric for measure in measures] == ["overall", "single_object"] and measures[0].n == 1
    assert len(Path("geneval.images.jsonl").read_text().splitlines()) == 2


GENEVAL = ["score", "geneval", "geneval", "--model", "detector", "--out", "x.json"]
MISTAKES: list[tuple[list[str], str]] = [
    (GENEVAL, "--data is missing"),
    ([*GENEVAL, "--data", "dpg_bench.csv"], "dpg_bench.csv line 1: not JSON"),
    ([*GENEVAL, "--data", "bench.jsonl"], "00000/metadata.jsonl is of another prompt than line 1"),
    (["score", "clip", "nothing", "--model", "clip", "--out", "x.json"], "nothing: no such folder of images"),
    (["score", "clip", "dpg", "--model", "clip", "--out", "x.json"], "dpg/a1.png does not say which prompt it was made of"),
    ([*DPG[:4], "more.csv", *DPG[5:]], "dpg/b2.png is missing: dpg lacks 1 of 2 images"),
    (
        ["score", "geneval", "geneval", "--model", "clip", "--out", "x.json", "--data", "meta.jsonl"],
        "detector clip: no such folder",
    ),
    ([*DPG[:6], "nothing", *DPG[7:]], "nothing: no such folder"),
    (["score", "hps", "told", "--model", "photo.png", "--out", "x.json", "--architecture", "Q"], "need --architecture"),
    ([*DPG, "--record", "run"], "dpg was made by no model that they name, not by tuna2-seed0"),
    ([*DPG, "--record", "prompts"], "prompts/record.json"),
]


def test_a_mistake_is_one_line_and_writes_nothing(models: None, capsys) -> None:
    Path("bench.jsonl").write_text(json.dumps(PROMPT) + "\n")
    Path("more.csv").write_text(HEAD + ROW + ROW.replace("a1", "b2"))
    Path("dpg").mkdir()
    Image.new("RGB", (8, 8)).save("dpg/a1.png")
    save_image(Path("told/a.png"), np.zeros((8, 8, 3), np.uint8), {"prompt": "a dog", "seed": 0})
    Path("geneval/00000/samples").mkdir(parents=True)
    shutil.copyfile("meta.jsonl", "geneval/00000/metadata.jsonl")
    Image.new("RGB", (8, 8)).save("geneval/00000/samples/0000.png")
    for call, words in MISTAKES:
        assert words in error(call, capsys)
    assert not Path("x.json").exists() and not Path("dpg.json").exists()
