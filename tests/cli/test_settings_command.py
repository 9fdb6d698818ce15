"""`tunalab settings`: values in force with their sources, and the reference page, from the declarations."""

from pathlib import Path

import pytest

from tunalab.cli import main
from tunalab.evaluation.parts import EvaluationSettings
from tunalab.settings.declaration import settings_of
from tunalab.settings.reference import markdown
from tunalab.settings.schema import SETTINGS

ROOT = Path(__file__).parents[2]
FILES = {
    "experiments/mine": "base: low\nmixes: {small: {scenes/text: 1}}\nseed: 3\nvariants: {wide: {decoder: {layers: 7}}}",
    "experiments/low": "{seed: 1, threads: 2, stages: {only: {mix: {scenes/vqa: 1}}}, data: {text: {t: {window: 5}}}}",
    "variants/wide": "frontend: {patch: 4}",
}


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """``rows(word, ...)``: of the command, name -> the line and the help below it."""
    for name, text in FILES.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> dict[str, tuple[list[str], str]]:
        assert main(["settings", "--experiment", "mine", "--variant", "wide", *words]) == 0
        head, *lines = capsys.readouterr().out.splitlines()
        assert head.split() == ["setting", "type", "value", "source", "range", "or", "choices"]
        return {line.split()[0]: (line.split(), help) for line, help in zip(lines[::2], lines[1::2], strict=True)}

    return call


@pytest.mark.parametrize(
    ("key", "setting", "value", "source"),
    [
        ("data.rows", [], "4", "default"),
        ("threads", [], "2", "experiment experiments/low.yaml"),
        ("seed", [], "3", "experiment experiments/mine.yaml"),
        ("decoder.layers", [], "7", "experiment experiments/mine.yaml: variants.wide"),
        ("frontend.patch", [], "4", "variant variants/wide.yaml"),
        ("frontend.patch", ["frontend.patch=8"], "8", "command line"),
        ("stages.only.mix", [], '{"scenes/vqa": 1.0}', "experiment experiments/low.yaml"),
        ("stages.only.mix", ["stages.only.mix=small"], '{"scenes/text": 1.0}', "command line"),
        ("data.text.t.window", [], "5", "experiment experiments/low.yaml"),
        ("data.text.t.window", ["data.text={t: {column: x}}"], "8", "default"),
        ("data.webdataset.NAME.caption", [], "txt", "default"),
        ("tracking.uri", ["tracking.uri=https://me:s3cr3t@host"], "https://host", "command line"),
    ],
)
def test_a_setting_is_shown_with_its_value_and_source(rows, key: str, setting: list[str], value: str, source: str) -> None:  # type: ignore[no-untyped-def]
    shown, help = rows(key, *setting)[key]
    generic = key.replace(".only.", ".NAME.").replace(".t.", ".NAME.")
    declared = SETTINGS[generic].declared
    found = " ".join(shown[1:])
    if "s3cr3t" in " ".join(setting):
        assert "s3cr3t" not in found
    else:
        assert f"{value} {source} {declared.allowed}".strip() in found
    assert help.strip() == declared.help


def test_without_a_pattern_every_setting_is_shown(rows) -> None:  # type: ignore[no-untyped-def]
    shown = {name.replace(".only.", ".NAME.").replace(".t.", ".NAME.") for name in rows()}
    assert shown == set(SETTINGS)
    assert set(rows("stages.NAME.lr", "data.*.streams")) == {
        "stages.only.lr",
        *(f"data.{kind}.streams" for kind in ("webdataset.NAME", "finevision.NAME", "omniedit.NAME", "text.t")),
    }


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rowz"], "error: no setting matches 'rowz' (close: data.rows)\n"),
        (["qqqq"], "error: no setting matches 'qqqq' (groups: distribution, data, "),
        (["seed", "sead=1"], "unknown key 'sead', did you mean seed? (choices: "),
        (["variant=x"], "would only relabel the run"),
        (["seed", "--markdown"], "leave out 'seed'"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["settings", *words]) == 2
    printed = capsys.readouterr()
    assert line in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_the_reference_page_is_fresh_and_holds_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "--markdown"]) == 0
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == page == markdown(EvaluationSettings), (
        "make it anew: tunalab settings --markdown > docs/settings.md"
    )
    for key, one in {**SETTINGS, **settings_of(EvaluationSettings)}.items():
        assert f"| `{key}` | " in page and one.declared.help.replace("|", "\\|") in page
