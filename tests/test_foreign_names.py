"""What files of strangers name stays below their folder, and what they say is text: paths, marks of HTML, scripts."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.synthetic import synthetic_records
from tunalab.analysis.report import Beside, build, to_html
from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.files import below
from tunalab.interop.clip import prompted_images
from tunalab.interop.outcomes import checked_name
from tunalab.interop.samples import read_layout
from tunalab.official.layout import open_shards
from tunalab.records.record import write_record

OUTSIDE = ("/etc/passwd", "../secret.png", "a/../../secret.png", "..", "a\\..\\..\\secret.png", "C:\\secret.png", "C:secret.png")
OUTSIDE += ("\\\\server\\share", "link.png", "linked/secret.png", "circle/x.png", "a\0.png", "", "n" * 5000 + "/../../x")
MARKS = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;![p](https://evil/p.png)[l](https://evil/l)<https://evil/a>`*_"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder, beside it a file that is not to be reached, and links that lead there."""
    folder = tmp_path / "foreign"
    (folder / "a").mkdir(parents=True)
    for path in (folder / "a" / "b..c.png", tmp_path / "secret.png"):
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "inner.png").symlink_to("a/b..c.png")
    return folder


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_stays_below_its_folder(folder: Path, name: str) -> None:
    assert below(folder, name) is None
    data = folder / "data.jsonl"
    row = {"image": name, "prompt": "p", "input_image": name, "key": "k", "task_type": "t"}
    data.write_text(json.dumps({**row, "instruction": "i", "instruction_language": "en"}), encoding="utf-8")
    (folder / "edits.json").write_text(json.dumps({"k": {"prompt": "p", "id": name, "edit_type": "t"}}), encoding="utf-8")
    printed = "no text" if not name else "leads out of .*foreign: a path below that folder is needed"
    for read in (
        lambda: prompted_images(folder, data),
        lambda: read_layout("gedit", data, [0], folder),
        lambda: read_layout("imgedit", folder / "edits.json", [0], folder),
    ):
        with pytest.raises(UserError, match=printed):
            read()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}), encoding="utf-8")
    with pytest.raises(UserError, match="leads out of the folder"):
        open_shards(index)


@pytest.mark.parametrize("name", ["../k", "/k", "a/b", "a\\b", "C:k", ".hidden", "a\0", ".."])
def test_a_name_that_becomes_a_file_is_one(name: str) -> None:
    with pytest.raises(UserError, match="cannot be part of a file's name"):
        checked_name("here", name)


def test_names_inside_are_found(folder: Path, tmp_path: Path) -> None:
    for name in ("a/b..c.png", "inner.png", "a/./b..c.png", "not there yet.png"):
        assert below(folder, name) == folder / name
    assert below(folder, "linked/secret.png", links=True) == folder / "linked/secret.png"
    snapshot = tmp_path / "hub" / "models--x" / "snapshots" / "1"  # as the cache of the Hub has it
    (snapshot.parents[1] / "blobs").mkdir(parents=True)
    (snapshot.parents[1] / "blobs" / "f").touch()
    snapshot.mkdir(parents=True)
    (snapshot / "x.png").symlink_to("../../blobs/f")
    assert below(snapshot, "x.png") == snapshot / "x.png" and below(snapshot, "../../blobs/f") is None


def test_a_record_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's name and sweep are the names of folders and files: of samples, of the sweep's file, of its experiment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "records").mkdir()
    evil = tmp_path / "evil.yaml"
    evil.write_text("experiment: [", encoding="utf-8")
    for number, record in enumerate(synthetic_records(kinds=1, seeds=1)):
        run = replace(record.run, name=f"../../x{number}", sweep=str(evil.with_suffix("")), experiment="../evil")
        write_record(tmp_path / "records" / f"{number}.json", replace(record, run=run))
    assert main(["report", "--records", "records", "--markdown"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.yaml", "records"]
    assert "evil.yaml" not in capsys.readouterr().err


def test_a_report_shows_what_records_say_as_text() -> None:
    records = []
    for record in synthetic_records(kinds=1, variants=("tuna", "tuna2"), seeds=1):
        run = replace(record.run, name=f"{record.run.name} {MARKS}", sweep=MARKS)
        machine = {**record.environment, "cpu": MARKS, "commit": MARKS, "packages": {MARKS: MARKS}}
        config = {**record.config, "decoder": {**record.config["decoder"], "pretrained": f"{record.run.variant} {MARKS}"}}
        records.append(replace(record, run=run, environment=machine, config=config, attempts={"starts": 3, "failed": 2}))
    page = to_html(build(records, Path(MARKS), MARKS, Beside(), draw=False))
    assert MARKS not in page and "alert(1)" in page
    assert not re.search(r"<script|<img[^>]*(onerror|evil)|<a[^>]*evil", page)
