"""Experiment files on experiment files, settings for one variant alone, mixes by name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tunalab.errors import UserError
from tunalab.settings.layers import leaves, unequal
from tunalab.settings.loading import load_config
from tunalab.settings.schema import RunConfig

BASE = """
mixes:
  v1: {scenes/caption: 0.7, scenes/text_to_image: 0.3}
  v2: {scenes/caption: 0.3, scenes/text_to_image: 0.7}
seed: 3
stages:
  pretrain: {tokens: 100, mix: v2}
variants:
  a: {frontend: {patch: 4}}
"""
OWN = """
base: low
seed: 4
variants:
  a: {objective: {text_weight: 0.2}}
  b: {objective: {prediction: v}, stages: {pretrain: {mix: v1}}}
"""
FILES = {
    "experiments/low": BASE,
    "experiments/own": OWN,
    "experiments/small": "base: low\ndata: {rows: 1}\nstages: {pretrain: {tokens: 7}}",
    "experiments/small_own": "base: [own, small]",
    "variants/a": "frontend: {patch: 8}",
    "variants/b": "frontend: {patch: 2}",
}
Load = Callable[..., RunConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """``load(experiment, variant, *settings, name=text)``: of FILES, further files given by keyword."""

    def load(experiment: str, variant: str, *settings: str, **more: str) -> RunConfig:
        for name, text in {**FILES, **{f"experiments/{name}": text for name, text in more.items()}}.items():
            path = tmp_path / f"{name}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return load_config(tmp_path / f"experiments/{experiment}.yaml", tmp_path / f"variants/{variant}.yaml", list(settings))

    return load


def test_a_base_lies_below_and_the_name_is_that_of_the_file(load: Load) -> None:
    low, own = load("low", "b"), load("own", "b")
    assert (low.experiment, low.seed, low.stages["pretrain"].tokens) == ("low", 3, 100)
    assert (own.experiment, own.seed, own.stages["pretrain"].tokens) == ("own", 4, 100)


def test_what_an_experiment_sets_for_a_variant_lies_over_the_variants_file(load: Load) -> None:
    assert load("low", "a").frontend.patch == 4 and load("low", "b").frontend.patch == 2
    assert load("low", "a", "frontend.patch=1").frontend.patch == 1, "the command line lies on top"
    a, b = load("own", "a"), load("own", "b")
    assert (a.frontend.patch, a.objective.text_weight, a.objective.prediction) == (4, 0.2, "x"), "the base's and its own"
    assert (b.frontend.patch, b.objective.text_weight, b.objective.prediction) == (2, 1.0, "v")


def test_two_bases_join_what_differs_in_each(load: Load) -> None:
    both = load("small_own", "a")
    assert (both.objective.text_weight, both.data.rows, both.stages["pretrain"].tokens, both.frontend.patch) == (0.2, 1, 7, 4)
    assert both.seed == 3, "of the later base, which has it from its own"


def test_a_mix_by_name_replaces_the_one_below(load: Load) -> None:
    assert load("low", "a").stages["pretrain"].mix == {"scenes/caption": 0.3, "scenes/text_to_image": 0.7}
    assert load("own", "b").stages["pretrain"].mix == {"scenes/caption": 0.7, "scenes/text_to_image": 0.3}
    given = load("low", "a", "stages.pretrain.mix.scenes/vqa=1", "stages.pretrain.mix=v1", "stages.pretrain.mix.scenes/text=2")
    assert given.stages["pretrain"].mix == {"scenes/caption": 0.7, "scenes/text_to_image": 0.3, "scenes/text": 2}


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        ("base: nowhere", [], "nowhere.yaml (choices in"),
        ("base: {a: 1}", [], "neither the name of an experiment nor a list of names"),
        ("base: [low, [3]]", [], "neither the name of an experiment nor a list of names"),
        ("base: [low, 3]", [], "3.yaml (choices in"),
        ("base: wrong", [], "base goes round (wrong -> wrong)"),
        ("base: low\nvariants: [a]", [], "variants=[a] is not a mapping of names"),
        ("base: low\nvariants: {a: 3}", [], "variants.a=3 is not a mapping"),
        ("base: low\nmixes: {v1: 3}", [], "mixes.v1=3 is not a mapping"),
        ("base: low\nvariants: {a: {frontend: {pathc: 3}}}", [], "variants.a: unknown key 'frontend.pathc'"),
        ("base: low", ["stages.pretrain.mix=v3"], "stages.pretrain.mix=v3 is no mix of the experiment (choices: v1, v2)"),
        ("base: low", ["base=own"], "unknown key 'base'"),
    ],
)
def test_mistakes_are_one_line_that_names_the_place(load: Load, text: str, settings: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        load("wrong", "a", *settings, wrong=text)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_without_named_mixes_a_name_is_no_mix(load: Load) -> None:
    with pytest.raises(UserError, match="stages.pretrain.mix=v1 is not a mapping"):
        load("plain", "a", plain="stages: {pretrain: {mix: v1}}")


def test_leaves_and_what_is_unequal_of_nested_settings() -> None:
    one, other = {"a": {"b": 1, "c": []}, "d": {}, "e": 2}, {"a": {"b": 1, "c": [3]}, "d": {"f": 0}, "g": {"h": None}}
    assert list(leaves(one)) == [("a.b", 1), ("a.c", []), ("d", {}), ("e", 2)]
    assert list(unequal(one, other)) == [("a.c", [], [3]), ("d.f", None, 0), ("e", 2, None), ("g", None, {"h": None})]
    assert list(unequal(one, one)) == []
