"""SigLIP through timm and through transformers: the same features from the same weights, each as its library computes them.

Shapes: B images, N patch tokens, V encoder width, D decoder width.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stand_ins import WIDTH
from tests.checkpoints import SIGLIP, edit_json, edit_weights, save_siglip, truncate
from tests.tolerances import assert_sums_close
from torch import Tensor

from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.frontends.encoder import pretrained_encoder, to_timm
from tunalab.frontends.registry import build_frontend
from tunalab.settings.schema import FrontEndConfig

TERMS = 3 * 8 * 8 + 3 * (7 * 24 + 2 * 64 + 45)  # a patch, then three blocks of width 24 over at most 64 tokens
TIMM_NAME = "vit_so400m_patch16_siglip_512"


def save_both(folder: Path) -> tuple[object, object]:
    """The same tower as a folder of transformers and as one of timm: So400M's form at a tiny width."""
    import timm
    from timm.models import save_for_hf

    library = save_siglip(folder / "transformers")
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "mlp_ratio": 44.5 / 24}
    twin = timm.create_model(TIMM_NAME, num_classes=0, **arguments).eval()
    own = {name: tensor for name, tensor in twin.state_dict().items() if name.startswith(("attn_pool.", "fc_norm."))}
    twin.load_state_dict({**own, **to_timm(library.state_dict(), 3)}, strict=True)
    save_for_hf(twin, folder / "timm", model_args=arguments, safe_serialization=True)
    return library, twin


def features(encoder: str, image_BCHW: Tensor, **settings: object) -> Tensor:
    """Before the connector, (B, N, V)."""
    config = FrontEndConfig(name="siglip", patch=8, encoder=encoder, **settings)  # type: ignore[arg-type]
    frontend = build_frontend(config, WIDTH, 32, Components()).eval()
    frontend.connector = torch.nn.Identity()
    with torch.no_grad():
        return frontend(image_BCHW)


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_both_libraries_give_the_same_features(tmp_path: Path, layer: int) -> None:
    library, twin = save_both(tmp_path)
    image_BCHW = torch.rand(2, 3, 32, 32) * 2 - 1
    through_transformers = features(f"transformers:{tmp_path / 'transformers'}", image_BCHW, encoder_layer=layer)
    through_timm = features(str(tmp_path / "timm"), image_BCHW, encoder_layer=layer)
    torch.testing.assert_close(through_transformers, through_timm, rtol=0, atol=0)
    with torch.no_grad():
        of_transformers = library(image_BCHW, output_hidden_states=True).hidden_states[layer]  # type: ignore[operator]
        (of_timm,) = twin.get_intermediate_layers(image_BCHW, n=[3 + layer], norm=False)  # type: ignore[attr-defined]
    assert_sums_close(through_transformers, of_transformers, TERMS)
    assert_sums_close(through_timm, of_timm, TERMS)


@pytest.mark.parametrize("size", [(64, 64), (48, 24), (16, 64)])
def test_the_position_grid_is_resized_as_either_library_does(tmp_path: Path, size: tuple[int, int]) -> None:
    library, twin = save_both(tmp_path)
    image_BCHW = torch.rand(1, 3, *size) * 2 - 1
    folders = f"transformers:{tmp_path / 'transformers'}", str(tmp_path / "timm")
    twin.set_input_size(size)  # type: ignore[attr-defined]
    with torch.no_grad():
        (of_timm,) = twin.get_intermediate_layers(image_BCHW, n=[1], norm=False)  # type: ignore[attr-defined]
        hidden = library(image_BCHW, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states  # type: ignore[operator]
    expected = {True: of_timm, False: hidden[-2]}
    for antialias, of_library in expected.items():
        ours = [features(folder, image_BCHW, encoder_antialias=antialias) for folder in folders]
        torch.testing.assert_close(ours[0], ours[1], rtol=0, atol=0)
        assert_sums_close(ours[0], of_library, TERMS)
    assert (expected[True] - expected[False]).abs().max() > 1e-2, "the two ways are not the same"


def test_the_connector_is_drawn_the_same_whatever_was_read_before_it(tmp_path: Path) -> None:
    save_both(tmp_path)
    drawn = []
    for encoder in (f"transformers:{tmp_path / 'transformers'}", str(tmp_path / "timm")):
        torch.manual_seed(0)
        frontend = build_frontend(FrontEndConfig(name="siglip", patch=8, encoder=encoder), WIDTH, 32, Components())
        drawn.append(frontend.connector[1].weight)
    assert torch.equal(*drawn)


def test_a_checkpoint_of_both_towers_serves_too(tmp_path: Path) -> None:
    from transformers import SiglipConfig, SiglipModel

    text = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    whole = SiglipModel(SiglipConfig(vision_config=SIGLIP, text_config=text)).eval()
    whole.save_pretrained(tmp_path)
    image_BCHW = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = whole.vision_model(image_BCHW, output_hidden_states=True).hidden_states[-2]
    assert_sums_close(features(str(tmp_path), image_BCHW), expected, TERMS)


def test_published_sizes_are_known_without_a_file_and_the_same_in_both_libraries() -> None:
    names = {
        f"vit_so400m_patch{p}_siglip_{s}": f"transformers:google/siglip2-so400m-patch{p}-{s}" for p, s in ((14, 224), (16, 512))
    }
    with torch.device("meta"):
        for timm_name, name in names.items():
            theirs, ours = (pretrained_encoder(each, pretrained=True) for each in (timm_name, name))
            shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
            same = {name: tensor.shape for name, tensor in theirs.state_dict().items() if not name.startswith("attn_pool.")}
            assert shapes == same and sum(p.numel() for p in ours.parameters()) > 4e8


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        pretrained_encoder(f"transformers:{folder}", pretrained=True)
    assert "\n" not in str(raised.value) and f"frontend.encoder=transformers:{folder}" in str(raised.value)
    return str(raised.value)


def stored_name(folder: Path, ending: str) -> str:
    """The name in the file, which transformers may give another beginning than the module has."""
    (name,) = (name for name in load_file(folder / "model.safetensors") if name.endswith(ending))
    return name


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    save_siglip(tmp_path)
    weights, gone = tmp_path / "model.safetensors", stored_name(tmp_path, "post_layernorm.bias")
    edit_weights(weights, **{"alien": torch.zeros(1), gone: None})
    assert "1 missing: post_layernorm.bias; 1 unexpected: alien" in refusal(tmp_path)
    save_siglip(tmp_path)
    edit_json(tmp_path / "config.json", intermediate_size=40)
    assert "(44, 24) for (40, 24)" in refusal(tmp_path)


def test_damaged_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path)
    save_siglip(tmp_path)
    name, broken = stored_name(tmp_path, "post_layernorm.bias"), torch.full((24,), float("nan"))
    edit_weights(tmp_path / "model.safetensors", **{name: broken})
    assert "not finite" in refusal(tmp_path)
    truncate(tmp_path / "model.safetensors")
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "cannot be read" in refusal(tmp_path)
    edit_json(tmp_path / "config.json", model_type="clip_vision_model")
    assert "is a clip_vision_model (choices: siglip, siglip_vision_model)" in refusal(tmp_path)
