"""A run that starts from weights starts from exactly those, or says in one line why it cannot."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tests.official.golden import golden_checkpoint
from tests.training.conftest import quick_config
from tunalab.config import RunConfig, StartConfig
from tunalab.errors import UserError
from tunalab.exporting.assembly import learnt_state, stored_once
from tunalab.exporting.folder import About, write_export
from tunalab.frontends.components.handle import Components
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.model.build import build_model
from tunalab.model.unified import UnifiedModel
from tunalab.official.configuration import official_config
from tunalab.official.layout import detect
from tunalab.training import run as running
from tunalab.training.run import train
from tunalab.training.start import load_start

VOCABULARY = 400


def fresh(config: RunConfig) -> UnifiedModel:
    return build_model(config, Components(ComponentSettings.seeded(0)), VOCABULARY)


def write(folder: Path, config: RunConfig, model: UnifiedModel, drop: str = "-") -> Path:
    weights = {name: tensor for name, tensor in stored_once(config, learnt_state(model)).items() if drop not in name}
    about = About({}, VOCABULARY, asdict(ComponentSettings.seeded(0)), {}, [])
    write_export(folder, about, config, weights, None, lambda path: None)
    return folder


def started(config: RunConfig, checkpoint: Path, allow_missing: list[str] | None = None) -> tuple[UnifiedModel, list[str]]:
    said: list[str] = []
    config = replace(config, start=StartConfig(str(checkpoint), allow_missing or []))
    model = fresh(config)
    load_start(model, config, said.append)
    return model, said


def test_a_folder_of_ours_is_the_start(variant: str, tmp_path: Path) -> None:
    config = quick_config(variant)
    other = fresh(replace(config, seed=7))
    model, said = started(config, write(tmp_path / "seven", config, other))
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert len(said) == 1
    assert model.decoder.lm_head.weight is model.decoder.model.embed_tokens.weight


def test_what_may_be_missing_starts_from_scratch_and_is_named(tmp_path: Path) -> None:
    config = quick_config("tuna2")
    folder = write(tmp_path / "part", config, fresh(replace(config, seed=7)), drop="head.blocks.0.")
    with pytest.raises(UserError, match=r"13 missing: head.blocks.0.attention_norm.weight, .* \(7 more\)$"):
        started(config, folder)
    model, said = started(config, folder, ["head.blocks.*"])
    assert torch.equal(model.head.blocks[0].q.weight, fresh(config).head.blocks[0].q.weight)
    assert "from scratch: head.blocks.0.attention_norm.weight" in said[1]


@pytest.mark.parametrize("name", ["tuna2", "tuna_r"])
def test_an_official_checkpoint_is_a_start_too(name: str, tmp_path: Path) -> None:
    tensors = golden_checkpoint(name)
    torch.save({"model": tensors}, tmp_path / "w.pt")
    settings = ["decoder.heads=4", "data.image_size=64", "frontend.encoder=golden_siglip", "decoder.vocabulary=2004"]
    config = official_config(tensors, detect(tensors), None, None, settings)
    model, said = started(config, tmp_path / "w.pt")
    assert torch.equal(model.decoder.lm_head.weight, tensors["tuna.lm_head.weight"])
    if name == "tuna_r":
        assert said[1].endswith("from scratch: mask_token.token_D")
    changed = replace(config, objective=replace(config.objective, target_layout="patch"))
    with pytest.raises(UserError, match="objective.target_layout is raster in the checkpoint, patch in the configuration"):
        started(changed, tmp_path / "w.pt")


def flipped(folder: Path) -> Path:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-9] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    return folder


WRONG: dict[str, tuple[Callable[[RunConfig], RunConfig], Callable[[Path], Path], str]] = {
    "damaged": (lambda c: c, flipped, "is damaged: model.safetensors does not match its hash"),
    "nothing": (lambda c: c, lambda f: f.parent / "none", "no checkpoint .*none"),
    "other sizes": (
        lambda c: replace(c, head=replace(c.head, mlp=64)),
        lambda f: f,
        "3 of another shape: head.blocks.0.gate.weight",
    ),
    "other positions": (
        lambda c: replace(c, decoder=replace(c.decoder, image_positions="none")),
        lambda f: f,
        "decoder.image_positions is sincos2d in the checkpoint, none in the configuration",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_one_line(kind: str, tmp_path: Path) -> None:
    change, harm, words = WRONG[kind]
    config = quick_config("tuna2")
    folder = harm(write(tmp_path / "ours", config, fresh(config)))
    with pytest.raises(UserError, match=words) as caught:
        started(change(config), folder)
    assert "\n" not in str(caught.value)


def test_a_run_starts_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed, it goes on from its own checkpoint: the start is not needed again."""
    config = quick_config("tuna2")
    folder = write(tmp_path / "ours", config, fresh(replace(config, seed=7)))
    config = replace(config, start=StartConfig(str(folder)), evaluation=replace(config.evaluation, points=1))
    calls: list[str] = []
    monkeypatch.setattr(running, "load_start", lambda model, config, say: calls.append(config.start.checkpoint))
    assert train(config, tmp_path / "run") == 0 and train(config, tmp_path / "run") == 0
    assert calls == [str(folder)]
