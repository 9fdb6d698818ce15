"""examples/own_data from its script to questions that a run asks, on drawings made here: what is held out is never trained on."""

import io
import json
import tarfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tunalab.cli import main
from tunalab.evaluation.benchmarks import benchmarks
from tunalab.library import load_config
from tunalab.sweeps.grid import expand, load_sweep
from tunalab.training.preflight import check_run, open_data

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_data"
ANIMALS, FOODS = [f"animal {n}" for n in range(60)], [f"food {n}" for n in range(60)]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("make_own_data", EXAMPLE / "make.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packed(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, script: ModuleType) -> Path:
    """The folder of the example after its script."""
    place = tmp_path_factory.mktemp("own")
    art = {
        f"icons/{style}/{name.replace(' ', '-')}{tone}.svg": '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">'
        f'<circle cx="4" cy="4" r="3" fill="{colour}"/></svg>'
        for style, colour in (("flat", "red"), ("modern", "blue"), ("high-contrast", "black"), ("3d", "grey"))
        for name in (*ANIMALS, *FOODS)
        for tone in ("", "-medium-dark")
    }
    names = {
        "en/data.json": json.dumps([{"label": name.title(), "group": int(name in FOODS)} for name in (*ANIMALS, *FOODS)]),
        "en/messages.json": json.dumps({"groups": [{"key": "animals-nature", "order": 0}, {"key": "food-drink", "order": 1}]}),
    }
    made = script.make(packed(place / "art.tgz", art), packed(place / "names.tgz", names), place / "emoji")
    assert made == {"captions": 216, "questions": 648, "heldout": 24, "concepts": 24, "styles": 108}
    for part in ("experiments", "sweeps"):
        (place / part).mkdir()
        (place / part / "emoji.yaml").write_text((EXAMPLE / part / "emoji.yaml").read_text())
    return place


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"emoji/{name}.jsonl").read_text().splitlines()]


def test_what_is_held_out_is_never_trained_on(folder: Path) -> None:
    trained = {Path(line["image"]) for name in ("captions", "questions") for line in lines(folder, name)}
    held = {Path(line["image"]).stem for line in lines(folder, "heldout")}
    assert len(held) == 12 and not held & {path.stem for path in trained}
    assert {path.parent.name for path in trained} == {"flat", "modern"}
    assert {Path(line["image"]).stem for line in lines(folder, "concepts")} == held
    unseen = [Path(line["image"]) for line in lines(folder, "styles")]
    assert {path.parent.name for path in unseen} == {"high-contrast"} and not held & {path.stem for path in unseen}
    spoken = json.dumps([line["conversations"] for line in lines(folder, "questions")])
    assert not any(f'"{name.replace("-", " ")}"' in spoken for name in held)  # nor named in a question


def share(folder: Path, name: str) -> float:
    """Of the most frequent answer, which is what a model gets right that never looks."""
    answers = [line["answer"] for line in lines(folder, name)]
    return max(answers.count(answer) for answer in answers) / len(answers)


def test_what_a_benchmark_asks_is_trained_as_a_question_that_no_earlier_answer_tells(folder: Path) -> None:
    asked = [*lines(folder, "concepts"), *lines(folder, "styles")]
    assert all(line["options"] == ["animal or plant", "food or drink"] and line["answer"] in line["options"] for line in asked)
    trained = [line["conversations"] for line in lines(folder, "questions")]
    assert {len(turns) for turns in trained} == {2}
    assert {line["question"] for line in asked} < {turns[0]["value"] for turns in trained}
    choices = [(turns[0]["value"], turns[1]["value"]) for turns in trained if " or " in turns[0]["value"]]
    first = [question.startswith(f"is it {answer} or") for question, answer in choices]
    assert len(first) == 216 and 0.3 < sum(first) / 216 < 0.7  # the order of two does not tell


def test_the_experiment_runs_on_it_and_on_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    config = load_config("emoji", "tuna2")
    check_run(config)
    open_data(config)
    assert {name for stage in config.stages.values() for name, weight in stage.mix.items() if weight} == {
        "manifest/captions",
        "manifest/questions",
        "manifest/drawn",
    }
    made = {one.name: one for one in benchmarks(config)}
    assert {name: (len(one.questions), one.chance) for name, one in made.items()} == {
        "concepts": (24, share(folder, "concepts")),
        "styles": (108, share(folder, "styles")),
    }
    sweep = yaml.safe_load((folder / "sweeps/emoji.yaml").read_text())
    assert len(expand(load_sweep(folder / "sweeps/emoji.yaml"))) == len(sweep["variants"]) * len(sweep["seeds"])


def test_it_can_be_looked_at_before_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["data", "emoji", "tuna2", "--limit", "50", "--html", "data.html"]) == 0
    assert (
        "A run can train on these data" in capsys.readouterr().out and "a flat drawing of animal" in Path("data.html").read_text()
    )


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["make.py"])
    with pytest.raises(SystemExit, match="fluentui-emoji-1.3.0.tgz is not here: npm pack"):
        runpy.run_path(str(EXAMPLE / "make.py"), run_name="__main__")
