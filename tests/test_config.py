"""Settings: precedence, identity, and one line for every mistake, naming the key and the choices."""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from omegaconf import OmegaConf

from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.evaluation.parts import EvaluationSettings
from tunalab.settings.declaration import Acts, Changes, Setting, settings_of
from tunalab.settings.layers import read_yaml
from tunalab.settings.loading import NOT_IDENTITY, check, config_hash, from_plain, load_config, plain_hash, to_plain
from tunalab.settings.schema import (
    SETTINGS,
    BenchmarkConfig,
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    FineVisionConfig,
    ManifestConfig,
    OmniEditConfig,
    OptimizerConfig,
    ParameterGroupConfig,
    QuestionsConfig,
    RunConfig,
    StageConfig,
    TextConfig,
    WebDatasetConfig,
)

REPOSITORY = Path(__file__).parent.parent
EXPERIMENTS = sorted((REPOSITORY / "experiments").glob("*.yaml"))
VARIANTS = sorted((REPOSITORY / "variants").glob("*.yaml"))
SCENES = REPOSITORY / "experiments" / "scenes.yaml"
EVERY = [*SETTINGS.values(), *settings_of(EvaluationSettings).values()]


FULL = RunConfig(
    stages={"NAME": StageConfig(mix={"a": 1.0})},
    optimizer=OptimizerConfig(groups={"NAME": ParameterGroupConfig()}),
    data=DataConfig(
        manifests={"NAME": ManifestConfig()},
        webdataset={"NAME": WebDatasetConfig()},
        finevision={"NAME": FineVisionConfig()},
        omniedit={"NAME": OmniEditConfig()},
        text={"NAME": TextConfig()},
        corpora={"NAME": CorpusConfig()},
        questions={"NAME": QuestionsConfig()},
    ),
    evaluation=EvaluationConfig(benchmarks={"NAME": BenchmarkConfig()}),
)


def refusal(*overrides: str, experiment: Path = SCENES) -> str:
    with pytest.raises(UserError) as caught:
        load_config(experiment, None, list(overrides))
    message = str(caught.value)
    assert message and "\n" not in message
    return message


NEEDS_NO_LIMITS = {"revision": "has a check of its own", "objective.time_mean": "any number"}


@pytest.mark.parametrize("one", EVERY, ids=lambda one: f"{one.group.__name__}.{one.key}")
def test_every_setting_is_declared_completely(one: Setting) -> None:
    declared = one.declared
    low, high = declared.at_least, declared.at_most
    assert declared.help.strip() and "\n" not in declared.help and not declared.help.endswith(".")
    number = {int, float} & {one.type, *get_args(one.type)}
    assert bool(number) == ((low, high) != (None, None)) or one.key in NEEDS_NO_LIMITS
    assert low is None or high is None or low < high
    assert not declared.choices or one.type in (str, list[str])
    inside = one.default if isinstance(one.default, list) else [one.default]
    assert not declared.choices or set(inside) <= set(declared.choices)
    assert one.acts in get_args(Acts) and one.changes in get_args(Changes)
    assert one.changes != "nothing" or one.acts == "never", "what acts on training changes something"


def test_a_group_says_what_holds_for_all_inside_and_a_setting_may_differ() -> None:
    assert {SETTINGS[f"stages.NAME.{name}"].acts for name in ("tokens", "masking", "mix")} == {"stage"}
    assert (SETTINGS["objective.masking.ratio"].acts, SETTINGS["objective.time_mean"].acts) == ("masking", "start")
    assert SETTINGS["tracking.uri"].changes == "nothing" and SETTINGS["distribution.reshard"].changes == "rounding"
    assert SETTINGS["distribution.devices"].changes == "results" and not SETTINGS["distribution.devices"].identity
    assert SETTINGS["sampling.steps"].acts == "never" and SETTINGS["sampling.steps"].identity


def with_value(key: str, value: Any) -> tuple[RunConfig, str]:
    """A sound configuration with one setting changed, and that setting's full name."""
    config = copy.deepcopy(FULL)
    node: Any = config
    *parents, last = key.split(".")
    for part in parents:
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    old = getattr(node, last)
    setattr(node, last, dict.fromkeys(old, value) if isinstance(old, dict) else [value] if isinstance(old, list) else value)
    return config, f"{key}.a" if isinstance(old, dict) else key


def check_refuses(key: str, value: Any) -> str:
    config, shown = with_value(key, value)
    with pytest.raises(UserError) as caught:
        check(config)
    message = str(caught.value)
    assert message.startswith(f"{shown}={value} ") and "\n" not in message
    return message


def test_numbers_out_of_range_are_refused() -> None:
    check(FULL)
    for key, one in SETTINGS.items():
        low, high = one.declared.at_least, one.declared.at_most
        bad = [math.nan, math.inf] if float in (one.type, *get_args(one.type)) else []
        bad += [low - 1] if low is not None else []
        bad += [high + 1] if high is not None else []
        for value in bad:
            message = check_refuses(key, value)
            assert "out of range" in message
            assert high is None or f"to {high:.10g}" in message


