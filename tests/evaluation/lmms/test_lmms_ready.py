from configparser import ConfigParser
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from tunalab.errors import UserError
from tunalab.evaluation.lmms import ready
from tunalab.evaluation.lmms.catalogue import BENCHMARKS
from tunalab.evaluation.lmms.published import measure
from tunalab.evaluation.lmms.ready import write_ready
from tunalab.evaluation.settings import PublishedSettings
from tunalab.evaluation.subject import Subject

OURS = {"include", "dataset_path", "task"}  # others change what the stock task computes, and their file says why


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As if lmms-eval stood in a folder."""
    spec = ModuleSpec("lmms_eval", None, origin=str(tmp_path / "lmms_eval" / "__init__.py"))
    monkeypatch.setattr(ready, "find_spec", lambda name: spec)
    return tmp_path / "lmms_eval" / "tasks"


@pytest.mark.parametrize("task", list(BENCHMARKS))
def test_ready_files_point_at_the_copies_and_at_the_stock_files(task, installed, tmp_path):
    yaml.SafeLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    write_ready(tmp_path / "data", [task], tmp_path / "tasks")
    text = (tmp_path / "tasks" / f"{task}.yaml").read_text()
    held = yaml.safe_load(text)
    assert held["task"] == f"{task}_local" and held["dataset_path"] == str(tmp_path / "data" / task)
    assert held["include"].startswith(str(installed)) and held["include"].endswith(".yaml")
    assert ("#" in text) == (bool(held.keys() - OURS) or task == "visulogic")


def test_a_ready_file_for_each_benchmark_and_no_other():
    shipped = files("tunalab.evaluation.lmms").joinpath("tasks").iterdir()
    assert {Path(path.name).stem for path in shipped} == set(BENCHMARKS)


def test_what_is_missing_is_one_line(subject: Subject, installed, tmp_path):
    with pytest.raises(UserError, match=r"^published\.data=FOLDER says where the benchmarks are"):
        measure(subject, PublishedSettings())
    (tmp_path / "ai2d").mkdir()
    settings = PublishedSettings(data=str(tmp_path), tasks=["ai2d", "mmvp", "gqa"])
    missing = r"mmvp \(a copy of lmms-lab-eval/MMVP\), gqa \(a copy of lmms-lab-encoder/GQA\)"
    with pytest.raises(UserError, match=f"has no folder {missing}: put it there, or name other tasks in published.tasks$"):
        measure(subject, settings)


def test_without_the_extra(subject: Subject, monkeypatch, tmp_path):
    monkeypatch.setattr(ready, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need lmms-eval: pip install --constraint constraints\.txt '\.\[lmms\]'$"):
        measure(subject, PublishedSettings(data=str(tmp_path)))


def test_the_model_is_announced_to_lmms_eval():
    settings = ConfigParser()
    settings.read(Path(__file__).parents[3] / "setup.cfg")
    name, _, where = settings["options.entry_points"]["lmms_eval.models"].strip().partition(" = ")
    module, _, function = where.partition(":")
    assert name == "tunalab" and callable(getattr(import_module(module), function))
