"""Every source name builds the corpus of that name; every mistake is named with the choices."""

import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunalab.data.documents import KINDS, Image, Text
from tunalab.data.easy_vqa import EasyVqaCorpus
from tunalab.data.sources import build_source, check_sources, open_sources, source_names
from tunalab.errors import UserError
from tunalab.evaluation.along import held_out_of
from tunalab.settings.loading import load_config
from tunalab.settings.schema import DataConfig, ManifestConfig, RunConfig, StageConfig, TextConfig


def settings(**manifests: ManifestConfig) -> DataConfig:
    return DataConfig(image_size=32, levels=[0.6, 0.3, 0.1], questions_per_image=2, manifests=manifests)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNALAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"conversations": talk}) + "\n")
    return tmp_path / "data.jsonl"


def test_every_name_builds_its_corpus(path: Path) -> None:
    expected = settings(mine=ManifestConfig(path=str(path)))
    names = source_names(expected)
    assert len(names) == len(KINDS) + 2 and names[-1] == "manifest/mine"
    for name in names:
        corpus = build_source(name, expected, 1)
        document = corpus.document(0)
        assert corpus.name == name
        assert document.kind == (name.split("/")[1] if name.startswith("scenes/") else document.kind)
        assert all(s.pixels_HWC.shape == (32, 32, 3) for s in document.segments if isinstance(s, Image))


