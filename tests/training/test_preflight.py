"""What a run would fail on later is refused before it begins, in one line that names the key."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL

from tests.variants import FILES
from tunalab.cli import main
from tunalab.data.scenes.questions import FEWEST, benchmark_scenes
from tunalab.errors import UserError
from tunalab.settings.loading import load_config
from tunalab.settings.schema import RunConfig
from tunalab.training.preflight import check_run, open_data

REPOSITORY = Path(__file__).parents[2]
NO_EDITS = "stages.pretrain.mix.scenes/edit=0"


def run(*settings: str, variant: str = "tuna2") -> RunConfig:
    return load_config(REPOSITORY / "experiments" / "smoke.yaml", REPOSITORY / "variants" / f"{variant}.yaml", list(settings))


def refusal(*settings: str, variant: str = "tuna2") -> str:
    with pytest.raises(UserError) as caught:
        check_run(run(*settings, variant=variant))
    message = str(caught.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize("variant", FILES, ids=lambda path: path.stem)
def test_a_sound_run_passes_and_no_component_is_read(variant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(tmp_path / "none"))
    check_run(run(variant=variant.stem))
    open_data(run(variant=variant.stem))


@pytest.mark.parametrize(
    ("variant", "settings", "named"),
    [
        ("tuna2", ["data.image_size=36"], ["data.image_size=36", "16, 32, 48"]),
        ("tuna2", ["data.image_size=48", "frontend.patch=32"], ["data.image_size=48", "patch_embed", "32, 64"]),
        ("tuna_r", ["data.image_size=40"], ["data.image_size=40", "16, 32, 48"]),
        ("tuna2", ["frontend.name=patch_embedding"], ["frontend.name=patch_embedding", "patch_embed", "siglip"]),
        ("tuna_r", ["frontend.patch=16"], ["frontend.patch=16", "8"]),
        ("tuna_r", ["frontend.encoder=no_such_vit"], ["frontend.encoder=no_such_vit", "tiny"]),
        ("tuna", ["frontend.vae=nowhere"], ["frontend.vae=nowhere", "folder"]),
        ("tuna", ["frontend.patch=3"], ["data.image_size=32", "vae_siglip", "24, 48"]),
        ("tuna2", ["evaluation.groups=380"], ["evaluation.groups=380", "ocr", "379"]),
        ("tuna2", ["data.row_tokens=39"], ["data.row_tokens=39", "40", "16 tokens"]),
        ("tuna2", ["data.row_tokens=39", NO_EDITS, "stages.sft.mix.copy/scenes/vqa=1"], ["data.row_tokens=39", "40", "2 image(s)"]),
        ("tuna2", ["stages.sft.mix.scenes/vqas=1"], ["stages.sft.mix", "scenes/vqas", "scenes/vqa"]),
    ],
)
def test_what_does_not_fit_is_refused(variant: str, settings: list[str], named: list[str]) -> None:
    message = refusal(*settings, variant=variant)
    assert all(word in message for word in named), message


def test_settings_that_are_wrong_in_themselves_are_refused_before() -> None:
    for setting, named in {
        "seed=2147483648": "to 2147483647",
        "components_seed=2147483648": "to 2147483647",
        "data.questions_per_image=9": "from 1 to 8",
        "data.questions_per_image=0": "from 1 to 8",
        "data.manifests.m.kind=captions": "caption, text_to_image",
    }.items():
        with pytest.raises(UserError, match=named) as caught:
            run(setting)
        assert str(caught.value).startswith(setting)
    check_run(run("seed=2147483647", "data.questions_per_image=8"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["data.manifests.m.kind=caption"], ["data.manifests.m.path is not set"]),
        (["data.manifests.m.path=no.jsonl"], ["manifest/m", "no.jsonl"]),
        (["data.manifests.m.path={path}", "data.manifests.m.root=nowhere"], ["manifest/m", "nowhere"]),
    ],
)
def test_data_that_is_not_there_is_named(settings: list[str], named: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}) + "\n")
    config = run(*(setting.format(path=path) for setting in settings), "stages.sft.mix.manifest/m=1")
    check_run(config)
    with pytest.raises(UserError) as caught:
        open_data(config)
    assert all(word in str(caught.value) for word in named) and "\n" not in str(caught.value)
    config.stages["sft"].mix["manifest/m"] = 0.0  # what no stage draws from need not be there
    open_data(config)


def test_scenes_sizes_are_the_rule_of_runs_that_use_scenes() -> None:
    config = run("data.image_size=24", "data.manifests.m.path=any.jsonl", "evaluation.groups=0")
    for stage in config.stages.values():
        stage.mix = {"manifest/m": 1.0}
    check_run(config)
    config.evaluation.groups = 1
    with pytest.raises(UserError, match="data.image_size=24"):
        check_run(config)


def test_easy_vqa_must_be_there_if_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "easy_vqa" else found(name, *rest))
    without = ["evaluation.easy_vqa=0", "stages.pretrain.mix.easy_vqa/vqa=0"]
    open_data(run(*without))
    for setting in without:
        with pytest.raises(UserError, match="pip install 'tunalab.data.'"):
            open_data(run(*(one for one in without if one != setting)))


def test_the_fewest_scenes_are_as_many_as_are_said() -> None:
    for level, (kind, most) in FEWEST.items():
        assert len(benchmark_scenes(kind, level, "test", 0, most)) == most
        with pytest.raises(UserError, match=f"has no {most + 1} different scenes"):
            benchmark_scenes(kind, level, "test", 0, most + 1)


@pytest.mark.parametrize("changes", [{"in_channels": 4}, {"out_channels": 4}])
def test_a_vae_that_is_not_for_images_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    for channels in ({}, changes):
        vae = AutoencoderKL(**blocks, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **channels)
        folder = tmp_path / str(len(channels))
        vae.save_pretrained(folder)
        settings = [f"frontend.vae={folder}", "frontend.patch=4"]
        if not channels:
            check_run(run(*settings, variant="tuna"))
            continue
        message = refusal(*settings, variant="tuna")
        assert str(folder) in message or "VaeSiglip.decode" in message


def test_the_command_line_refuses_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("experiments", "variants", "sweeps"):
        (tmp_path / folder).symlink_to(REPOSITORY / folder)
    for command in (["train"], ["sweep", "smoke"]):
        assert main([*command, "data.image_size=36", "tracking.enabled=false"]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: data.image_size=36") and printed.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"experiments", "variants", "sweeps"}
