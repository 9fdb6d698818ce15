"""`tunalab data`: what it prints and writes, its exit codes, and one line for each mistake."""

import json
from pathlib import Path

import pytest
from PIL import Image as PillowImage

import tunalab
from tunalab.cli import main

BOTH = "EXPERIMENT [VARIANT], or manifests"


@pytest.fixture
def manifest(checkout: Path) -> Path:
    """Of three captioned pictures, in the working directory."""
    lines = []
    for number in range(3):
        PillowImage.new("RGB", (40, 40), (80 * number, 9, 9)).save(f"p{number}.png")
        lines.append(json.dumps({"image": f"p{number}.png", "caption": f"red {number}"}))
    path = Path("my.jsonl")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_manifest_that_a_run_can_train_on(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "my.jsonl", "data.manifests.my.kind=text_to_image", "--html", "page.html", "--held-out", "my.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert "text_to_image 3" in printed and "A run can train on these data" in printed and "wrote page.html" in printed
    assert "Up to 2,000 documents of each source were read" in printed and "the same pixels" in printed
    assert "my.jsonl:1" in Path("page.html").read_text(encoding="utf-8")


def test_a_run_that_would_stop_is_shown_whole_and_ends_in_one_line(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("p1.png").unlink()
    assert main(["data", "my.jsonl", "--json"]) == 2
    output = capsys.readouterr()
    (line,) = output.err.strip().splitlines()
    assert line.startswith("error: manifest/my: 1 of 3 documents rejected") and "p1.png: no such image file" in line
    found = json.loads(output.out)
    assert found["problems"] == [line.removeprefix("error: ")]
    (source,) = found["sources"]
    assert (source["usable"], source["broken"], source["kinds"]) == (2, 1, {"caption": 2})
    assert source["left_out"][0]["first"] == [["my.jsonl:2", "p1.png: no such image file"]]


def test_an_experiment_with_its_variant_and_benchmarks(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the variant's own target space: its tokens are those that training lays out."""
    assert main(["data", "smoke", "tuna", "--limit", "5", "--json", "evaluation.easy_vqa=20"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {source["read"] for source in found["sources"]} == {5}
    assert [one["name"] for one in found["held_out"]] == ["easy_vqa"] and found["held_out"][0]["has"] == 20
    assert found["token_pixels"] == 8
    for shares in found["stages"].values():
        assert sum(share["tokens"] for share in shares) == pytest.approx(1)
        assert sum(share["documents"] for share in shares) == pytest.approx(1)


def test_what_losses_are_of_is_looked_at_too(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there, and pictures that training shows."""
    held = ["data.manifests.held.path=held.jsonl", "evaluation.losses={mine: manifest/held}", "evaluation.loss_documents=2"]
    assert main(["data", "my.jsonl", *held]) == 2
    assert capsys.readouterr().err == "error: manifest/held: no such manifest file: held.jsonl\n"
    PillowImage.new("RGB", (40, 40), (9, 200, 9)).save("green.png")
    lines = [{"image": "green.png", "caption": "green"}, {"image": "p1.png", "caption": "red"}]
    Path("held.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert main(["data", "my.jsonl", *held]) == 0
    printed = capsys.readouterr().out
    assert "Warning: 1 pictures of evaluation.losses.mine are in the training data, or almost" in printed
    assert printed.index("Warning: 1 pictures") > printed.index("What the model gets")


def test_questions_are_looked_for_in_the_training_data(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("q.jsonl").write_text(json.dumps({"image": "p0.png", "question": "red?", "answer": "yes"}) + "\n", encoding="utf-8")
    assert main(["data", "my.jsonl", "--held-out", "q.jsonl", "--json"]) == 0
    (held,) = json.loads(capsys.readouterr().out)["held_out"]
    assert (held["name"], held["same"]) == ("q.jsonl", 1)


def test_what_is_asked_later_need_not_be_here(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = ["evaluation.asked=later", "evaluation.keep_points=all"]
    words = ["evaluation.benchmarks={mine: {path: q.jsonl, rule: rules.py:right}}", *later]
    assert main(["data", "my.jsonl", *words]) == 0
    assert "Warning: evaluation.benchmarks.mine: q.jsonl is not here, and is asked later" in capsys.readouterr().out
    scorer = "evaluation.benchmarks={drawn: {task: geneval, path: prompts.jsonl, scorer: away}}"
    assert main(["data", "my.jsonl", scorer, *later]) == 0 and capsys.readouterr()
    assert main(["data", "my.jsonl", scorer]) == 2 and "scorer=away: there is no such folder" in capsys.readouterr().err


def test_a_notebook_gets_the_same(manifest: Path) -> None:
    report = tunalab.inspect_data(manifests=["my.jsonl"], settings={"data.image_size": 16}, limit=2)
    assert report.problems == [] and report.sources[0].buckets == {(16, 16): 2}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], f"{BOTH} (.jsonl, .ndjson, .json), are to be looked at, not nothing"),
        (["my.jsonl", "smoke"], f"{BOTH}"),
        (["smoke", "tuna2", "tuna"], f"{BOTH}"),
        (["nowhere.jsonl"], "manifest/nowhere: no such manifest file: nowhere.jsonl"),
        (["nowhere"], "no file experiments/nowhere.yaml"),
        (["my.jsonl", "--held-out", "q.jsonl"], "no such manifest file: q.jsonl"),
        (["my.jsonl", "my.jsonl"], "another manifest is called my too"),
        (["my.jsonl", "--limit", "0"], "--limit=0 is out of range (from 1)"),
        (["my.jsonl", "--html", "."], "--html . is a folder: a file is to be written"),
        (["my.jsonl", "data.image_size=30"], "30"),
        (["my.jsonl", "data.manifests.my.kind=poem"], "poem"),
        (["empty.jsonl"], "empty.jsonl has no lines"),
    ],
)
def test_a_mistake_is_one_line(manifest: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str) -> None:
    Path("empty.jsonl").touch()
    assert main(["data", *words]) == 2
    output = capsys.readouterr()
    (line,) = output.err.strip().splitlines()
    assert line.startswith("error: ") and named in line and not output.out
