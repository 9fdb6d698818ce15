"""The map of names is complete and moves bits only."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.official.golden import NAMES, golden_checkpoint, shapes
from torch import Tensor

from tunalab.errors import UserError
from tunalab.model.unified import build_model
from tunalab.official.layout import read_tensors
from tunalab.official.weights import counterpart
from tunalab.trained.convert import convert_to_official, convert_to_tunalab
from tunalab.trained.folder import RunParts
from tunalab.trained.model import Model, load

Settings = Callable[[str], list[str]]


def quietly(line: str) -> None:
    pass


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("target", ["back.pt", "back.safetensors", "back"])
@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_is_the_same_checkpoint_bit_for_bit(
    name: str, target: str, converted: Callable[[str], Path], tmp_path: Path
) -> None:
    printed: list[str] = []
    convert_to_official(converted(name), tmp_path / target, printed.append)
    same(read_tensors(tmp_path / target), golden_checkpoint(name))
    assert f"{len(shapes(name))} tensors" in printed[-1]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_ours_stands_for_official_ones_and_none_twice(name: str, golden_model: Callable[[str], Model]) -> None:
    ours = [parameter for parameter, _ in golden_model(name).model.named_parameters() if not parameter.startswith("frontend.vae.")]
    places = [counterpart(parameter) for parameter in ours]
    official = [theirs for place in places if place is not None for theirs in place.names]
    assert None not in places and len(official) == len(set(official))
    # Of the published models only Tuna-2 has a mask token.
    assert set(official) - {"mask_token"} == set(shapes(name)) - {"mask_token"}


def test_bits_of_another_precision_are_kept(settings_of: Settings, tmp_path: Path) -> None:
    official = {name: tensor.to(torch.bfloat16) for name, tensor in golden_checkpoint("tuna_r").items()}
    save_file(official, tmp_path / "official.safetensors")
    convert_to_tunalab(tmp_path / "official.safetensors", tmp_path / "ours", None, None, settings_of("tuna_r"), quietly)
    convert_to_official(tmp_path / "ours", tmp_path / "back.safetensors", quietly)
    same(read_tensors(tmp_path / "back.safetensors"), official)
    assert load(tmp_path / "ours", "cpu").model.time.mlp[0].weight.dtype == torch.float32


@pytest.mark.parametrize("both", [True, False], ids=["two names", "one name"])
def test_a_tied_table_is_one(both: bool, settings_of: Settings, tmp_path: Path) -> None:
    official = dict(golden_checkpoint("tuna2"))
    table = official["tuna.model.embed_tokens.weight"]
    official["tuna.lm_head.weight"] = table.clone()
    torch.save(official if both else {k: v for k, v in official.items() if "lm_head" not in k}, tmp_path / "official.pt")
    convert_to_tunalab(tmp_path / "official.pt", tmp_path / "ours", None, None, settings_of("tuna2"), quietly)
    loaded = load(tmp_path / "ours", "cpu")
    decoder = loaded.model.decoder
    assert loaded.config.decoder.tie_embeddings and decoder.lm_head.weight is decoder.model.embed_tokens.weight
    convert_to_official(tmp_path / "ours", tmp_path / "back.pt", quietly)
    same(read_tensors(tmp_path / "back.pt"), official)


def test_what_may_be_missing_starts_as_every_model_starts(settings_of: Settings, tmp_path: Path) -> None:
    """The foundation checkpoint lacks layers of the decoder and of the flow head."""
    lacks = ("tuna.model.layers.1.", "diffusion_head_a.0.", "mask_token")
    torch.save({k: v for k, v in golden_checkpoint("tuna2").items() if not k.startswith(lacks)}, tmp_path / "foundation.pt")
    allowed = "start.allow_missing=['tuna.model.layers.1.*', 'diffusion_head_a.0.*']"
    settings = [*settings_of("tuna2"), "decoder.layers=2", allowed]
    printed: list[str] = []
    convert_to_tunalab(tmp_path / "foundation.pt", tmp_path / "ours", None, None, settings, printed.append)
    loaded = load(tmp_path / "ours", "cpu")
    parts = RunParts()
    fresh = build_model(loaded.config, parts, 2004).state_dict()
    made = {name: tensor for name, tensor in loaded.model.state_dict().items() if torch.equal(tensor, fresh[name])}
    started = [name for name in made if name.startswith(("decoder.model.layers.1.", "head.blocks.0.", "mask_token"))]
    assert set(made) == set(started) and len(started) == 12 + 13 + 1
    line = next(line for line in printed if "from scratch" in line)
    assert all(name in line for name in started)
    assert loaded.config.start.allow_missing == []
    # What was never there does not go back.
    convert_to_official(tmp_path / "ours", tmp_path / "back.pt", quietly)
    same(read_tensors(tmp_path / "back.pt"), read_tensors(tmp_path / "foundation.pt"))


def test_a_mask_token_starts_as_every_model_starts(golden_model: Callable[[str], Model]) -> None:
    loaded = golden_model("tuna_r")
    fresh = build_model(loaded.config, RunParts(), 2004)
    assert torch.equal(loaded.model.mask_token.token_D, fresh.mask_token.token_D)


def test_a_part_of_three_is_not_enough(settings_of: Settings, tmp_path: Path) -> None:
    """Queries, keys and values are one tensor here: two of them cannot be used, nor be left out without a word."""
    name = "vision_model.encoder.layers.1.self_attn.k_proj.weight"
    torch.save({k: v for k, v in golden_checkpoint("tuna_r").items() if k != name}, tmp_path / "half.pt")
    settings = [*settings_of("tuna_r"), "start.allow_missing=['*']"]
    with pytest.raises(UserError, match=f"1 missing: {name}$"):
        convert_to_tunalab(tmp_path / "half.pt", tmp_path / "ours", None, None, settings, quietly)