def test_settings_reach_the_corpora() -> None:
    for name in ("scenes/vqa", "easy_vqa/vqa"):
        document = build_source(name, settings(), 1).document(0)
        assert sum(isinstance(s, Text) and s.target for s in document.segments) == 2
    texts = [
        [build_source("scenes/caption", settings(), seed).document(i).segments[-1].text for i in range(5)]  # type: ignore[union-attr]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_manifest_settings(path: Path, tmp_path: Path) -> None:
    from PIL import Image as PillowImage

    (tmp_path / "elsewhere").mkdir()
    PillowImage.new("RGB", (32, 32)).save(tmp_path / "elsewhere" / "a.png")
    path.write_text('{"image": "a.png", "caption": "black"}\n')
    for kind in ("caption", "text_to_image"):
        mine = ManifestConfig(path=str(path), root=str(tmp_path / "elsewhere"), kind=kind)
        assert build_source("manifest/mine", settings(mine=mine), 1).document(0).kind == kind


def test_captions_of_all_sources_answer_one_prompt(path: Path) -> None:
    from PIL import Image as PillowImage

    PillowImage.new("RGB", (32, 32)).save(path.parent / "a.png")
    path.write_text('{"image": "a.png", "caption": "black"}\n')
    expected = settings(mine=ManifestConfig(path=str(path)))
    prompts = [build_source(name, expected, 1).document(0).segments[1] for name in ("scenes/caption", "manifest/mine")]
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize("name", ["", "scenes", "scenes/", "scenes/video", "easy_vqa", "manifest/other", "Scenes/vqa"])
def test_unknown_name_lists_the_choices(path: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        build_source(name, settings(mine=ManifestConfig(path=str(path))), 1)
    message = str(caught.value)
    assert repr(name) in message and "scenes/caption" in message and "manifest/mine" in message and "\n" not in message


def test_manifest_mistakes(path: Path) -> None:
    with pytest.raises(UserError, match="data.manifests.mine.path"):
        build_source("manifest/mine", settings(mine=ManifestConfig()), 1)
    with pytest.raises(UserError, match="manifest/mine: unknown kind 'vqa'"):
        build_source("manifest/mine", settings(mine=ManifestConfig(path=str(path), kind="vqa")), 1)


def test_missing_easy_vqa_does_not_stop_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(build_source("easy_vqa/vqa", settings(), 1), EasyVqaCorpus)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert build_source("scenes/text", settings(), 1).document(0).kind == "text"
    with pytest.raises(UserError, match=r"tunalab\[data\]"):
        build_source("easy_vqa/vqa", settings(), 1)


def run(mix: dict[str, float], **data: object) -> RunConfig:
    return RunConfig(stages={"only": StageConfig(mix=mix)}, data=DataConfig(**data))  # type: ignore[arg-type]


def test_shards_are_named_by_family_and_key(tmp_path: Path) -> None:
    yaml = tmp_path / "e.yaml"
    url = f"{tmp_path}/a.jsonl"
    Path(url).write_text('{"body": "some text"}\n')
    families = (
        f"finevision: {{a: {{}}}}, omniedit: {{b: {{}}}}, webdataset: {{c: {{}}}}, text: {{mine: {{urls: [{url}], column: body}}}}"
    )
    yaml.write_text(f"data: {{{families}}}\nstages: {{only: {{mix: {{text/mine: 1}}}}}}\n")
    config = load_config(yaml, None, [])
    check_sources(config)
    open_sources(config)
    assert source_names(config.data)[-4:] == ["webdataset/c", "finevision/a", "omniedit/b", "text/mine"]
    corpus = build_source("text/mine", config.data, config.seed)
    assert corpus.name == "text/mine" and corpus.document(0).segments == (Text("some text", target=True),)
    for name in ("webdataset/c", "finevision/a", "omniedit/b"):
        with pytest.raises(UserError, match=rf"{name}: data\.{name.replace('/', '.')}\.urls is not set"):
            build_source(name, config.data, config.seed)


def test_unknown_shards_are_refused_before_any_file_is_looked_for() -> None:
    with pytest.raises(UserError, match=r"stages.only.mix: unknown source 'text/other'; choices: .*text/mine"):
        check_sources(run({"text/other": 1.0}, text={"mine": TextConfig(urls=["/nowhere/*.jsonl"])}))
    check_sources(run({"text/mine": 1.0}, text={"mine": TextConfig(urls=["/nowhere/*.jsonl"])}))


def test_missing_files_and_columns_are_found_before_training(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "a.parquet")
    for urls, part in ((["/nowhere/*.parquet"], "no files match /nowhere"), ([f"{tmp_path}/*.parquet"], "no column text")):
        text = {"mine": TextConfig(urls=urls)}
        with pytest.raises(UserError, match=f"text/mine: .*{part}"):
            open_sources(run({"text/mine": 1.0, "scenes/vqa": 1.0}, text=text))
        open_sources(run({"text/mine": 0.0, "scenes/vqa": 1.0}, text=text))


def test_a_setting_that_fits_no_document_is_found_before_training(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "a"}\n' * 20)
    with pytest.raises(UserError, match="text/mine: none of 8 documents tried can be read; the first: .*no key 'text'; keys: body"):
        open_sources(run({"text/mine": 1.0}, text={"mine": TextConfig(urls=[str(path)])}))
    path.write_text('{"body": "a"}\n' * 3 + '{"text": "a"}\n' * 17)
    open_sources(run({"text/mine": 1.0}, text={"mine": TextConfig(urls=[str(path)])}))


@pytest.mark.parametrize(
    ("key", "message"), [("vqa", "the loss of scenes/vqa, which the run trains on"), ("a/b", "letters, digits")]
)
def test_a_loss_of_ones_own_takes_no_name_of_the_runs(path: Path, key: str, message: str) -> None:
    config = RunConfig(data=settings(mine=ManifestConfig(path=str(path))), stages={"a": StageConfig(1, mix={"scenes/vqa": 1.0})})
    config.evaluation.losses = {"caption": "manifest/mine"}  # of captions, of which the run has none
    check_sources(config)
    config.evaluation.losses = {key: "manifest/mine"}
    with pytest.raises(UserError, match=f"evaluation.losses.{key}: .*{message}"):
        check_sources(config)


def test_held_out_documents_are_different_ones_and_as_sound_as_those_of_training(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": f"number {n}"}) + "\n" for n in range(5)))
    data = settings()
    data.text = {"small": TextConfig(urls=[str(tmp_path / "t.jsonl")])}
    found = [document.segments[0].text for document in held_out_of("text/small", 64, data)]  # type: ignore[union-attr]
    assert sorted(found) == [f"number {n}" for n in range(5)]
    lines = [{"image": "none.png", "caption": "x"}] * 9 + [{"text": "sound"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data.manifests = {"mine": ManifestConfig(path=str(tmp_path / "m.jsonl"))}
    with pytest.raises(UserError, match="manifest/mine: 9 of 10 documents|manifest/mine: none of"):
        held_out_of("manifest/mine", 4, data)
