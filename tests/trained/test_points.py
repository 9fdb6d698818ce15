"""Weights kept at the points of a run, and benchmarks asked of them afterwards: in the record as if the run had asked them."""

import json
import shutil
import threading
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tests.training.conftest import quick_components, quick_config, use_quick_components

from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.files import lock
from tunalab.records.record import read_record, write_record
from tunalab.settings.loading import read_config
from tunalab.trained.model import load
from tunalab.trained.points import Request, _Weights, ask_points, named
from tunalab.training import run
from tunalab.training.checkpoints import learnt_weights
from tunalab.training.points import forget_points, hand_points, kept_points, point_weights

__all__ = ["quick_components", "use_quick_components"]
QUIET = {"tracking__enabled": False, "evaluation__easy_vqa": 0, "evaluation__groups": 5, "evaluation__levels": [1]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, quick_components):
    folder = tmp_path_factory.mktemp("kept") / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNALAB_COMPONENTS", str(quick_components))
        config = quick_config("tuna2", evaluation__keep_points="all", evaluation__points=2, **QUIET)
        assert run.train(config, folder) == 0
    return folder


@pytest.fixture
def finished(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "one")
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    lines = [{"image": f"{n}.png", "question": "is it red?", "answer": "yes", "options": ["yes", "no"]} for n in range(3)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "one"


def test_every_point_keeps_its_averaged_weights_in_half_precision(trained):
    record, kept = read_record(trained / "record.json"), kept_points(trained)
    assert [*kept] == [point.tokens for point in record.points] and len(kept) == 2
    last = point_weights(kept[record.points[-1].tokens])
    checkpoint = learnt_weights(sorted((trained / "checkpoints").glob("step-*"))[-1])
    assert last.tokens == checkpoint.tokens and last.steps == record.points[-1].steps
    for name, tensor in last.weights.items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.float(), checkpoint.weights[name].float(), rtol=2**-8, atol=0)
    assert load(f"{trained}@{record.points[0].tokens}").origin["tokens"] == record.points[0].tokens


def test_a_benchmark_asked_afterwards_stands_in_the_record_at_every_point(finished, capsys):
    before = read_record(finished / "record.json")
    own = ["evaluation.benchmarks.mine.path=q.jsonl"]
    assert main(["evaluate", str(finished), *own, "--points", "all", "--benchmarks", "mine", "count@2"]) == 0
    assert "2 points asked" in capsys.readouterr().out
    record = read_record(finished / "record.json")
    for was, point in zip(before.points, record.points, strict=True):
        assert {*point.benchmarks} - {*was.benchmarks} == {"mine", "count@2"}
        assert {name: point.benchmarks[name] for name in was.benchmarks} == was.benchmarks
        assert point.benchmarks["mine"].n == 3 and point.benchmarks["mine"].margins is not None
    assert record.data["asked"]["mine"]["items"] == 3 and record.data["asked"]["mine"]["weights"] == "averaged, bfloat16"
    assert ask_points(finished, ["mine"], own) == []  # each point once
    assert read_record(finished / "record.json") == record


def test_what_the_run_itself_was_asked_is_not_replaced(finished):
    before, said = read_record(finished / "record.json"), []
    assert ask_points(finished, ["count"], log=said.append) == []
    assert said == [f"{finished}: the run itself was asked count, and its answers stay"]
    assert read_record(finished / "record.json") == before


def test_it_is_what_the_run_would_have_measured_but_for_rounding(finished):
    """The run's own count, once more under another name: of five questions at most one answer turns in half precision."""
    record = read_record(finished / "record.json")
    write_record(finished / "record.json", replace(record, points=[replace(point, benchmarks={}) for point in record.points]))
    ask_points(finished, ["count"])
    for was, point in zip(record.points, read_record(finished / "record.json").points, strict=True):
        again = point.benchmarks["count"]
        assert again.n == was.benchmarks["count"].n and abs(again.correct - was.benchmarks["count"].correct) <= 1
        assert again.margin == pytest.approx(was.benchmarks["count"].margin, abs=0.05)