@pytest.mark.parametrize("override", ["data.unfit_share=0.9", "data.full_digests=true", "start.accept_changed_data=true"])
def test_settings_that_decide_whether_a_run_goes_on_are_no_part_of_what_it_is(override: str) -> None:
    plain, changed = load_config(SCENES, None, []), load_config(SCENES, None, [override])
    assert to_plain(plain) != to_plain(changed) and config_hash(plain) == config_hash(changed)
    earlier = to_plain(plain)
    group, _, name = override.partition("=")[0].partition(".")
    del earlier[group][name]
    assert config_hash(from_plain(earlier)) == plain_hash(earlier), "earlier runs keep the hash they had"


def test_words_that_are_no_choice_are_refused_with_the_choices() -> None:
    for key, one in SETTINGS.items():
        if one.declared.choices:
            message = check_refuses(key, "nonsense")
            assert all(choice in message for choice in one.declared.choices)


def test_an_unknown_key_names_the_closest_one() -> None:
    assert "unknown key 'sead', did you mean seed? (choices: " in refusal("sead=1")
    assert "'data.row', did you mean rows? (" in refusal("data.row=1")
    assert "unknown key 'zzz' (choices: " in refusal("zzz=1")


def test_limits_hold_on_the_command_line() -> None:
    for override in ["objective.masking.ratio=nan", "stages.pretrain.lr=-1", "stages.pretrain.mix.scenes/vqa=.inf"]:
        assert refusal(override).startswith(override.partition("=")[0])
    assert refusal("precision=fp64").startswith("precision=fp64 is not known (choices: auto, ")


def test_turns_of_a_chat_need_a_tokenizer_of_its_own() -> None:
    assert refusal("decoder.chat=qwen").startswith("decoder.chat=qwen needs a tokenizer")
    for named in ("decoder.tokenizer=folder", "decoder.pretrained=Qwen/Qwen2.5-1.5B-Instruct"):
        assert load_config(SCENES, None, ["decoder.chat=qwen", named]).decoder.chat == "qwen"


@pytest.mark.parametrize(
    ("override", "key", "choices"),
    [
        ("sead=1", "sead", "seed"),
        ("data.row=1", "data.row", "row_tokens"),
        ("objective.masking.rati=1", "objective.masking.rati", "ratio"),
        ("stages.pretrain.learning_rate=1", "stages.pretrain.learning_rate", "lr"),
        ("data.manifests.mine.folder=x", "data.manifests.mine.folder", "root"),
        ("data={rowz: 1}", "data.rowz", "rows"),
        ("data..rows=1", "data.", "rows"),
        ("stages.pretrian.tokens=5", "stages.pretrian", "pretrain"),
        ("stages.pretrain=3", "stages.pretrain", "tokens"),
        ("data=null", "data", "rows"),
    ],
)
def test_unknown_keys_are_refused_at_every_depth_with_their_siblings(override: str, key: str, choices: str) -> None:
    message = refusal(override)
    assert key in message and choices in message


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=abc", "seed"),
        ("seed=1.5", "seed"),
        ("seed=null", "seed"),
        ("seed=", "seed"),
        ("seed=???", "seed"),
        ("seed=[1]", "seed"),
        ("seed=${nowhere}", "seed"),
        ("seed.low=1", "seed"),
        ("tracking.enabled=maybe", "tracking.enabled"),
        ("data.levels=3", "data.levels"),
        ("data.levels=[a,b,c]", "data.levels[0]"),
        ("stages=3", "stages"),
        ("stages.pretrain.mix=[1]", "stages.pretrain.mix"),
        ("stages.pretrain.mix.scenes/vqa=much", "stages.pretrain.mix.scenes/vqa"),
        ("data.manifests.mine=file.jsonl", "data.manifests.mine"),
    ],
)
def test_wrong_types_are_refused(override: str, key: str) -> None:
    message = refusal(override)
    assert message.removeprefix(f"setting '{override}': ").startswith(key)


@pytest.mark.parametrize("text", ["seed", "=3", "", "seed=[1", "seed=${"])
def test_what_is_no_setting_is_quoted(text: str) -> None:
    assert f"'{text}'" in refusal(text)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["data.levels=[0,0,0]"], ["data.levels"]),
        (["data.levels=[1,1]"], ["data.levels", "three"]),
        (["decoder.width=100", "decoder.heads=8"], ["decoder.width=100", "decoder.heads=8"]),
        (["decoder.width=12", "decoder.heads=4"], ["decoder.width=12"]),  # an odd head has no rotary pairs
        (["decoder.kv_heads=3"], ["decoder.kv_heads=3", "decoder.heads=4"]),
        (["sampling.grid=points", "sampling.steps=1"], ["sampling.steps=1", "sampling.grid=points", "from 2 points"]),
        (["head.kv_heads=3"], ["head.kv_heads=3", "head.heads=4"]),
        (["head.head_dim=40"], ["head.head_dim=40", "16"]),
        (["stages.new.tokens=5"], ["stages.new.mix", "connector", "pretrain", "sft"]),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(overrides: list[str], names: list[str]) -> None:
    message = refusal(*overrides)
    assert all(name in message for name in names)


