"""`tunalab evaluate`: mistakes in one line, what is measured goes into the record and is not measured again."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure, share
from tunalab.evaluation.parts import PARTS, UnderstandingSettings
from tunalab.evaluation.subject import Subject
from tunalab.records.record import read_record
from tunalab.settings.layers import read_yaml
from tunalab.settings.loading import from_plain
from tunalab.trained.model import Model


@dataclass
class Fake:
    """Parts that measure nothing in no time, of models that are not loaded. ``fail`` makes one raise."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    fail: dict[str, BaseException] = field(default_factory=dict)
    loaded: list[Path] = field(default_factory=list)

    def load(self, path: Path, device: str) -> Model:
        self.loaded.append(path)
        if str(path) in self.fail:
            raise self.fail[str(path)]
        nothing: Any = None
        return Model(nothing, nothing, from_plain(read_yaml(path / "config.yaml")), {"run": path.name, "tokens": 2000})

    def measure(self, name: str, subject: Subject, settings: UnderstandingSettings) -> list[Measure]:
        self.calls.append((name, subject.origin["run"]))
        if name in self.fail:
            raise self.fail[name]
        return [share("understanding", name, [True, False], split="test", chance=0.5)]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Two parts, ``understanding`` and ``other``, whose settings are those of the former."""
    made = Fake()
    monkeypatch.setattr("tunalab.trained.model.load", made.load)
    monkeypatch.setattr("tunalab.evaluation.side_by_side.default_processes", lambda: 1)  # others would not know the fakes
    monkeypatch.setattr("tunalab.evaluation.parts.EvaluationSettings.other", UnderstandingSettings(), raising=False)
    for name in list(PARTS):
        monkeypatch.delitem(PARTS, name)
    for name in ("understanding", "other"):
        module = ModuleType(f"fake_{name}")
        module.measure = lambda subject, settings, name=name: made.measure(name, subject, settings)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(PARTS, name, module.__name__)
    return made


@pytest.fixture
def run_dir(checkout: Path, trained: list[Path], fake: Fake) -> str:
    assert main(["train", "--experiment", "smoke", "--variant", "tuna2", "tracking.enabled=false"]) == 0
    return str(trained[0])


def refusal(capsys: pytest.CaptureFixture[str], *call: str) -> str:
    capsys.readouterr()
    assert main(["evaluate", *call]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_what_is_measured_is_in_the_record_and_a_second_call_measures_nothing(run_dir: str, fake: Fake) -> None:
    before = read_record(Path(run_dir) / "record.json")
    assert main(["evaluate", run_dir, "--quiet", "understanding.groups=5"]) == 0
    record = read_record(Path(run_dir) / "record.json")
    assert [result.part for result in record.evaluation] == ["understanding", "other"]
    first = record.evaluation[0]
    assert first.settings["groups"] == 5 and first.origin["tokens"] == 2000 and first.measures[0].items == [1, 0]
    assert (record.points, record.config, record.totals) == (before.points, before.config, before.totals)
    assert len(list((Path(run_dir) / "evaluation").glob("*/result.json"))) == 2
    text = (Path(run_dir) / "record.json").read_bytes()
    assert main(["evaluate", run_dir, "--quiet", "understanding.groups=5"]) == 0
    assert len(fake.calls) == 2 and (Path(run_dir) / "record.json").read_bytes() == text
    assert main(["evaluate", run_dir, "--quiet", "--parts", "understanding", "understanding.groups=6"]) == 0
    again = read_record(Path(run_dir) / "record.json").evaluation
    assert [(result.part, result.settings["groups"]) for result in again] == [("other", 400), ("understanding", 6)]


def test_mistakes_are_one_line_and_cost_nothing(
    run_dir: str, fake: Fake, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "unknown part 'dancing'" in refusal(capsys, run_dir, "--parts", "understanding,dancing")
    assert "understanding.group=3" in refusal(capsys, run_dir, "understanding.group=3")
    assert "out of range" in refusal(capsys, run_dir, "understanding.groups=-3")
    assert "which is not measured (parts: other)" in refusal(capsys, run_dir, "--parts", "other", "understanding.groups=3")
    assert "runs/nowhere: no such folder" in refusal(capsys, run_dir, "runs/nowhere")
    assert "neither an exported folder" in refusal(capsys, run_dir, str(tmp_path))
    assert "name a model" in refusal(capsys)
    assert "--processes 0: at least one is needed" in refusal(capsys, run_dir, "--processes", "0")
    assert "--out holds the results of one model" in refusal(capsys, run_dir, run_dir, "--out", "here")
    assert "--dance" in refusal(capsys, run_dir, "--dance")
    (Path(run_dir) / "record.json").write_text("{")
    assert "record is damaged" in refusal(capsys, run_dir)
    assert fake.calls == [] and fake.loaded == []


def test_a_part_that_cannot_be_measured_costs_no_other(run_dir: str, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.fail["understanding"] = UserError("the data is not installed")
    assert main(["evaluate", run_dir]) == 1
    assert f"not measured: {run_dir}: understanding: the data is not installed" in capsys.readouterr().out.splitlines()
    assert [result.part for result in read_record(Path(run_dir) / "record.json").evaluation] == ["other"]
    fake.fail["other"] = UserError("nor is this")
    assert main(["evaluate", run_dir, "--parts", "understanding"]) == 1
    assert [result.part for result in read_record(Path(run_dir) / "record.json").evaluation] == ["other"], "it stays"


def test_control_c_keeps_finished_parts(run_dir: str, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.fail["other"] = KeyboardInterrupt()
    assert main(["evaluate", run_dir]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert [result.part for result in read_record(Path(run_dir) / "record.json").evaluation] == ["understanding"]
    del fake.fail["other"]
    assert main(["evaluate", run_dir]) == 0
    assert [name for name, _ in fake.calls] == ["understanding", "other", "other"]


def test_several_models_are_measured_and_one_that_cannot_be_loaded_is_told(
    run_dir: str, trained: list[Path], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--experiment", "smoke", "--variant", "tuna", "tracking.enabled=false"]) == 0
    other = str(trained[1])
    fake.fail[run_dir] = UserError("every checkpoint in it is damaged")
    assert main(["evaluate", run_dir, other, "--parts", "understanding"]) == 1
    assert fake.calls == [("understanding", trained[1].name)] and len(read_record(trained[1] / "record.json").evaluation) == 1
    messages = capsys.readouterr()
    assert f"not measured: {run_dir}: every checkpoint" in messages.out and "damaged" in messages.err
    assert "every checkpoint in it is damaged" in refusal(capsys, run_dir)


def test_a_folder_without_a_record_gets_results_alone(run_dir: str, fake: Fake, tmp_path: Path) -> None:
    folder = tmp_path / "tuna2.seed=0"  # a name that looks like a setting
    folder.mkdir()
    (folder / "config.yaml").write_bytes((Path(run_dir) / "config.yaml").read_bytes())
    assert main(["evaluate", str(folder), "--parts", "other", "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml"] and list((tmp_path / "out").glob("*/result.json"))


def test_the_list_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--list", "understanding.levels=[1,2]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("understanding: Questions about scenes") for line in lines)
    assert "    understanding.groups=400 (from 0)" in lines and "    understanding.levels=[1,2] (from 1 to 3)" in lines
