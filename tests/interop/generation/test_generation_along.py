"""Benchmarks of images along a run: made at its points, scored beside it or afterwards, in its record like questions."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.training.conftest import quick_components, quick_config, use_quick_components

from tunalab.errors import UserError
from tunalab.evaluation.benchmarks import check_benchmarks, kept_images, one_of
from tunalab.evaluation.generation.along import right_images, spread
from tunalab.evaluation.generation.following import renders
from tunalab.interop.dpg import COLUMNS
from tunalab.records.asked import merged
from tunalab.records.record import read_record
from tunalab.settings.loading import laid_over
from tunalab.trained.points import ask_points
from tunalab.training import run

__all__ = ["quick_components", "use_quick_components"]
TAGS = ["single_object"] * 3 + ["two_object"] * 4 + ["counting"] * 9


def clause(thing: str, count: int = 1) -> dict[str, object]:
    return {"class": thing, "count": count}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """GenEval's and DPG-Bench's files in their own layouts."""
    things = ["dog", "computer mouse"]
    lines = [
        {"tag": tag, "prompt": f"{number} {tag}", "include": [clause(things[number % 2], 2 if tag == "counting" else 1)]}
        for number, tag in enumerate(TAGS)
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prompts = tmp_path / "dpg_bench/prompts"
    prompts.mkdir(parents=True)
    with (tmp_path / "dpg_bench/dpg_bench.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, COLUMNS)
        rows.writeheader()
        for item in range(5):
            (prompts / f"{item}.txt").write_text(f"scene {item}")
            for number, parent in ((1, 0), (2, 1)):
                about = {"tuple": "entity - whole (cup)", "question_natural_language": "is cup ?"}
                rows.writerow({"item_id": item, "proposition_id": number, "dependency": parent, **about})
    return tmp_path


def config_of(data: Path, **scorers: Path):
    geneval = {"task": "geneval", "path": str(data / "metadata.jsonl"), "limit": 6, "steps": 1}
    dpg = {"task": "dpg", "path": str(data / "dpg_bench"), "limit": 4, "steps": 1}
    asked = {"geneval": geneval, "dpg": dpg, "drawn": {"task": "scene_prompts", "limit": 8, "steps": 1}}
    for name, folder in scorers.items():
        asked[name]["scorer"] = str(folder)
    return quick_config("tuna2", evaluation__groups=0, evaluation__benchmarks=asked, evaluation__loss_documents=0)


def test_items_are_spread_evenly_and_stay_the_same():
    chosen = spread(TAGS, 6)
    assert [TAGS[number] for number in chosen] == ["single_object"] * 2 + ["two_object"] * 2 + ["counting"] * 2
    assert set(chosen) < set(spread(TAGS, 9)) and spread(TAGS, 99) == [*range(len(TAGS))]


def test_scored_beside_the_run(data, mask2former, vilt):
    """The record of the finished run has every benchmark at every point, each over the images that were made there."""
    config = config_of(data, geneval=mask2former, dpg=vilt)
    check_benchmarks(config)
    assert run.train(config, data / "one") == 0
    record = read_record(data / "one/record.json")
    assert len(record.points) == 2
    for point in record.points:
        geneval, dpg, drawn = (point.benchmarks[name] for name in ("geneval", "dpg", "drawn"))
        assert (geneval.n, dpg.n, drawn.n) == (6, 8, 8) and geneval.outcomes and dpg.outcomes is None and drawn.outcomes
        assert 0 < drawn.chance < 1
    about = record.data["asked"]
    assert {name: (about[name]["items"], about[name]["of"], about[name]["steps"]) for name in about} == {
        "geneval": (6, 16, 1),
        "dpg": (4, 5, 1),
    }
    assert record.data["benchmarks"]["drawn"]["items"] == 8
    for one in kept_images(config):
        folders = [one.folder(data / "one", point.tokens) for point in record.points]
        images = [[(folder / file).read_bytes() for file in one.files] for folder in folders]
        assert len({*images[0], *images[1]}) == 2 * len(one.files), "each prompt, and each point, has an image of its own"


def test_scored_afterwards_without_weights(data, mask2former, vilt, capsys):
    """A run that names no scorer keeps the images; a scorer named later is asked of them, and the record is as if it had been."""
    config = config_of(data)
    assert run.train(config, data / "one") == 0
    record = read_record(data / "one/record.json")
    assert all({*point.benchmarks} == {"drawn"} for point in record.points) and not (data / "one/points/asked").exists()
    with pytest.raises(UserError, match="evaluation.benchmarks.dpg.scorer is missing"):
        ask_points(data / "one", ["dpg"])
    scorers = [f"evaluation.benchmarks.geneval.scorer={mask2former}", f"evaluation.benchmarks.dpg.scorer={vilt}"]
    tokens = [point.tokens for point in record.points]
    assert ask_points(data / "one", ["geneval", "dpg"], scorers) == tokens
    after = read_record(data / "one/record.json")
    assert all({*point.benchmarks} == {"drawn", "geneval", "dpg"} for point in after.points)
    assert ask_points(data / "one", ["geneval", "dpg"], scorers) == []
    # Of an image that is lost, and without weights to make it again, nothing is asked.
    shutil.rmtree(data / "one/points/asked")
    (lost,) = [one for one in kept_images(config) if one.name == "dpg"]
    (lost.folder(data / "one", tokens[0]) / lost.files[0]).unlink()
    assert ask_points(data / "one", ["dpg"], scorers) == tokens[1:]


def test_what_the_run_asks_itself_is_not_asked_otherwise_under_its_name(data, mask2former):
    assert run.train(config_of(data), data / "one") == 0
    with pytest.raises(UserError, match="the run itself asks 'drawn', with other settings: give the new one a name of its own"):
        ask_points(data / "one", ["drawn"], ["evaluation.benchmarks.drawn.limit=4"])


def test_a_run_may_leave_all_of_it_to_others(data, mask2former, vilt):
    """It asks nothing and makes no images; of the weights that it keeps everything is asked later, all that its settings name."""
    config = config_of(data, geneval=mask2former, dpg=vilt)
    config.evaluation.asked = "later"
    with pytest.raises(UserError, match="evaluation.asked=later asks the points that a run keeps: set evaluation.keep_points=all"):
        check_benchmarks(config)
    config.evaluation.keep_points = "all"
    check_benchmarks(config)
    assert run.train(config, data / "one") == 0
    record = read_record(data / "one/record.json")
    assert not any(point.benchmarks for point in record.points) and not (data / "one/points/images").exists()
    tokens = [point.tokens for point in record.points]
    assert ask_points(data / "one") == tokens
    # A lost image is made again with the others of its point, of the same weights.
    shutil.rmtree(data / "one/points/asked")
    lost = one_of("dpg", config).folder(data / "one", tokens[0]) / "0.png"
    before = {path.name: path.read_bytes() for path in lost.parent.glob("*.png")}
    (lost if lost.exists() else next(lost.parent.glob("*.png"))).unlink()
    assert ask_points(data / "one", ["dpg"]) == tokens
    assert {path.name: path.read_bytes() for path in lost.parent.glob("*.png")} == before
    assert ask_points(data / "one") == tokens
    for point in read_record(data / "one/record.json").points:
        assert {*point.benchmarks} == {"geneval", "dpg", "drawn"}


def test_a_scorer_that_fails_is_a_line_and_the_run_goes_on(data, vilt, capfd):
    config = config_of(data, geneval=vilt)
    assert run.train(config, data / "one") == 0
    said = capfd.readouterr().err
    assert (
        "geneval could not be scored (error: " in said
        and "could not be asked (and " in said
        and "is a vilt: a mask2former is needed" in said
    )
    assert read_record(data / "one/record.json").run.finished


def test_perfect_images_are_right_and_chance_is_below(data):
    drawn = one_of("drawn", config_of(data))
    assert np.mean(right_images(drawn.prompts, renders(drawn.prompts, 32))) >= 0.8 > drawn.chance


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("task=genevall", "task=genevall is not known .choices: gqa, .*scene_prompts, geneval, dpg"),
        ("task=mmvet", "task=mmvet is scored by a judge: .tunalab evaluate --parts published. asks it at the end"),
        ("path=", "path is missing: the data of geneval"),
        ("scorer=nowhere", "scorer=nowhere: there is no such folder"),
        ("name=a.py:B", "a task takes no name"),
    ],
)
def test_mistakes_are_one_line(data, changed, message):
    with pytest.raises(UserError, match=f"evaluation.benchmarks.geneval.*{message}") as raised:
        check_benchmarks(laid_over(config_of(data), f"evaluation.benchmarks.geneval.{changed}"))
    assert "\n" not in str(raised.value)


def test_steps_that_the_sampler_cannot_take_are_one_line(data):
    """A grid of points needs two."""
    config = config_of(data)
    config.sampling.grid = "points"
    with pytest.raises(UserError, match="evaluation.benchmarks.geneval.steps=1: .*steps"):
        check_benchmarks(config)


def test_missing_data_is_one_line(data):
    (data / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match="metadata.jsonl cannot be read"):
        one_of("geneval", config_of(data))
    (data / "dpg_bench/prompts/0.txt").unlink()
    shutil.copytree(data / "dpg_bench/prompts", data / "other/prompts")
    with pytest.raises(UserError, match="no such|cannot be read|dpg_bench.csv"):
        one_of("dpg", laid_over(config_of(data), f"evaluation.benchmarks={{dpg: {{task: dpg, path: {data}/other}}}}"))


def test_a_half_written_answer_of_another_process_is_said(data):
    (data / "points/asked").mkdir(parents=True)
    (data / "points/asked/x.json").write_text("{")
    with pytest.raises(UserError, match="x.json is damaged: remove it"):
        merged(data, [], {})
