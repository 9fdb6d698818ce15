"""A front-end from outside, the class of docs/extend/frontend.md: of a file, a package, an entry point; to figure and table."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.synthetic import synthetic_records
from tests.training.conftest import quick_config

from tunalab.analysis.effects import contrasts, effects_table, factors_and_cells
from tunalab.analysis.figures import draw
from tunalab.analysis.tables import write_tables
from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.frontends.registry import build_frontend, frontend_class, look_of
from tunalab.model.unified import build_model
from tunalab.records.labels import Legend
from tunalab.records.record import read_record, write_record
from tunalab.settings.loading import config_hash, to_plain
from tunalab.settings.schema import FrontEndConfig
from tunalab.tracking.sync import run_tags
from tunalab.trained.folder import RunParts, assemble
from tunalab.training.points import keep_point, point_file

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "extend" / "frontend.md").read_text(encoding="utf-8"), flags=re.DOTALL)
CODE = next(text for language, text in BLOCKS if language == "python")


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside the tree, also the working directory, with the page's file, a package of it and its entry point."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conv.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "site" / "convs_of_mine").mkdir(parents=True)
    (tmp_path / "site" / "convs_of_mine" / "__init__.py").write_text(CODE, encoding="utf-8")
    info = tmp_path / "site" / "convs_of_mine-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: convs-of-mine\nVersion: 1.5\n")
    (info / "top_level.txt").write_text("convs_of_mine\n")
    (info / "entry_points.txt").write_text("[tunalab.frontends]\nconv = convs_of_mine:Conv\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "convs_of_mine", raising=False)
    return tmp_path


def settings() -> dict[str, object]:
    return dict(yaml.safe_load(next(text for language, text in BLOCKS if language == "yaml"))["frontend"])


def test_figure_and_table_with_its_own_label(outside: Path) -> None:
    config = quick_config(variant="tuna2", frontend=settings())
    config.variant = "convolutions"
    look = look_of(config)
    assert (look.label, look.colour) == ("Convolutions", "#7F3C8D")
    assert look.factors == {"encoder": "none", "VAE": "none", "patch embedding": "convolutions"}
    assert re.fullmatch(r"Conv of conv.py, sha256 [0-9a-f]{12}", look.source)
    tags = run_tags("a", to_plain(config), "h", {}, look)
    assert (tags["front_end"], tags["front_end.patch embedding"]) == ("Convolutions", "convolutions")

    # Beside shipped ones, as records alone: the class is not at hand.
    (outside / "conv.py").unlink()
    records = []
    for one in synthetic_records(variants=("tuna2", "other"), seeds=2, kinds=2):
        if one.run.variant == "other":
            plain = {**one.config, "variant": "convolutions", "frontend": to_plain(config)["frontend"]}
            one = replace(one, run=replace(one.run, variant="convolutions"), config=plain, frontend=look)
        records.append(one)
    folder = outside / "out"
    write_tables(records, folder, "test")
    head = (folder / "accuracy.md").read_text().splitlines()[2]
    assert "| Tuna-2 | Convolutions |" in head
    table = effects_table(records)
    assert {(row["factor"], row["level"]) for row in table.to_dict("records")} == {("patch embedding", "convolutions")}
    assert Legend(records).colours()["convolutions"] == "#7F3C8D"
    page = next(path for path in draw("figure6", records, folder, "test") if path.suffix == ".html")
    assert "Convolutions" in page.read_text() and "#7F3C8D" in page.read_text()


def test_three_ways_to_name_it(outside: Path) -> None:
    found = {name: frontend_class(name) for name in ("conv.py:Conv", "convs_of_mine:Conv", "conv")}
    assert {one.__name__ for one in found.values()} == {"Conv"} and found["conv"] is found["convs_of_mine:Conv"]
    assert frontend_class(str(outside / "conv.py") + ":Conv") is found["conv.py:Conv"]
    assert look_of(quick_config(frontend={"name": "conv"})).source == "convs_of_mine:Conv of convs-of-mine 1.5"
    assert build_frontend(FrontEndConfig(name="conv"), 24, 32).space.token_pixels == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convv", r"is not known \(choices: bottleneck, conv, patch_embed, .*path/to/file.py:Class\); did you mean conv\?$"),
        ("there.py:Conv", "there is no file .*there.py$"),
        ("conv.py:Cov", r".* has no Cov \(choices there: Conv\)$"),
        ("conv.py:Look", "Look of .* is not a VisualFrontEnd$"),
        ("nowhere_at_all:Conv", "there is no module nowhere_at_all"),
        ("broken.py:Conv", "broken.py cannot be imported: SyntaxError"),
    ],
)
def test_what_cannot_be_found_is_one_line(name: str, message: str, outside: Path) -> None:
    (outside / "broken.py").write_text("def (")
    with pytest.raises(UserError, match=f"^frontend.name={re.escape(name)}:? {message}") as raised:
        frontend_class(name)
    assert "\n" not in str(raised.value)


def test_check_frontend_says_what_is_broken(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-frontend", "conv.py:Conv", "frontend.patch=4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Convolutions (Conv of conv.py") and all(line.startswith("    ok  ") for line in lines[1:])
    turned = CODE.replace("h_BDhw.flatten(2)", "h_BDhw.transpose(2, 3).flatten(2)").replace("self.mix(", "self.mix(0 * ")
    (outside / "turned.py").write_text(turned, encoding="utf-8")
    assert main(["check-frontend", "turned.py:Conv"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed")]
    assert len(failed) == 2 and "row-major: a change of the patch" in failed[0] and "embed has no gradient in x" in failed[1]


BUFFERS = f"""
import torch
{CODE}