def test_watchers_share_the_points_of_a_run_that_still_trains(finished, monkeypatch):
    """The record says unfinished, the second point is not there yet: two watchers wait for it, and each point is asked once."""
    path = finished / "record.json"
    whole = path.read_text()
    path.write_text(whole.replace('"finished": true', '"finished": false', 1).replace('"finished":true', '"finished":false', 1))
    assert not read_record(path).run.finished
    late = [*kept_points(finished).values()][1]
    aside = late.rename(finished / "late")
    monkeypatch.setattr("tunalab.trained.points.WATCH_SECONDS", 0.2)
    asked: list[list[int]] = []
    watchers = [threading.Thread(target=lambda: asked.append(ask_points(finished, ["pattern@3"], watch=True))) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    while not (finished / "points/asked").is_dir() or not [*(finished / "points/asked").glob("pattern@3*")]:
        pass
    aside.rename(late)
    path.write_text(whole)
    for watcher in watchers:
        watcher.join(timeout=60)
    assert sorted(sum(asked, [])) == [*kept_points(finished)]
    assert all("pattern@3" in point.benchmarks for point in read_record(path).points)


def test_the_last_point_alone(tmp_path):
    config = quick_config("tuna2", evaluation__keep_points="last", evaluation__points=3, **QUIET)
    assert run.train(config, tmp_path / "two") == 0
    assert [*kept_points(tmp_path / "two")] == [read_record(tmp_path / "two/record.json").points[-1].tokens]


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (
            ["reading"],
            [],
            "there is no benchmark 'reading' .choices: easy_vqa, relations, .*evaluation.benchmarks.reading.path=FILE",
        ),
        ([], [], "names no benchmarks .evaluation.benchmarks.: name one, --benchmarks NAME"),
        (["count"], ["seed=3"], "setting 'seed=3' is not of evaluation"),
        (
            ["mine"],
            ["evaluation.benchmarks.mine.path=none.jsonl"],
            "evaluation.benchmarks.mine.path=none.jsonl: there is no such file",
        ),
    ],
)
def test_mistakes_are_one_line(finished, names, settings, message):
    with pytest.raises(UserError, match=message) as raised:
        ask_points(finished, names, settings)
    assert "\n" not in str(raised.value)


def test_damage_and_missing_weights_are_said(finished, capsys):
    first, second = kept_points(finished).values()
    first.write_bytes(first.read_bytes()[:100])
    with pytest.raises(UserError, match=r"one at .* tokens could not be asked: .*is damaged"):
        ask_points(finished, ["search@2"])
    here = [point.tokens for point in read_record(finished / "record.json").points if "search@2" in point.benchmarks]
    assert here == [int(second.stem)]  # the other point is asked, and in the record
    first.unlink()
    second.unlink()
    with pytest.raises(UserError, match="keeps no weights of its points: train with evaluation.keep_points=all"):
        ask_points(finished, ["search@2"])
    assert main(["evaluate", str(finished), "--points", "all"]) == 2 and "--benchmarks NAME" in capsys.readouterr().err


def test_another_rule_or_limit_under_the_same_name_is_asked_again(finished, tmp_path):
    """The record has the later one, and says by which rule."""
    own, other = ["evaluation.benchmarks.mine.path=q.jsonl"], "evaluation.benchmarks.mine.rule=rules.py:never"
    (tmp_path / "rules.py").write_text("def never(reply, line):\n    return len(reply) < 0\n")
    assert len(ask_points(finished, ["mine"], own)) == 2
    assert read_record(finished / "record.json").data["asked"]["mine"]["rule"] == "exact"
    assert len(ask_points(finished, ["mine"], [*own, other])) == 2
    record = read_record(finished / "record.json")
    assert record.data["asked"]["mine"]["rule"].startswith("rules.py:never (")
    assert all(point.benchmarks["mine"].correct == 0 for point in record.points)
    (tmp_path / "rules2.py").write_text("def always(reply, line):\n    return len(reply) >= 0\n")
    other = other.replace("rules.py:never", "rules2.py:always")
    said: list[str] = []
    assert len(ask_points(finished, ["mine"], [*own, other, "evaluation.max_answer_tokens=1"], log=said.append)) == 2
    record = read_record(finished / "record.json")
    assert record.data["asked"]["mine"]["max_tokens"] == 1 and record.points[0].benchmarks["mine"].correct == 3


def test_of_two_files_of_questions_the_record_has_the_one_that_was_wanted_last(finished, tmp_path):
    first, second = tmp_path / "q.jsonl", tmp_path / "q2.jsonl"
    second.write_text("".join(first.read_text().splitlines(keepends=True)[:2]))
    for file, asked, items in ((first, 2, 3), (second, 2, 2), (first, 0, 3)):
        assert len(ask_points(finished, ["mine"], [f"evaluation.benchmarks.mine.path={file.name}"])) == asked
        assert {point.benchmarks["mine"].n for point in read_record(finished / "record.json").points} == {items}


