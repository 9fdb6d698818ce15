"""From outside, without a fork: the pages of docs/extend as a package, through train, sweep, figure, table, report and MLflow."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from mlflow.utils.validation import _validate_metric_name
from PIL import Image as PillowImage

from tests.sweeps.conftest import make_record
from tests.training.conftest import quick_components as quick_components
from tests.training.conftest import quick_config
from tests.training.conftest import use_quick_components as use_quick_components
from tunalab.cli import main
from tunalab.data.documents import Image, Text, Unfit
from tunalab.data.scenes import BENCHMARKS
from tunalab.data.sources import build_source, check_sources, kind_of, probe
from tunalab.errors import UserError
from tunalab.evaluation.benchmarks import benchmarks, check_benchmarks, of_kind, outside, score
from tunalab.evaluation.parts import UnderstandingSettings
from tunalab.evaluation.understanding import chosen_benchmarks
from tunalab.records.record import read_records, write_record
from tunalab.settings.loading import laid_over, to_plain
from tunalab.settings.schema import RunConfig
from tunalab.sweeps.cells import read_history
from tunalab.sweeps.grid import Cell
from tunalab.sweeps.launcher import Work, launcher, read_launch
from tunalab.tracking.sync import point_metrics

PAGES = Path(__file__).parents[1] / "docs" / "extend"
# Page -> the file that it writes, and what it is as an entry point.
FILES = {
    "frontend": ("conv", "Conv"),
    "corpus": ("stripes", "Stripes"),
    "benchmark": ("directions", "Directions"),
    "question": ("corners", "corner"),
    "launcher": ("polite", "OneByOne"),
}
KIT = "kit-of-mine 0.3"
# Trains in this process: a second one would load torch again.
INSIDE = """
from dataclasses import dataclass
from tunalab.cli import main
from tunalab.sweeps.launcher import Outcome, Result

@dataclass(frozen=True)
class Inside:
    def run(self, work):
        return Result([Outcome(cell, "failed" if main(work.command(cell)[3:]) else "finished") for cell in work.cells])
