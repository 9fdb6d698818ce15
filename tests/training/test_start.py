"""A run that starts from weights starts from exactly those, or says in one line why it cannot."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import edit_weights, save_kl, save_qwen
from tests.official.golden import golden_checkpoint
from tests.training.conftest import quick_config
from tunalab.data.tokenizer import Tokenizer, train_tokenizer
from tunalab.errors import UserError
from tunalab.frontends.components.store import Component, Components, frozen_origin
from tunalab.model.unified import UnifiedModel, build_model
from tunalab.official.layout import detect, official_config
from tunalab.settings.schema import RunConfig, StartConfig
from tunalab.trained.folder import RunParts, learnt_state, stored_once, write_export
from tunalab.training import run as running
from tunalab.training import start
from tunalab.training.run import train
from tunalab.training.start import load_start

VOCABULARY = 400


def fresh(config: RunConfig) -> UnifiedModel:
    return build_model(config, Components(), VOCABULARY)


def write(
    folder: Path,
    config: RunConfig,
    model: UnifiedModel,
    drop: str = "-",
    tokenizer: Tokenizer | None = None,
    frozen: dict[str, Any] | None = None,
) -> Path:
    """``frozen``: what is known of frozen parts, by default everything."""
    parts = RunParts()
    weights = {name: tensor for name, tensor in stored_once(config, learnt_state(model)).items() if drop not in name}
    known = frozen_origin(config, parts, model.frontend) if frozen is None else frozen
    about = replace(parts.about(config, model, {}), vocabulary=VOCABULARY, frozen=known)
    write_export(folder, about, config, weights, tokenizer, parts, model.frontend)
    return folder


def started(config: RunConfig, checkpoint: Path, allow_missing: list[str] | None = None) -> tuple[UnifiedModel, list[str]]:
    printed: list[str] = []
    config = replace(config, start=StartConfig(str(checkpoint), allow_missing or []))
    model = fresh(config)
    load_start(model, config, printed.append)
    return model, printed


def test_a_folder_of_ours_is_the_start(variant: str, tmp_path: Path) -> None:
    config = quick_config(variant)
    other = fresh(replace(config, seed=7))
    model, printed = started(config, write(tmp_path / "seven", config, other))
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert len(printed) == 1
    assert model.decoder.lm_head.weight is model.decoder.model.embed_tokens.weight


def test_what_may_be_missing_starts_from_scratch_and_is_named(tmp_path: Path) -> None:
    config = quick_config("tuna2")
    folder = write(tmp_path / "part", config, fresh(replace(config, seed=7)), drop="head.blocks.0.")
    with pytest.raises(UserError, match=r"13 missing: head.blocks.0.attention_norm.weight, .* \(7 more\)$"):
        started(config, folder)
    model, printed = started(config, folder, ["head.blocks.*"])
    assert torch.equal(model.head.blocks[0].q.weight, fresh(config).head.blocks[0].q.weight)
    assert "from scratch: head.blocks.0.attention_norm.weight" in printed[1]


def test_what_is_missing_is_not_taken_from_a_pretrained_decoder(tmp_path: Path) -> None:
    save_qwen(tmp_path / "qwen", tie_word_embeddings=True)
    scratch = quick_config("tuna2", decoder__rope_theta=1e6)
    pretrained = replace(scratch, decoder=replace(scratch.decoder, pretrained=str(tmp_path / "qwen")))
    folder = write(tmp_path / "part", pretrained, fresh(replace(pretrained, seed=7)), drop="layers.1.")
    model, printed = started(pretrained, folder, ["decoder.model.layers.1.*"])
    layer, expected, read = (one.decoder.model.layers[1].state_dict() for one in (model, fresh(scratch), fresh(pretrained)))
    assert "from scratch: decoder.model.layers.1." in printed[1]
    for name, tensor in layer.items():
        assert torch.equal(tensor, expected[name]), name
    assert not torch.equal(layer["mlp.up_proj.weight"], read["mlp.up_proj.weight"])


def test_latents_are_those_of_the_vae_it_learnt_with(tmp_path: Path) -> None:
    vae, other = tmp_path / "vae", tmp_path / "other"
    save_kl(vae)
    shutil.copytree(vae, other)
    edit_weights(other / "diffusion_pytorch_model.safetensors", **{"quant_conv.bias": torch.full((8,), 0.5)})
    shutil.copytree(vae, tmp_path / "elsewhere")
    tiny = quick_config("tuna")

    def with_vae(name: Path) -> RunConfig:
        return replace(tiny, frontend=replace(tiny.frontend, vae=str(name)))

    config = with_vae(vae)
    folder = write(tmp_path / "ours", config, fresh(config))
    for same in (vae, tmp_path / "elsewhere", folder / "frozen/vae"):
        started(with_vae(same), folder)
    words = f"frontend.vae is {vae} .sha256 [0-9a-f]{{12}}. in the checkpoint, {other} .sha256 [0-9a-f]{{12}}. in the configuration"
    with pytest.raises(UserError, match=words) as caught:
        started(with_vae(other), folder)
    assert "\n" not in str(caught.value)
    # Of a name on the Hub no hash is known: another name is another VAE.
    hub = write(tmp_path / "hub", config, fresh(config), frozen={"vae": {"name": "Wan-AI/Wan/vae", "sha256": {}}})
    with pytest.raises(UserError, match=f"frontend.vae is Wan-AI/Wan/vae in the checkpoint, {other} .sha256"):
        started(with_vae(other), hub)
    started(with_vae(hub / "frozen/vae"), hub)


def test_ids_mean_what_they_meant(tmp_path: Path) -> None:
    config = quick_config("tuna2")
    own = Components().tokenizer
    folder = write(tmp_path / "ours", config, fresh(config), tokenizer=own)
    started(config, folder)
    exchanged = replace(own.specials, boi=own.specials.eoi, eoi=own.specials.boi)
    for name, tokenizer, words in (
        ("words", train_tokenizer(["zebra quilt " * 9, "onyx jumble " * 9], 300), "token '.*' is [0-9]+ in the checkpoint"),
        ("roles", Tokenizer(own.backend, exchanged, own.prefix_space), f"boi is {own.boi} in the checkpoint, {own.eoi} in the"),
    ):
        (tmp_path / name).mkdir()
        tokenizer.save(tmp_path / name)
        changed = replace(config, decoder=replace(config.decoder, tokenizer=str(tmp_path / name)))
        with pytest.raises(UserError, match=words) as caught:
            started(changed, folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tuna2", "tuna_r"])
def test_an_official_checkpoint_is_a_start_too(name: str, tmp_path: Path) -> None:
    tensors = golden_checkpoint(name)
    torch.save({"model": tensors}, tmp_path / "w.pt")
    settings = ["decoder.heads=4", "data.image_size=64", "frontend.encoder=golden_siglip", "decoder.vocabulary=2004"]
    config = official_config(tensors, detect(tensors), None, None, settings)
    model, printed = started(config, tmp_path / "w.pt")
    assert torch.equal(model.decoder.lm_head.weight, tensors["tuna.lm_head.weight"])
    if name == "tuna_r":
        assert printed[1].endswith("from scratch: mask_token.token_D")
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


def test_the_encoder_is_the_one_that_its_weights_began_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a record would name an encoder that had no part, and intervals over encoders would count it."""
    config = quick_config("tuna_r")
    folder = write(tmp_path / "ours", config, fresh(config))
    monkeypatch.setattr(
        start, "find_component", lambda kind, given, seed, setting: Component(tmp_path, "", {"file": f"{kind}-{seed}"})
    )
    started(config, folder)
    with pytest.raises(UserError, match="its encoder began as encoder-0, here it is encoder-1"):
        started(replace(config, components_seed=1), folder)


def test_a_run_starts_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed, it goes on from its own checkpoint: the start is not needed again."""
    config = quick_config("tuna2")
    folder = write(tmp_path / "ours", config, fresh(replace(config, seed=7)))
    config = replace(config, start=StartConfig(str(folder)), evaluation=replace(config.evaluation, points=1))
    calls: list[str] = []
    monkeypatch.setattr(running, "load_start", lambda model, config, say: calls.append(config.start.checkpoint))
    assert train(config, tmp_path / "run") == 0 and train(config, tmp_path / "run") == 0
    assert calls == [str(folder)]