def test_a_run_without_stages_is_refused() -> None:
    with pytest.raises(UserError, match="stages is empty"):
        load_config(None, None, [])


def test_a_missing_file_is_named_with_its_siblings() -> None:
    message = refusal(experiment=SCENES.with_name("scene.yaml"))
    assert "scene.yaml" in message and "scenes" in message and "smoke" in message


@pytest.mark.parametrize("text", ["seed: [1", "- a list", "just words", "seed: 1\nseed: 2\n", "\tseed: 1", ""])
def test_broken_files_are_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    message = refusal(experiment=path)
    assert str(path) in message or "stages is empty" in message


def test_mistakes_in_a_file_name_file_and_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for text, key in [
        ("objective:\n  mask: 1\n", "objective.mask"),
        ("data:\n  rows: many\n", "data.rows"),
        ("data: 3\n", "data"),
        ("stages:\n  pretrain: 5\n", "stages.pretrain"),
    ]:
        path.write_text(text)
        message = refusal(experiment=path)
        assert str(path) in message and key in message


@pytest.mark.parametrize("plain", [[1], "seed", None])
def test_a_saved_configuration_that_is_no_mapping_is_refused(plain: Any) -> None:
    with pytest.raises(UserError, match="not a mapping"):
        from_plain(plain)


def test_the_command_line_prints_one_line_and_exits_with_2(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(["train", "seed=abc"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert main(["train", "--experiment", "nothing"]) == 2
    assert "scenes" in capsys.readouterr().err


def test_precedence(tmp_path: Path) -> None:
    mix = {"mix": {"scenes/vqa": 1.0}}
    experiment, variant = tmp_path / "mine.yaml", tmp_path / "wide.yaml"
    experiment.write_text(yaml.safe_dump({"seed": 1, "threads": 2, "data": {"rows": 2}, "stages": {"only": mix}}))
    variant.write_text(yaml.safe_dump({"threads": 3, "data": {"lookahead": 9}}))
    config = load_config(experiment, variant, ["seed=3", "seed=4", "data.rows=5", "stages.only.tokens=7"])
    assert (config.seed, config.threads, config.data.rows, config.data.lookahead) == (4, 3, 5, 9)
    assert config.data.row_tokens == DataConfig().row_tokens
    assert config.stages["only"].tokens == 7 and config.stages["only"].mix == mix["mix"]
    assert (config.experiment, config.variant) == ("mine", "wide")


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda path: path.stem)
def test_shipped_files_load_and_their_plain_form_gives_the_run_back(experiment: Path, variant: Path) -> None:
    config = load_config(experiment, variant, ["seed=5", "data.manifests.m.path=x"])
    assert (config.experiment, config.variant, config.seed) == (experiment.stem, variant.stem, 5)
    again = from_plain(yaml.safe_load(yaml.safe_dump(to_plain(config), sort_keys=False)))
    assert again == config and list(again.stages) == list(config.stages)
    assert config_hash(again) == config_hash(config)
    by_omegaconf = OmegaConf.to_container(OmegaConf.structured(config))
    assert json.dumps(to_plain(config)) == json.dumps(by_omegaconf), "also in order, and in what is a fraction"


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda path: path.stem)
def test_a_variant_sets_its_front_end_and_nothing_else(variant: Path) -> None:
    assert {*read_yaml(variant)} - {"label", "colour"} == {"frontend"}  # what it is called and how it is drawn changes no result


def test_the_hash_is_of_what_a_run_computes() -> None:
    base = config_hash(load_config(SCENES, None, []))
    assert len(base) == 12
    same = ["tracking.enabled=false", "tracking.uri=x", "checkpoint_seconds=1", "keep_checkpoints=5", "threads=2"]
    same += ["checkpoint_keep=[100]"]
    same += [
        "distribution.devices=2",
        "activation_checkpointing=true",
        "compile_blocks=true",
        "fused_text_loss=true",
        "label=Mine",
        "colour='#102030'",
    ]
    assert {override.partition("=")[0].partition(".")[0] for override in same} == set(NOT_IDENTITY)
    for override in same:
        assert config_hash(load_config(SCENES, None, [override])) == base
    for override in ["seed=1", "variant=other", "objective.masking.ratio=0.4", "stages.sft.lr=1", "data.workers=1"]:
        assert config_hash(load_config(SCENES, None, [override])) != base


def test_the_order_of_stages_is_part_of_a_run() -> None:
    config = load_config(SCENES, None, [])
    turned = dataclasses.replace(config, stages=dict(reversed(config.stages.items())))
    assert turned == config  # dicts compare without order, so the hash must not
    assert config_hash(turned) != config_hash(config)


def test_a_whole_number_in_the_place_of_a_fraction_is_the_same_run() -> None:
    whole = RunConfig(stages={"only": StageConfig(lr=1, mix={"scenes/vqa": 1})})
    fraction = RunConfig(stages={"only": StageConfig(lr=1.0, mix={"scenes/vqa": 1.0})})
    assert json.dumps(to_plain(whole)) == json.dumps(to_plain(fraction)) and config_hash(whole) == config_hash(fraction)
