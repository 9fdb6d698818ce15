"""A whole run of pretrained parts, all read from folders: the same model class as at tiny scale, one step through its losses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from samples import documents
from tests.checkpoints import QWEN, save_qwen, save_qwen_tokenizer, save_siglip, save_timm, save_wan
from tests.variants import SETTINGS

from tunalab.data.packing import Placed, collate
from tunalab.data.sequence import to_sequence
from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.model.objective import draw, losses
from tunalab.model.unified import UnifiedModel, build_model
from tunalab.settings.schema import DecoderConfig, FlowHeadConfig, FrontEndConfig, RunConfig

SIDE = 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """qwen with its tokenizer, siglip of both libraries, dino, and a VAE of stride 8."""
    folder = tmp_path_factory.mktemp("pretrained")
    save_qwen(folder / "qwen", tie_word_embeddings=True)
    save_qwen_tokenizer(folder / "qwen")
    save_siglip(folder / "siglip")
    save_timm(folder / "dino", "vit_small_patch16_dinov3", embed_dim=24, depth=2, num_heads=2, img_size=32)
    save_wan(
        folder / "wan", z_dim=4, dim_mult=[1] * 4, temperal_downsample=[False] * 3, latents_mean=[0.1] * 4, latents_std=[0.5] * 4
    )
    return folder


def run_config(folders: Path, frontend: FrontEndConfig) -> RunConfig:
    return RunConfig(
        decoder=DecoderConfig(
            pretrained=str(folders / "qwen"),
            width=32,
            layers=2,
            heads=4,
            kv_heads=2,
            mlp=48,
            rope_theta=1e6,
            image_positions="none",
        ),
        head=FlowHeadConfig(blocks=1, head_dim=16, mlp=48),
        frontend=frontend,
    )


PRETRAINED = {"encoder": "siglip", "vae": "wan"}  # in the place of the tiny parts
FRONTENDS = {
    variant: FrontEndConfig(**{**settings, **{part: folder for part, folder in PRETRAINED.items() if part in settings}})
    for variant, settings in SETTINGS.items()
}
FRONTENDS["tuna_r of transformers"] = replace(FRONTENDS["tuna_r"], encoder="transformers:siglip")
FRONTENDS["tuna_r of dino"] = replace(FRONTENDS["tuna_r"], encoder="dino", patch=16)


@pytest.mark.parametrize("name", FRONTENDS)
def test_a_step_with_every_front_end(name: str, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders)
    config, components = run_config(folders, FRONTENDS[name]), Components()
    config.data.image_size = SIDE
    tokenizer = components.tokenizer_for(config.decoder)
    assert tokenizer.vocabulary < QWEN["vocab_size"]
    model = build_model(config, components, tokenizer.vocabulary)
    assert type(model) is UnifiedModel
    assert model.decoder.model.embed_tokens.weight.shape[0] == tokenizer.vocabulary
    pixels = model.frontend.space.token_pixels
    placed = [Placed(at, to_sequence(each, tokenizer, pixels)) for at, each in enumerate(documents("cge"))]
    batch = collate([placed], sum(each.length for each in placed) + 3, tokenizer.pad)
    parts = losses(model, batch, draw(batch, config.objective, config.seed, model.frontend.space, masking=True), config.objective)
    (parts["text"].sum / parts["text"].count + parts["flow"].sum / parts["flow"].count).backward()
    for parameter_name, parameter in model.named_parameters():
        still = (*model.frontend.frozen_parts, *model.frontend.fixed_parts)
        frozen = parameter_name.startswith(tuple(f"frontend.{part}." for part in still))
        assert (parameter.grad is None) == frozen, parameter_name
        assert frozen or parameter.grad.isfinite().all(), parameter_name  # type: ignore[union-attr]
    # What the pretrained parts are, they are in the model.
    assert model.decoder.model.embed_tokens.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    with torch.device("meta"):
        planned = build_model(config, components, tokenizer.vocabulary)
    assert {k: v.shape for k, v in planned.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_shared_parts_start_equal_whatever_the_front_end(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders)
    states = []
    for name in SETTINGS:
        config = run_config(folders, FRONTENDS[name])
        state = build_model(config, Components(), 300).state_dict()
        states.append({k: v for k, v in state.items() if not k.startswith(("frontend.", "head.output."))})
    first, *others = states
    for other in others:
        assert other.keys() == first.keys() and all(torch.equal(other[k], first[k]) for k in first)
    assert any(not torch.equal(first[k], torch.zeros_like(first[k])) for k in first if k.startswith("head."))


def test_a_table_that_is_too_small_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = run_config(tmp_path / "nothing", FRONTENDS["tuna2"])
    config.decoder.vocabulary = 10
    with pytest.raises(UserError, match="decoder.vocabulary=10 is less than the tokenizer's 11 ids"):
        build_model(config, Components(), 11)


@pytest.fixture
def no_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none" / "tiny").mkdir(parents=True)
    (tmp_path / "none" / "tiny" / "index.json").write_text("{}")
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(tmp_path / "none"))


def test_a_run_describes_only_the_components_it_uses(folders: Path, no_components: None) -> None:
    config = run_config(folders, FRONTENDS["tuna2"])
    assert Components().describe(config) == {}
    config.frontend = FrontEndConfig(name="siglip", encoder="tiny")
    with pytest.raises(UserError, match="no such encoder .choices: none"):
        Components().describe(config)


def test_a_tokenizer_may_be_another_than_the_checkpoints(folders: Path, no_components: None) -> None:
    save_qwen_tokenizer(folders / "words", ("<|vision_start|>", "<|vision_end|>"))
    components = Components()
    beside = components.tokenizer_for(DecoderConfig(tokenizer=str(folders / "words"), pretrained=str(folders / "qwen")))
    assert (beside.boi, beside.eoi) == (259, 260)
    assert components.tokenizer_for(DecoderConfig()).boi != beside.boi  # the tiny one