class Indexed(Conv):
    def __init__(self, width, patch=4):
        super().__init__(width, patch)
        self.register_buffer("index", (torch.arange(1024) * 7 + 301) % 1024)

class Random(Conv):
    def __init__(self, width, patch=4):
        super().__init__(width, patch)
        self.register_buffer("phase", torch.randn(width), persistent=False)
"""


def test_a_buffer_that_is_random_and_not_saved_is_refused(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (outside / "buffers.py").write_text(BUFFERS, encoding="utf-8")
    assert main(["check-frontend", "buffers.py:Indexed", "frontend.patch=4"]) == 0
    assert main(["check-frontend", "buffers.py:Random", "frontend.patch=4"]) == 1
    (failed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed")]
    assert "phase: random, and not saved with the model" in failed


def test_buffers_of_whole_numbers_stay_what_they_are_where_a_model_is_kept_and_loaded(outside: Path) -> None:
    (outside / "buffers.py").write_text(BUFFERS, encoding="utf-8")
    config = quick_config(frontend={"name": "buffers.py:Indexed", "patch": 4})
    model = build_model(config, None, 512)
    expected = model.frontend.index.clone()
    keep_point(outside / "run", model, 10, 1, "all")
    kept = load_file(point_file(outside / "run", 10))
    assert torch.equal(kept["frontend.index"], expected) and kept["frontend.index"].dtype == torch.int64
    made = assemble(config, RunParts(), 512, kept, "a point")
    assert torch.equal(made.frontend.index, expected)


def test_label_and_colour_of_a_variant_file_enter_no_hash(outside: Path, tmp_path: Path) -> None:
    plain, named = quick_config(), quick_config(label="Mine", colour="#123456")
    assert config_hash(plain) == config_hash(named) and to_plain(plain) != to_plain(named)
    assert (look_of(named).label, look_of(named).colour, look_of(plain).label) == ("Mine", "#123456", "Tuna-2")
    with pytest.raises(UserError, match="^colour=red is not of the form #RRGGBB"):
        quick_config(colour="red")
    (record,) = synthetic_records(variants=("tuna2",), seeds=1, kinds=1)
    write_record(tmp_path / "r.json", replace(record, frontend=look_of(named)))
    assert read_record(tmp_path / "r.json").look == look_of(named)
    text = json.loads((tmp_path / "r.json").read_text())
    text["frontend"]["colour"] = "red;<script>"
    (tmp_path / "r.json").write_text(json.dumps(text))
    with pytest.raises(UserError, match="colour 'red;<script>' is not of the form"):
        read_record(tmp_path / "r.json")


def test_committed_ablations_keep_their_effects_under_foreign_names() -> None:
    paths = sorted((ROOT / "results" / "ablations" / "front_ends").glob("*-seed*.json"))
    records = [read_record(path, evaluation=False) for path in paths]
    names = {name: f"foreign_{number}" for number, name in enumerate(sorted({one.run.variant for one in records}))}

    def foreign(one, frontend):
        variant = names[one.run.variant]
        config = {**one.config, "variant": variant, "frontend": {**one.config["frontend"], **frontend(one)}}
        return replace(one, run=replace(one.run, variant=variant), config=config)

    def compared(records):
        return [(one.kind, one.factor, one.level, one.reference, one.with_) for one in contrasts(*factors_and_cells(records))]

    assert {factor for _, factor, *_ in compared(records)} >= {"encoder", "VAE", "patch embedding"}
    assert compared([foreign(one, lambda _: {}) for one in records]) == compared(records)
    # And of classes that nobody here has: what tells the front-ends apart is then their name.
    strangers = [one for one in records if one.look.factors["encoder"] == one.look.factors["VAE"] == "none"]
    far = [
        foreign(replace(one, frontend=None), lambda of: {"name": f"far.away:{of.config['frontend']['name']}"}) for one in strangers
    ]
    assert {factor for _, factor, *_ in compared(far)} == {"front-end", "decoder"}
