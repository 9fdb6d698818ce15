from configparser import ConfigParser
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from tunalab.errors import UserError
from tunalab.evaluation.parts import PublishedSettings
from tunalab.evaluation.published import BENCHMARKS
from tunalab.evaluation.subject import Subject
from tunalab.interop.lmms import published as ready
from tunalab.interop.lmms.published import copy_identity, pieces, write_ready

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
    write_ready(tmp_path / "data", task, tmp_path / "tasks")
    text = (tmp_path / "tasks" / f"{task}.yaml").read_text()
    held = yaml.safe_load(text)
    assert held["task"] == f"{task}_local" and held["dataset_path"] == str(tmp_path / "data" / task)
    assert held["include"].startswith(str(installed)) and held["include"].endswith(".yaml")
    assert ("#" in text) == (bool(held.keys() - OURS) or task == "visulogic")


def test_a_ready_file_for_each_benchmark_and_no_other():
    shipped = files("tunalab.interop.lmms").joinpath("tasks").iterdir()
    assert {Path(path.name).stem for path in shipped} == set(BENCHMARKS)


def test_what_is_missing_is_one_line(subject: Subject, installed, tmp_path):
    with pytest.raises(UserError, match=r"^published\.data=FOLDER says where the benchmarks are"):
        pieces(PublishedSettings())
    with pytest.raises(UserError, match=r"^published\.data=.*nowhere: no such folder"):
        pieces(PublishedSettings(data=str(tmp_path / "nowhere")))
    (tmp_path / "ai2d").mkdir()
    _, missing = pieces(PublishedSettings(data=str(tmp_path), tasks=["ai2d", "gqa"]))
    messages = r"has no folder gqa \(a copy of lmms-lab-encoder/GQA\): put it there, or name other tasks in published.tasks$"
    with pytest.raises(UserError, match=messages):
        missing.measure(subject)


def test_without_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(ready, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need lmms-eval: pip install --constraint constraints\.txt '\.\[lmms\]'$"):
        pieces(PublishedSettings(data=str(tmp_path)))


def test_what_a_result_of_one_task_hangs_on(installed, tmp_path, monkeypatch):
    """Not on other tasks, the place of the data or the size of batches; on the judge where one is asked."""
    for place in ("here", "there"):
        for task in ("ai2d", "mmvet"):
            (tmp_path / place / task / ".cache").mkdir(parents=True)
            (tmp_path / place / task / "test.parquet").write_bytes(b"rows")
    (tmp_path / "there" / "ai2d" / ".cache" / "lock").write_bytes(place.encode())

    def settings(**given):
        return {piece.name: piece.settings for piece in pieces(PublishedSettings(**given))}

    both = settings(data=str(tmp_path / "here"), tasks=["ai2d", "mmvet", "ai2d"])
    assert list(both) == ["published-ai2d", "published-mmvet"]
    alone = settings(data=str(tmp_path / "there"), tasks=["ai2d"], batch_tokens=7)
    assert alone["published-ai2d"] == both["published-ai2d"]
    monkeypatch.setenv("TUNALAB_JUDGE_MODEL", "another")
    judged = settings(data=str(tmp_path / "here"), tasks=["ai2d", "mmvet"])
    assert judged["published-ai2d"] == both["published-ai2d"] and judged["published-mmvet"] != both["published-mmvet"]
    assert settings(data=str(tmp_path / "here"), tasks=["ai2d"], limit=3) != {"published-ai2d": both["published-ai2d"]}
    both = settings(data=str(tmp_path / "here"), tasks=["ai2d", "mmmu_val"])
    stock = settings(data=str(tmp_path / "here"), tasks=["ai2d", "mmmu_val"], rules="stock")
    changed = {name for name in both if stock[name] != both[name]}
    assert changed == {"published-mmmu_val"}, "of a benchmark with one rule what was measured stays"
    identity = copy_identity(tmp_path / "here" / "ai2d")
    (tmp_path / "here" / "ai2d" / "test.parquet").write_bytes(b"row")
    assert copy_identity(tmp_path / "here" / "ai2d") != identity


def test_the_model_is_announced_to_lmms_eval():
    settings = ConfigParser()
    settings.read(Path(__file__).parents[3] / "setup.cfg")
    name, _, where = settings["options.entry_points"]["lmms_eval.models"].strip().partition(" = ")
    module, _, function = where.partition(":")
    assert name == "tunalab" and callable(getattr(import_module(module), function))