def test_processes_that_ask_different_benchmarks_do_not_keep_each_other_from_a_point(finished, monkeypatch):
    """Nor does one that asks the same one leave a point out: it waits, as the other may be killed."""
    inside, going = threading.Barrier(2, timeout=60), _Weights.ask

    def meets(self, one):
        if inside.n_waiting < 2 and not inside.broken:
            inside.wait()
        return going(self, one)

    monkeypatch.setattr(_Weights, "ask", meets)
    asked: dict[str, list[int]] = {}
    threads = [threading.Thread(target=lambda n=n: asked.update({n: ask_points(finished, [n])})) for n in ("count@2", "pattern@2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert {name: len(points) for name, points in asked.items()} == {"count@2": 2, "pattern@2": 2}
    assert all({"count@2", "pattern@2"} <= point.benchmarks.keys() for point in read_record(finished / "record.json").points)


def test_a_point_that_another_process_holds_is_waited_for(finished):
    tokens = [*kept_points(finished)][0]
    place = Request(named("count@2", read_config(finished / "config.yaml")), {}).one
    lock_file = Request(place, place.describe()).place(finished, tokens).with_suffix(".lock")
    lock_file.parent.mkdir(parents=True)
    asked: list[int] = []
    with lock_file.open("w") as held:
        lock(held)
        waiting = threading.Thread(target=lambda: asked.extend(ask_points(finished, ["count@2"])))
        waiting.start()
        waiting.join(timeout=20)
        assert waiting.is_alive()
    waiting.join(timeout=60)
    assert asked == [*kept_points(finished)]  # its holder ended without an answer


def test_points_that_are_passed_again_are_asked_again(finished):
    """Weights, images and answers behind the place where a run goes on are those of another training."""
    ask_points(finished, ["count@2"])
    first, second = kept_points(finished)
    (finished / f"points/images/made-0123/{second:012d}").mkdir(parents=True)
    forget_points(finished, first)
    assert [*kept_points(finished)] == [first] and not [*(finished / "points/images/made-0123").iterdir()]
    assert [path.stem.rpartition("-")[2] for path in (finished / "points/asked").glob("*.json")] == [str(first)]
    hand_points(finished, finished.with_name("branch"), first)
    assert [*kept_points(finished.with_name("branch"))] == [first]
    assert len([*(finished.with_name("branch") / "points/asked").glob("*.json")]) == 1
    assert kept_points(finished)[first].stat().st_mode & 0o777 == (finished / "record.json").stat().st_mode & 0o777


def test_what_is_wrong_with_one_run_keeps_no_other_from_being_asked(finished, capsys):
    other = shutil.copytree(finished, finished.with_name("other"))
    for path in kept_points(finished).values():
        path.unlink()
    assert main(["evaluate", str(finished), str(other), "--points", "all", "--benchmarks", "count@2"]) == 2
    assert "one keeps no weights of its points" in capsys.readouterr().err
    assert all("count@2" in point.benchmarks for point in read_record(other / "record.json").points)


def test_settings_may_stand_behind_the_names(finished, capsys):
    words = ["--points", "all", "--benchmarks", "mine", "evaluation.benchmarks.mine.path=q.jsonl"]
    assert main(["evaluate", str(finished), *words]) == 0 and "2 points asked" in capsys.readouterr().out
    assert main(["evaluate", str(finished), *words]) == 0 and "0 points asked: their answers were there" in capsys.readouterr().out


def test_long_answers_are_said_also_afterwards(finished, tmp_path):
    line = {"image": "0.png", "question": "who?", "answer": "a name that is much longer than any reply of this run can be " * 2}
    (tmp_path / "long.jsonl").write_text(json.dumps(line))
    said: list[str] = []
    ask_points(finished, ["mine"], ["evaluation.benchmarks.mine.path=long.jsonl"], log=said.append)
    assert said[0].startswith("warning: evaluation.benchmarks.mine: 1 of 1 answers are longer than evaluation.max_answer_tokens=3")
    assert "...'" in said[0]


def test_a_curve_is_of_one_set_of_questions(tmp_path, monkeypatch, use_quick_components):
    """Whether its file changes while the run trains or while it is stopped: one line, and the run goes on when it is back."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), (80, 0, 0)).save(tmp_path / "0.png")
    lines = [
        json.dumps({"image": "0.png", "question": f"{n}?", "answer": "yes", "options": ["yes", "no"]}) + "\n" for n in range(6)
    ]
    asked, held = tmp_path / "q.jsonl", tmp_path / "held.jsonl"
    asked.write_text("".join(lines))
    held.write_text("".join(json.dumps({"image": "0.png", "caption": f"number {n}"}) + "\n" for n in range(4)))
    config = quick_config(
        "tuna2",
        evaluation__points=3,
        evaluation__benchmarks={"own": {"path": "q.jsonl"}},
        evaluation__losses={"mine": "manifest/held"},
        data__manifests={"held": {"path": "held.jsonl"}},
        **QUIET | {"evaluation__groups": 0},
    )
    written = run.write_run_record

    def changed_after_the_first(*given, **more):
        written(*given, **more)
        asked.write_text("".join(lines[:3]))

    monkeypatch.setattr(run, "write_run_record", changed_after_the_first)
    with pytest.raises(UserError, match="evaluation.benchmarks.own: its questions changed while this run trained"):
        run.train(config, tmp_path / "one")
    monkeypatch.setattr(run, "write_run_record", written)
    with pytest.raises(UserError, match="own: its questions changed"):
        run.train(config, tmp_path / "one")
    asked.write_text("".join(lines))
    before = held.read_text()
    held.write_text(before.replace("number", "another"))
    with pytest.raises(UserError, match="data changed since this run stopped: manifest/held"):
        run.train(config, tmp_path / "one")
    held.write_text(before)
    assert run.train(config, tmp_path / "one") == 0
    record = read_record(tmp_path / "one/record.json")
    assert record.run.finished and {point.benchmarks["own"].n for point in record.points} == {6} and len(record.points) == 3
