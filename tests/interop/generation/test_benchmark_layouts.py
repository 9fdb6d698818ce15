"""What the published benchmarks ask for becomes files where their own scripts look; a mistake in their data is one line."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tunalab.data.buckets import Buckets
from tunalab.errors import UserError
from tunalab.interop.samples import SAMPLES, read_layout

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "position",
        "include": [{"class": "dog", "count": 1}, {"class": "tie", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a tie right of a dog",
    },
]
EDIT = {"prompt": "make it red", "id": "animal/1.png", "edit_type": "adjust"}
ROW = {"key": "k1", "task_type": "color_alter", "instruction": "make it red", "instruction_language": "en"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image of 20 x 30 pixels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("animal").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save("animal/1.png")
    return tmp_path


def write_lines(path: str, lines: list) -> Path:
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Path(path)


def write_table(path: str, rows: list[dict]) -> Path:
    png = Path("animal/1.png").read_bytes()
    pq.write_table(pa.Table.from_pylist([{**row, "input_image": {"bytes": png, "path": None}} for row in rows]), path)
    return Path(path)


def test_geneval_has_a_folder_a_prompt_with_its_line(here: Path) -> None:
    items = read_layout("geneval", write_lines("meta.jsonl", GENEVAL), [7, 8], None)
    assert [(item.name, item.text, item.seeds) for item in items[:3]] == [
        ("00000/samples/0000.png", "a photo of a bench", (7,)),
        ("00000/samples/0001.png", "a photo of a bench", (8,)),
        ("00001/samples/0000.png", "a photo of two clocks", (7,)),
    ]
    for item in items:
        if item.beside:
            item.beside(here / "out")
            item.beside(here / "out")  # what is there and the same is no mistake
    for number, line in enumerate(GENEVAL):
        written = (here / f"out/0000{number}/metadata.jsonl").read_text()
        assert json.loads(written) == line and written.count("\n") == 1
    other = read_layout("geneval", write_lines("meta.jsonl", GENEVAL[1:]), [7], None)[0]
    assert other.beside is not None
    with pytest.raises(UserError, match="00000/metadata.jsonl is there and of another prompt"):
        other.beside(here / "out")


def test_dpg_is_a_grid_named_after_the_item(here: Path) -> None:
    Path("prompts").mkdir()
    for name, text in {"COCO_2": "two\n", "1": "\ufeffone"}.items():
        (Path("prompts") / f"{name}.txt").write_text(text)
    items = read_layout("dpg", Path("prompts"), range(SAMPLES["dpg"]), None)
    assert [(item.name, item.text, item.seeds) for item in items] == [
        ("1.png", "one", (0, 1, 2, 3)),
        ("COCO_2.png", "two", (0, 1, 2, 3)),
    ]
    assert read_layout("dpg", Path("prompts"), [5], None)[0].seeds == (5,)
    with pytest.raises(UserError, match="--n=2: .* a grid of 4 samples, or one"):
        read_layout("dpg", Path("prompts"), [0, 1], None)


def test_imgedit_edits_the_image_of_its_id(here: Path) -> None:
    Path("edits.json").write_text(json.dumps({"1082": EDIT, "9": EDIT}))
    first, second = read_layout("imgedit", Path("edits.json"), [0], None)
    assert (first.name, second.name, first.text) == ("1082.png", "9.png", "make it red")
    assert first.picture is not None and first.picture.read(Buckets.square(16)).shape == (16, 16, 3)
    (elsewhere, _) = read_layout("imgedit", Path("edits.json"), [0], here / "cache")
    assert elsewhere.picture is not None
    with pytest.raises(UserError, match="cache/animal/1.png: no such image file"):
        elsewhere.picture.read(Buckets.square(16))


@pytest.mark.parametrize("form", ["file", "folder", "lines"])
def test_gedit_keeps_the_source_beside_the_edit(form: str, here: Path) -> None:
    rows = [ROW, {**ROW, "instruction_language": "cn"}]
    if form == "lines":
        data = write_lines("edits.jsonl", [{**row, "input_image": "animal/1.png"} for row in rows])
    else:
        Path("data").mkdir()
        data = write_table("data/train-0.parquet", rows)
        data = Path("data") if form == "folder" else data
    first, second = read_layout("gedit", data, [3], None)
    assert (first.name, second.name) == ("fullset/color_alter/en/k1.png", "fullset/color_alter/cn/k1.png")
    assert first.text == "make it red" and first.seeds == (3,) and first.picture is not None and first.beside is not None
    assert first.picture.read(Buckets.square(16)).shape == (16, 16, 3)
    first.beside(here / "out")
    path = here / "out/fullset/color_alter/en/k1_SRCIMG.png"
    before = path.read_bytes()
    with Image.open(path) as kept, Image.open("animal/1.png") as source:
        assert np.array_equal(np.asarray(kept), np.asarray(source)), "in its own size, not the model's"
    first.beside(here / "out")
    assert path.read_bytes() == before
    Image.new("RGB", (30, 20)).save(path)
    with pytest.raises(UserError, match="k1_SRCIMG.png is there and does not say how it was made"):
        first.beside(here / "out")


LINE = GENEVAL[0]
MISTAKES = {
    "no such file": ("geneval", lambda: Path("nothing"), "GenEval's metadata: nothing cannot be read: No such file"),
    "empty": ("geneval", lambda: write_lines("a", []), "a is empty"),
    "not JSON": ("geneval", lambda: Path("animal/1.png"), "animal/1.png line 1: not"),
    "no prompt": ("geneval", lambda: write_lines("a", [LINE, {"tag": "colors"}]), "a line 2: no text under 'prompt'"),
    "tag": ("geneval", lambda: write_lines("a", [{**LINE, "tag": "size"}]), "unknown tag 'size' .choices: single_object"),
    "clauses": ("geneval", lambda: write_lines("a", [{**LINE, "include": []}]), "neither 'include' nor 'exclude'"),
    "count": ("geneval", lambda: write_lines("a", [{**LINE, "include": [{"class": "x"}]}]), "'count' .* not None"),
    "class": ("geneval", lambda: write_lines("a", [{**LINE, "include": [{"count": 1}]}]), "no text under 'class'"),
    "colour": ("geneval", lambda: write_lines("a", [{**LINE, "include": [{"count": 1, "color": "teal"}]}]), "colour 'teal'"),
    "position": (
        "geneval",
        lambda: write_lines("a", [{**LINE, "include": [{"class": "x", "count": 1, "position": ["left of", 0]}]}]),
        "number of an earlier clause",
    ),
    "no folder": ("dpg", lambda: Path("nothing"), "nothing is no folder of <item_id>.txt"),
    "no texts": ("dpg", lambda: Path("animal"), "animal is no folder of <item_id>.txt"),
    "no edits": ("imgedit", lambda: Path("nothing"), "nothing is missing"),
    "edit without id": (
        "imgedit",
        lambda: write_lines("a", [{"k": {"prompt": "p", "edit_type": "x"}}]),
        "edit k: no text under 'id'",
    ),
    "edit elsewhere": ("imgedit", lambda: write_lines("a", [{"../k": EDIT}]), "'../k' cannot be part of a file's name"),
    "no table": ("gedit", lambda: Path("nothing"), "nothing is neither a Parquet file"),
    "no Parquet": ("gedit", lambda: Path("animal/1.png"), "no whole Parquet file"),
    "no column": ("gedit", lambda: write_table("a.parquet", [{"key": "k"}]), "no column task_type"),
    "twice": ("gedit", lambda: write_table("a.parquet", [ROW, ROW]), "two samples would be fullset/color_alter/en/k1.png"),
    "row elsewhere": ("gedit", lambda: write_table("a.parquet", [{**ROW, "key": "a/b"}]), "'a/b' cannot be part"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_in_the_data_is_one_line(name: str, here: Path) -> None:
    benchmark, make, words = MISTAKES[name]
    with pytest.raises(UserError, match=words) as caught:
        read_layout(benchmark, make(), range(SAMPLES[benchmark]), None)
    assert "\n" not in str(caught.value)


def test_a_table_whose_images_are_paths_is_refused_when_read(here: Path) -> None:
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema([*((key, pa.string()) for key in ROW), ("input_image", image)])
    pq.write_table(pa.Table.from_pylist([{**ROW, "input_image": {"bytes": None, "path": "x"}}], schema), "none.parquet")
    (item,) = read_layout("gedit", Path("none.parquet"), [0], None)
    assert item.picture is not None
    with pytest.raises(UserError, match="none.parquet row 1: input_image has no bytes"):
        item.picture.read(Buckets.square(16))


def test_a_damaged_image_of_a_table(here: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**ROW, "input_image": {"bytes": b"no image", "path": None}}]), "bad.parquet")
    (item,) = read_layout("gedit", Path("bad.parquet"), [0], None)
    assert item.picture is not None
    with pytest.raises(UserError, match="bad.parquet row 1: unreadable image"):
        item.picture.read(Buckets.square(16))
