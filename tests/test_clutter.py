"""What macOS leaves beside files is no record, image, experiment or shard; and no folder is listed without knowing that."""

import ast
from pathlib import Path

import pytest
from PIL import Image

from tests.synthetic import synthetic_records
from tunalab.data.shards.files import find_files
from tunalab.errors import UserError
from tunalab.files import is_clutter, listed
from tunalab.inference.images import ENDINGS
from tunalab.records.record import find_record, read_records, write_record
from tunalab.settings.layers import names_in, read_yaml

SOURCE = Path(__file__).parent.parent / "src" / "tunalab"
# Lists files of its own making by names that clutter does not have, or all there is, to move or to measure it.
OWN = {"files.py", "training/checkpoints.py", "sweeps/cells.py", "frontends/components/store.py", "interop/lmms/published.py"}
OWN |= {"tracking/sync.py", "interop/geneval.py", "bench/run.py", "data/shards/files.py"}
OWN |= {"data/pretrained.py"}
OWN |= {"fetching.py", "data/shards/fetched.py"}  # of the Hub's own cache
OWN |= {"wheel.py"}  # a build cannot import the package


def test_every_folder_of_a_users_files_is_listed_by_the_one_function() -> None:
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("glob", "rglob", "iterdir", "listdir", "scandir", "walk")
        if not (isinstance(node.value, ast.Name) and node.value.id == "ast")
    }
    assert found <= OWN, "tunalab.files.listed"


def clutter(folder: Path) -> None:
    """As copying to a disk of another system leaves it."""
    for path in list(folder.rglob("*")):
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \xff\xfe")
    (folder / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1\xff")


def test_records_are_read_beside_clutter(tmp_path: Path) -> None:
    record = synthetic_records()[0]
    write_record(tmp_path / "kept" / f"{record.run.name}.json", record)
    clutter(tmp_path)
    assert [one.run.name for one in read_records(tmp_path / "kept")] == [record.run.name]
    assert find_record(record.run.name, tmp_path)[1].run.name == record.run.name
    with pytest.raises(UserError) as caught:
        find_record("nothing", tmp_path)
    assert "._" not in str(caught.value)


def test_experiments_and_shards_are_listed_beside_clutter(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml", "0.tar", "1.tar"):
        (tmp_path / name).write_text("seed: 1")
    clutter(tmp_path)
    assert names_in(tmp_path) == ("a", "b")
    with pytest.raises(UserError, match=r"choices in .*: a, b\)"):
        read_yaml(tmp_path / "c.yaml")
    assert [Path(file.url).name for file in find_files([f"{tmp_path}/*.tar"], "text/x")] == ["0.tar", "1.tar"]


def test_images_are_listed_beside_clutter(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    clutter(tmp_path)
    assert [path.name for path in listed(tmp_path, "*.png")] == ["a.png"]
    assert [path.name for path in listed(tmp_path) if path.suffix.lower() in ENDINGS] == ["a.png"]


@pytest.mark.parametrize(
    ("name", "is_none"), [("._a.png", True), (".DS_Store", True), ("a.png", False), (".hidden.png", False), ("_a.png", False)]
)
def test_only_what_systems_leave_is_clutter(name: str, is_none: bool) -> None:
    assert is_clutter(name) is is_none
