"""What people write as a value: in the type of its setting, or refused in one line; on the command line, in files, in sweeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunalab.errors import UserError
from tunalab.evaluation.parts import load_settings
from tunalab.official.layout import setting as value_of
from tunalab.settings.layers import read_value, read_yaml
from tunalab.settings.loading import config_hash, from_plain, load_config, read_config, to_plain
from tunalab.settings.schema import RunConfig
from tunalab.settings.values import parse, resolved, typed
from tunalab.sweeps.grid import Sweep, expand, load_sweep, resolve, setting, with_settings

SCENES = Path(__file__).parent.parent / "experiments" / "scenes.yaml"
INT, FLOAT, BOOL, TEXT = "data.row_tokens", "objective.time_mean", "compile_blocks", "tracking.experiment"
# How a word may be written -> its value as a whole number, a number, true or false, a text; None: refused in one line.
WORDS: dict[str, tuple[int | None, float | None, bool | None, str | None]] = {
    "100": (100, 100.0, None, "100"),
    "0100": (100, 100.0, None, "0100"),
    "0099": (99, 99.0, None, "0099"),
    "1_000": (1000, 1000.0, None, "1_000"),
    "+64": (64, 64.0, None, "+64"),
    "0x40": (64, 64.0, None, "0x40"),
    "0o100": (64, 64.0, None, "0o100"),
    "1e5": (100_000, 1e5, None, "1e5"),
    "2.5e3": (2500, 2500.0, None, "2.5e3"),
    "1E+2": (100, 100.0, None, "1E+2"),
    "1e-1": (None, 0.1, None, "1e-1"),
    "1.25e1": (None, 12.5, None, "1.25e1"),
    "64.0": (None, 64.0, None, "64.0"),
    ".5": (None, 0.5, None, ".5"),
    "5.": (None, 5.0, None, "5."),
    "1:30": (None, None, None, "1:30"),
    "1:30:00": (None, None, None, "1:30:00"),
    "190:20:30.15": (None, None, None, "190:20:30.15"),
    "2026-01-01": (None, None, None, "2026-01-01"),
    "2026-01-01 10:00:00": (None, None, None, "2026-01-01 10:00:00"),
    "yes": (None, None, True, "yes"),
    "No": (None, None, False, "No"),
    "on": (None, None, True, "on"),
    "OFF": (None, None, False, "OFF"),
    "true": (None, None, True, "true"),
    "False": (None, None, False, "False"),
    "1": (None, 1.0, True, "1"),  # a row of one token is out of range
    "2": (None, 2.0, None, "2"),
    "": (None, None, None, ""),
    "null": (None, None, None, None),
    "~": (None, None, None, None),
    "nan": (None, None, None, "nan"),
    ".nan": (None, None, None, ".nan"),
    "-inf": (None, None, None, "-inf"),
    "1e999": (None, None, None, "1e999"),
    "1,000": (None, None, None, "1,000"),
    "1 000": (None, None, None, "1 000"),
    "64k": (None, None, None, "64k"),
    "\uff16\uff14": (None, None, None, "\uff16\uff14"),
    "'64'": (64, 64.0, None, "64"),
    '"0100"': (100, 100.0, None, "0100"),
    "9" * 5000: (None, None, None, "9" * 5000),
}
# Texts that YAML would cut, or take for something else.
TEXTS = {
    "run #7": "run #7",
    "a # b": "a # b",
    "#1": "#1",
    "a: b": "a: b",
    "key=value": "key=value",
    "- dash": "- dash",
    "*star": "*star",
    "&and b": "&and b",
    "!bang": "!bang",
    "@at": "@at",
    "%percent": "%percent",
    "| pipe": "| pipe",
    "> more": "> more",
    "? who": "? who",
    "it's": "it's",
    'a "b"': 'a "b"',
    "C:\\new": "C:\\new",
    "caf\u00e9 \u4e2d\u6587 \U0001f469\u200d\U0001f680\u00a0": "caf\u00e9 \u4e2d\u6587 \U0001f469\u200d\U0001f680",
    "'# quoted: '": "# quoted: ",
    '"tab\\there"': "tab\there",
    "x\ty": "x\ty",
}


def read(key: str, text: str) -> Any:
    return value_of(load_config(SCENES, None, [f"{key}={text}"]), key)


def in_file(folder: Path) -> Callable[[str, str], Any]:
    def read_from_file(key: str, text: str) -> Any:
        node = text
        for name in reversed(key.split(".")):
            node = f"{{{name}: {node}}}" if node != text else f"\n {name}: {text}"
        *above, last = key.split(".")
        lines = [*(f"{' ' * place}{name}:" for place, name in enumerate(above)), f"{' ' * len(above)}{last}: {text}"]
        path = folder / "written.yaml"
        path.write_text("\n".join(lines), encoding="utf-8")
        return value_of(load_config(SCENES, path, []), key)

    return read_from_file


def check_words(read: Callable[[str, str], Any], words: dict[str, tuple[Any, ...]]) -> None:
    """Every word in every type. The refusals name the setting and what was written, in one line."""
    for word, expected in words.items():
        for key, value in zip((INT, FLOAT, BOOL, TEXT), expected, strict=True):
            if value is not None:
                found = read(key, word)
                assert found == value and type(found) is type(value), (key, word)
                continue
            with pytest.raises(UserError) as caught:
                read(key, word)
            assert key in str(caught.value) and "\n" not in str(caught.value), (key, word)


def test_a_word_is_read_in_the_type_of_its_setting() -> None:
    check_words(read, WORDS)


def test_a_word_of_a_file_is_read_in_the_type_of_its_setting(tmp_path: Path) -> None:
    short = ("0100", "1_000", "1e5", "1:30", "190:20:30.15", "2026-01-01", "yes", "0x40", "", "~", '"0100"')
    check_words(in_file(tmp_path), {word: WORDS[word] for word in short})


@pytest.mark.parametrize("written", TEXTS)
def test_a_text_is_taken_as_it_stands(written: str, tmp_path: Path) -> None:
    assert read(TEXT, written) == TEXTS[written]
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump(to_plain(load_config(SCENES, None, [f"{TEXT}={written}"])), allow_unicode=True), "utf-8")
    assert read_config(saved).tracking.experiment == TEXTS[written], "and comes back from what a run saves"


@pytest.mark.parametrize(
    "text", ["[]", "{}", "[a, b]", "{a: b}", "[draft].png", "'a' and b", '"open', "\udcff", "a\nb", "a\x1b[1m", "a${b", "${b}"]
)
def test_what_is_no_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        read(TEXT, text)
    assert len(str(caught.value).splitlines()) == 1
    str(caught.value).encode()


@pytest.mark.parametrize("key", [INT, FLOAT, BOOL, TEXT, "data", "stages", "data.levels", "stages.pretrain.mix"])
@pytest.mark.parametrize("value", ["[1", "{", "{a: 1, a: 2}", "[[1]]", "a", "- 1", "rows: 3", "?", "!!int 5", "*a", "{<<: 1}"])
def test_no_value_is_a_traceback(key: str, value: str) -> None:
    if key == TEXT and value[0] not in "[{":
        assert read(key, value) == value
        return
    with pytest.raises(UserError) as caught:
        read(key, value)
    assert "\n" not in str(caught.value) and key in str(caught.value)


def test_members_of_lists_and_mappings_are_read_in_their_type() -> None:
    config = load_config(
        SCENES,
        None,
        [
            "data.levels=[010, 1_0, .5]",
            "data.buckets=[0x10]",
            "data.text.010.urls=[010, no, 1:30]",
            "data.text.010.max_characters=1e3",
        ]
        if False
        else [
            "data.levels=[010, 1_0, .5]",
            "data.text.010.urls=[010, no, 1:30, 'a, b']",
            "data.text={on: {urls: [1e5], window: 010}}",
        ],
    )
    assert config.data.levels == [10.0, 10.0, 0.5]
    assert list(config.data.text) == ["on"], "a name stays as written, and the mapping replaced the one before"
    assert (config.data.text["on"].urls, config.data.text["on"].window) == (["1e5"], 10)
    with pytest.raises(UserError, match=r"data.levels\[1\]=1:30 is not a number"):
        load_config(SCENES, None, ["data.levels=[1, 1:30, 1]"])
    assert load_settings(["understanding.groups=010", "published.data=010"]).published.data == "010"
    assert load_settings(["understanding.groups=1e2"]).understanding.groups == 100
    with pytest.raises(UserError, match="understanding.groups=1:30 is not a whole number"):
        load_settings(["understanding.groups=1:30"])


@pytest.mark.parametrize(
    ("given", "mix"),
    [
        (["stages.pretrain.mix={scenes/vqa: 1}"], {"scenes/vqa": 1.0}),
        (["stages.pretrain={mix: {scenes/vqa: 1}}"], {"scenes/vqa": 1.0}),
        (["stages={pretrain: {mix: {scenes/vqa: 1}, tokens: 7}}"], {"scenes/vqa": 1.0}),
        (["stages.pretrain.mix={scenes/vqa: 1}", "stages.pretrain.mix.scenes/text=2"], {"scenes/vqa": 1.0, "scenes/text": 2.0}),
        (["stages.pretrain.mix.scenes/text=2", "stages.pretrain.mix={scenes/vqa: 010}"], {"scenes/vqa": 10.0}),
    ],
)
def test_a_mapping_given_in_full_replaces_the_one_below(given: list[str], mix: dict[str, float]) -> None:
    config = load_config(SCENES, None, given)
    assert config.stages["pretrain"].mix == mix
    assert list(config.stages) == (["pretrain"] if given[0].startswith("stages={") else list(load_config(SCENES, None, []).stages))


def test_a_section_is_laid_key_by_key_and_so_are_files(tmp_path: Path) -> None:
    below = load_config(SCENES, None, [])
    config = load_config(SCENES, None, ["optimizer={beta2: .5}", "data={rows: 2}", "objective={}"])
    assert (config.optimizer.beta2, config.data.rows, config.optimizer.beta1) == (0.5, 2, below.optimizer.beta1)
    assert config.data.row_tokens == below.data.row_tokens and config.objective == below.objective
    upper = tmp_path / "upper.yaml"
    upper.write_text("stages: {pretrain: {mix: {scenes/text: 010}}}")
    assert load_config(SCENES, upper, []).stages["pretrain"].mix == {**below.stages["pretrain"].mix, "scenes/text": 10.0}


@pytest.mark.parametrize("text", ["stages.pretrain.mix={}", "stages={}"])
def test_an_emptied_mapping_is_refused_where_one_is_needed(text: str) -> None:
    with pytest.raises(UserError, match="no source of positive weight|stages is empty"):
        load_config(SCENES, None, [text])


def sweep_of(folder: Path, text: str) -> Sweep:
    for name in ("experiments/scenes", "variants/a"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(SCENES.read_text() if name.endswith("scenes") else "{}")
    path = folder / "sweeps" / "mine.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"experiment: scenes\nvariants: [a]\nseeds: [010]\n{text}")
    return load_sweep(path)


def test_values_of_a_sweep_are_read_in_the_type_of_their_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = sweep_of(
        tmp_path, "factors: {decoder.layers: [02, 3]}\noverrides: {tracking.experiment: 010, data.text.t: {urls: [1e5]}}"
    )
    cells = expand(sweep)
    assert [cell.name for cell in cells] == ["a-layers2-seed10", "a-layers3-seed10"]
    found = resolve(cells, [], lambda *_: (SCENES, tmp_path / "variants/a.yaml"))
    configs = [found[cell.name].config for cell in cells]
    assert [(one.decoder.layers, one.seed, one.tracking.experiment) for one in configs] == [(2, 10, "010"), (3, 10, "010")]
    assert configs[0].data.text["t"].urls == ["1e5"]
    wrong = expand(sweep_of(tmp_path, "overrides: {decoder.layers: 1:30}"))
    with pytest.raises(UserError, match="decoder.layers=1:30 is not a whole number"):
        resolve(wrong, [], lambda *_: (SCENES, tmp_path / "variants/a.yaml"))


def test_the_directory_of_a_sweep_with_settings_is_of_what_they_say() -> None:
    sweep = Sweep("mine", "scenes", ("a",), (0,))
    names = {text: with_settings(sweep, ["decoder.layers=10", text]).name for text in ("decoder.layers=010", "decoder.layers=1_0")}
    assert set(names.values()) == {with_settings(sweep, ["decoder.layers=10"]).name}
    assert with_settings(sweep, ["decoder.layers=8"]).name not in names.values()
    assert with_settings(sweep, ["stages.pretrain.tokens=5"]).name == "mine+8c63c727", "as directories that are there"


@pytest.mark.parametrize("value", ["\U0001f600 #", "010", "[a", "'q", " blank ", "it's", "1e5", "null", "a: b", {"a": [1, "2"]}])
def test_what_a_sweep_writes_on_the_command_line_is_read_back(value: Any) -> None:
    assert resolved(read_value(setting(value))) == value
    if isinstance(value, str):
        assert typed(read_value(setting(value)), str) == value


@pytest.mark.parametrize(
    "text",
    ["a: &a [*a]", "a: {b: 1, b: 2}", "? [a]\n: 1", "a: *nowhere", "a: !!python/object:os.system x", "a: !thing 3", "{" * 500]
    + ["\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))])],
)
def test_a_file_that_is_no_plain_data_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="is not readable YAML") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_without_a_declared_type_a_word_is_what_yaml_1_2_says(tmp_path: Path) -> None:
    text = "{a: 010, b: 1:30, c: no, d: 1e5, e: 2026-01-01, f: ~, g: true, h: !!int 010, i: '010', j: 0x10, k: -.inf, l: 1_000}"
    assert resolved(parse(text)) == {
        **{"a": 10, "b": "1:30", "c": "no", "d": 1e5, "e": "2026-01-01", "f": None, "g": True, "h": 10, "i": "010", "j": 16},
        **{"k": float("-inf"), "l": 1000},
    }
    assert resolved(parse("x: &x {a: 1}\ny: {<<: *x, b: 2}"))["y"] == {"a": 1, "b": 2}


def test_a_saved_configuration_gives_its_texts_back(tmp_path: Path) -> None:
    """Also as they were saved before: 08 and 1e5 stood there without quotes where YAML 1.1 reads a text."""
    config = load_config(SCENES, None, [f"{TEXT}=08"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_plain(config)).replace("experiment: '08'", "experiment: 08"))
    assert "experiment: 08\n" in path.read_text()
    assert read_config(path) == config and config_hash(read_config(path)) == config_hash(config)
    assert from_plain(to_plain(config)) == config and isinstance(config, RunConfig)