"""


def blocks(page: str, language: str) -> list[str]:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def page_settings(*pages: str) -> dict[str, object]:
    """What the pages' experiments say of ``data`` and ``evaluation``."""
    merged: dict[str, dict[str, object]] = {"data": {}, "evaluation": {}}
    for page in pages:
        found = yaml.safe_load(blocks(page, "yaml")[-1 if page == "benchmark" else 0])  # of it the first is of a file
        for group, inside in merged.items():
            inside |= found.get(group, {})
    return {f"{group}__{key}": value for group, inside in merged.items() for key, value in inside.items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: the files of the pages, and a package of them, installed with its entry points."""
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "site" / "kit_of_mine"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    lines = []
    for page, (file, member) in FILES.items():
        (code,) = blocks(page, "python")
        for place in (tmp_path, package):
            (place / f"{file}.py").write_text(code, encoding="utf-8")
        (group,) = re.findall(r'entry-points."(tunalab\.\w+)"', "".join(blocks(page, "toml")))
        lines += [f"[{group}]", f"my_{page} = kit_of_mine.{file}:{member}"]
    (package / "inside.py").write_text(INSIDE)
    info = tmp_path / "site" / "kit_of_mine-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kit-of-mine\nVersion: 0.3\n")
    (info / "top_level.txt").write_text("kit_of_mine\n")
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    forget_package(monkeypatch)
    return tmp_path


def forget_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "kit_of_mine"]:
        monkeypatch.delitem(sys.modules, name)


def config(**changes: object) -> RunConfig:
    return quick_config(**(page_settings("corpus", "benchmark", "question") | changes))


@pytest.mark.slow
def test_a_package_goes_through_sweep_figure_table_report_and_mlflow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = to_plain(
        config(
            data__corpora={"stripes": {"name": "my_corpus", "arguments": {"count": 12}}},
            data__questions={"corner": {"name": "my_question"}},
            evaluation__benchmarks={"Line directions": {"name": "my_benchmark", "limit": 4}},
            stages={"only": {"tokens": 600, "mix": {"corpus/stripes": 1, "questions/corner": 1, "scenes/text_to_image": 0.2}}},
        )
    )
    for key in ("revision", "experiment", "variant", "label", "colour", "frontend"):
        del plain[key]
    files = {
        "experiments/study.yaml": plain,
        "variants/convolutions.yaml": {"frontend": {"name": "my_frontend", "patch": 8}},
        "sweeps/study.yaml": {
            **{"experiment": "study", "variants": ["convolutions"], "seeds": [0]},
            **{"figure": "figure6", "records": "results/study"},
        },
        "sweeps/launch/inside.yaml": {"launcher": "kit_of_mine.inside:Inside"},
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(yaml.safe_dump(text, sort_keys=False))

    assert main(["sweep", "study", "--launch", "inside"]) == 0
    made, committed = folder / "runs" / "study", folder / "results" / "study"
    records = read_records(committed)
    assert [(one.look.label, one.look.source) for one in records] == [("Convolutions", f"kit_of_mine.conv:Conv of {KIT}")]
    for record in records:
        scores, read = record.points[-1].benchmarks, record.data["mix"]["only"]["documents"]
        assert set(scores) == {*BENCHMARKS, "corner", "Line directions"}
        assert (scores["Line directions"].n, scores["Line directions"].chance) == (4, 0.25)
        assert read.keys() == {"corpus/stripes", "questions/corner", "scenes/text_to_image"} and min(read.values()) > 0
        assert record.data["outside"]["evaluation.benchmarks.Line directions"] == f"kit_of_mine.directions:Directions of {KIT}"
        assert record.environment["data"]["corpus/stripes"] == f"kit_of_mine.stripes:Stripes of {KIT}"
        names = {name for _, _, metrics in point_metrics(record.points, record.config) for name in metrics}
        assert {"benchmark/Line directions", "accuracy/corner"} <= names
        for name in names:
            _validate_metric_name(name)

    # Reported from the records alone: the package is not at hand.
    forget_package(monkeypatch)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(folder / "site")])
    assert main(["report", "--records", str(committed), "--out", str(folder / "report.html")]) == 0
    for path in (made / "accuracy.md", made / "figure6.html", folder / "report.html"):
        text = path.read_text(encoding="utf-8")
        assert all(word in text for word in ("Line directions", "corner", "Convolutions")), path
    assert "#7F3C8D" in (made / "figure6.html").read_text(encoding="utf-8")


def test_the_pages_file_of_questions_is_a_benchmark(folder: Path) -> None:
    (lines,) = blocks("benchmark", "json")
    (folder / "q.jsonl").write_text(lines)
    (folder / "photos").mkdir()
    for number in range(1, 5):
        PillowImage.new("RGB", (60, 40), (50 * number,) * 3).save(folder / f"photos/{number}.jpg")
    settings = yaml.safe_load(blocks("benchmark", "yaml")[0])["evaluation"]["benchmarks"]
    made = outside("animals", quick_config(evaluation__benchmarks=settings), 200)
    assert made.describe()["items"] == 3 and score(made, ["it is a dog", "three", "yes", "no"]).accuracy == 1.0


def test_every_form_of_a_name_is_the_same_class(folder: Path) -> None:
    sources = []
    for name in ("stripes.py:Stripes", "kit_of_mine.stripes:Stripes", "my_corpus"):
        corpus = build_source("corpus/s", config(data__corpora={"s": {"name": name}}).data, seed=3)
        assert corpus.name == "corpus/s" and corpus.length == 24
        assert corpus.document(5).segments[2] == Text("blue stripes, upright", target=True)
        sources.append(corpus.source)
    assert re.fullmatch(r"Stripes of stripes.py, sha256 [0-9a-f]{12}", sources[0])
    assert sources[1:] == [f"kit_of_mine.stripes:Stripes of {KIT}"] * 2


BROKEN = """
from tunalab.data.documents import Document, Image, Question, Text
import numpy as np
class NoKind:
    def document(self, index): ...
class Endless:
    kind, length = "text", None
    def document(self, index): return Document("text", (Text(f"number {index}", target=True),))
class Short(Endless):
    length = "3"
class Wrong(Endless):
    def document(self, index): return "a text"
class Grey(Endless):
    def document(self, index): return Document("caption", (Image(np.zeros((32, 32), np.uint8)),))
class Wide(Endless):
    kind = "caption"
    def document(self, index): return Document("caption", (Image(np.zeros((40, 64, 3), np.uint8)), Text("black", target=True)))
class Silent(Endless):
    def document(self, index): return Document("caption", (Image(np.zeros((32, 32, 3), np.uint8)), Text("black")))
class Many(Endless):
    def document(self, index): return Document("caption", (*[Image(np.zeros((32, 32, 3), np.uint8))] * 9, Text("b", target=True)))
class Textless(Endless):
    def document(self, index): return Document("text", (Text(None, target=True),))
class Counted(Endless):
    length = np.int64(12)
class NoChance:
    def questions(self): return [Question(np.zeros((8, 8, 3), np.uint8), "what?", "black", 0)]
class Sure(NoChance):
    chance = 1.0
class Texts:
    chance = 0.5
    def questions(self): return ["what?"]
class Narrow(NoChance):
    chance = 0.5
class Also(Narrow):
    def questions(self): return [Question(np.zeros((8, 8, 3), np.uint8), "what?", "black", 0, ("black", "dark", "red"), ("dark",))]
class Capital(Narrow):
    def questions(self): return [Question(np.zeros((8, 8, 3), np.uint8), "what?", "Yes", 0, ("yes", "no"))]
class Alone(Narrow):
    def questions(self): return [Question(np.zeros((8, 8, 3), np.uint8), "what?", "yes", 0, ("yes",))]
def nothing(scene, rng): return None
def half(scene, rng): return "what?", "that"
class NoRun: pass
"""


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "data.corpora.c.name=my_corpsu",
            r"data.corpora.c.name=my_corpsu is not known .choices: my_corpus, .*did you mean my_corpus",
        ),
        ("data.corpora.c.name=", "data.corpora.c.name= is not known .choices: my_corpus"),
        ("data.corpora.c.name=broken.py:NoKind", "NoKind of .* is not a corpus: a class with document and kind .caption, vqa"),
        ("data.corpora.c.name=broken.py:Endles", "has no Endles .choices there: Endless, Short, Wrong, Grey, Wide"),
        ("data.corpora.c.name=broken.py:Short", "corpus/c: its length is '3' .choices: a whole number from 1; None"),
        ("data.corpora.c.name=broken.py:Wrong", "corpus/c: document.0. is 'a text', not a Document"),
        ("data.corpora.c.name=broken.py:Silent", "corpus/c: document.0. has nothing to learn: no text with target=True, no image"),
        ("data.corpora.c.name=broken.py:Textless", "corpus/c: document.0.: text must be a string, not NoneType"),
        ("evaluation.benchmarks.b.name=broken.py:Capital", "question 0: its answer 'Yes' is none of its options yes, no"),
        ("evaluation.benchmarks.b.name=broken.py:Alone", "question 0: its options must be two or more different ones, got yes"),
        ("data.corpora.c.name=broken.py:Grey", r"corpus/c: document.0.: an image must be an array .*not .32, 32. uint8"),
        (
            "data.corpora.stripes.arguments.cuont=3",
            "data.corpora.stripes.arguments.cuont: Stripes takes no such argument .choices: count",
        ),
        ("evaluation.benchmarks.b.name=broken.py:nothing", "nothing of .* is not a benchmark: a class with questions"),
        ("evaluation.benchmarks.b.name=broken.py:NoChance", "evaluation.benchmarks.b: its chance is None"),
        ("evaluation.benchmarks.b.name=broken.py:Sure", "its chance is 1.0 .choices: a share from 0 to below 1"),
        ("evaluation.benchmarks.b.name=broken.py:Texts", "item 0 of its questions is 'what.', not a Question"),
        (
            "evaluation.benchmarks.b.limit=2",
            "evaluation.benchmarks.b: a file of questions .path., a class .name. or a task must be given",
        ),
        (
            "evaluation.benchmarks.b={name: broken.py:Narrow, path: q.jsonl}",
            "evaluation.benchmarks.b: .* must be given, and not two of them",
        ),
        (
            "evaluation.benchmarks.count.name=my_benchmark",
            "evaluation.benchmarks.count: a benchmark has this name .taken: .*charts",
        ),
        ("evaluation.benchmarks.corner.name=my_benchmark", "evaluation.benchmarks.corner: a benchmark has this name"),
        ("data.questions.a@b.name=my_question", "data.questions.a@b: figures and MLflow call it so: letters"),
        ("data.questions.q.name=broken.py:nothing", "data.questions.q: it asks nothing about 500 scenes of level 1"),
        ("data.questions.q.name=broken.py:half", "data.questions.q: .*'what.', 'that'.* was returned"),
    ],
)
def test_a_mistake_is_one_line(setting: str, message: str, folder: Path) -> None:
    (folder / "broken.py").write_text(BROKEN)
    key, _, value = setting.partition("=")
    with pytest.raises(UserError, match=message) as raised:
        wrong = laid_over(config(evaluation__groups=1), f"{key}={value}")
        check_sources(wrong)
        check_benchmarks(wrong)
        benchmarks(wrong)
        for name in (*(f"corpus/{key}" for key in wrong.data.corpora), *(f"questions/{key}" for key in wrong.data.questions)):
            probe(build_source(name, wrong.data, 0))
    assert "\n" not in str(raised.value)


def test_documents_come_at_the_size_of_the_run_and_by_their_index(folder: Path) -> None:
    (folder / "broken.py").write_text(BROKEN)
    data = config(data__corpora={"wide": {"name": "broken.py:Wide"}, "endless": {"name": "broken.py:Endless"}}).data
    image = build_source("corpus/wide", data, 0).document(0).segments[0]
    assert isinstance(image, Image) and image.pixels_HWC.shape == (32, 32, 3)
    assert build_source("corpus/endless", data, 0).length is None
    assert (kind_of("corpus/endless", data), kind_of("questions/corner", data), kind_of("copy/corpus/wide", data)) == (
        "text",
        "vqa",
        "edit",
    )
    first, again = (build_source("questions/corner", config().data, 1) for _ in range(2))
    for index in (0, 7):
        one, two = first.document(index), again.document(index)
        assert one.segments[1:] == two.segments[1:] and (one.segments[0].pixels_HWC == two.segments[0].pixels_HWC).all()
        prompts = [segment.text for segment in one.segments[1::2]]
        assert 1 <= len(prompts) == len(set(prompts)) <= data.questions_per_image
        assert all("corner" in prompt for prompt in prompts)


def test_documents_that_do_not_fit_and_other_right_answers_are_what_they_are_elsewhere(folder: Path) -> None:
    (folder / "broken.py").write_text(BROKEN)
    data = config(data__corpora={"many": {"name": "broken.py:Many"}, "counted": {"name": "broken.py:Counted"}}).data
    with pytest.raises(Unfit, match="9 images, a document takes at most 8"):
        build_source("corpus/many", data, 0).document(0)
    assert build_source("corpus/counted", data, 0).length == 12
    also = outside("b", config(evaluation__benchmarks={"b": {"name": "broken.py:Also"}}))
    assert [score(also, [reply]).correct for reply in ("black", "Dark", "red")] == [1, 1, 0]


def test_a_benchmark_is_asked_in_groups_and_judges_by_itself(folder: Path) -> None:
    study = config(evaluation__groups=40)
    found = {one.name: one for one in benchmarks(study)}
    own, corner = found["Line directions"], found["corner"]
    assert (len(own.questions), own.chance) == (8, 0.25)
    answers = [f"{question.answer.upper()}, surely" for question in own.questions]
    assert score(own, answers).correct == 4 and score(own, [*answers[:-1], "?"]).correct == 3
    assert len(corner.questions) == 40 and 1 / 6 <= corner.chance < 0.6
    assert len({question.image_HWC.tobytes() for question in corner.questions}) == 40

    cells = chosen_benchmarks(study, UnderstandingSettings(groups=3, levels=[1], easy_vqa=0))
    after = {(split, build().name): len(build().questions) for split, build in cells if build.func in (of_kind, outside)}
    assert after == {("test", "corner"): 3, ("composition", "corner"): 3, ("test", "Line directions"): 12}


def test_a_launcher_of_a_file(folder: Path) -> None:
    (folder / "broken.py").write_text(BROKEN)
    (page,) = blocks("launcher", "yaml")
    (folder / "polite.yaml").write_text(page)
    launch = read_launch(folder / "polite.yaml")
    assert launch.prefix == ["nice", "-n", "10"]
    with pytest.raises(UserError, match="^--parallel 2: the launcher OneByOne has no field parallel$"):
        launcher(launch, threads=1, parallel=2)

    cells = [Cell(name, "s", "scenes", "tuna", 0, {}, [], folder / name) for name in ("good", "bad", "done")]
    write_record(folder / "done" / "record.json", make_record(cells[2]))
    write_record(folder / "made.json", make_record(cells[0]))
    codes = {"good": "import shutil; shutil.copy('made.json', 'good/record.json')", "bad": "raise SystemExit('no luck')"}
    work = Work(cells, lambda cell: [sys.executable, "-c", codes[cell.name]], dict.fromkeys(["good", "bad", "done"], "hash"))
    result = launcher(launch, threads=1).run(work)
    assert [(one.state, one.reason) for one in result.outcomes] == [("finished", ""), ("failed", "no luck"), ("skipped", "")]
    assert [read_history(cell.run_dir).count("failed") for cell in cells] == [0, 1, 0] and result.exit_code == 1

    for text, message in (
        ("launcher: broken.py:NoRun", "polite.yaml: launcher=broken.py:NoRun: NoRun of .* is not a launcher: a dataclass with"),
        ("{launcher: my_launcher, prefix: nice}", "polite.yaml: field prefix must be a list, got 'nice'"),
        ("{launcher: my_launcher, nodes: 2}", "polite.yaml: field nodes must be one of prefix, got 'nodes'"),
    ):
        (folder / "polite.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            read_launch(folder / "polite.yaml")
