"""What is no whole official checkpoint is refused in one line that says why."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from tests.official.golden import NAMES, golden_checkpoint
from torch import Tensor

from tunalab.cli import main
from tunalab.data.buckets import Buckets
from tunalab.errors import UserError
from tunalab.official.layout import (
    detect,
    official_config,
    published_encoder,
    read_tensors,
    settings_of_shapes,
    without_prefix,
    without_vae,
)

SMALL = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(4, dtype=torch.bfloat16)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w, "step": 3}, lambda w: {"model": w, "args": {"lr": 0.1}}])
def test_a_pt_file_plain_or_wrapped(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    torch.save(wrap(SMALL), tmp_path / "w.pt")
    assert same(read_tensors(tmp_path / "w.pt"), SMALL)


def test_safetensors_single_or_sharded_by_file_index_or_folder(tmp_path: Path) -> None:
    save_file(SMALL, tmp_path / "w.safetensors")
    (tmp_path / "shards").mkdir()
    save_torch_state_dict(SMALL, tmp_path / "shards", max_shard_size=10)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) == 2
    for path in ("w.safetensors", ".", "shards", "shards/model.safetensors.index.json"):
        assert same(read_tensors(tmp_path / path), SMALL)


def test_a_prefix_goes_when_every_name_has_it() -> None:
    assert without_prefix({"module.model.a": 1, "module.model.b": 2}) == {"a": 1, "b": 2}
    assert without_prefix({"module.a": 1, "b": 2}) == {"module.a": 1, "b": 2}


def broken(kind: str, folder: Path) -> Path:
    path = folder / "w.safetensors"
    if kind == "absent":
        return folder / "nothing.pt"
    if kind == "ending":
        (folder / "w.onnx").write_bytes(b"x")
        return folder / "w.onnx"
    if kind == "empty folder":
        return folder
    if kind in ("truncated", "zeroed header"):
        save_file(SMALL, path)
        content = path.read_bytes()
        path.write_bytes(content[:-5] if kind == "truncated" else bytes(64) + content[64:])
        return path
    if kind == "tampered":
        save_file({**SMALL, "c": torch.tensor([1.0, float("nan")])}, path)
        return path
    if kind == "two files":
        save_file(SMALL, path)
        save_file(SMALL, folder / "v.safetensors")
        return folder
    if kind.endswith("shard"):
        save_torch_state_dict(SMALL, folder, max_shard_size=10)
        first = sorted(folder.glob("model-*"))[0]
        if kind == "missing shard":
            first.unlink()
        else:
            save_file({"c": torch.ones(1)}, first)
        return folder
    if kind == "index":
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
        return folder
    torch.save(
        {"truncated pt": SMALL, "pickle": {"a": SMALL, "f": Path(".")}, "counter": [1, 2], "others": {**SMALL, "step": 3}}[kind],
        folder / "w.pt",
    )
    if kind == "truncated pt":
        content = (folder / "w.pt").read_bytes()
        (folder / "w.pt").write_bytes(content[: len(content) // 2])
    return folder / "w.pt"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("absent", "no checkpoint .*nothing.pt"),
        ("ending", "w.onnx is no checkpoint"),
        ("empty folder", "holds 0 checkpoints"),
        ("two files", r"holds 2 checkpoints \(v.safetensors, w.safetensors\): name the file"),
        ("truncated", "w.safetensors is damaged"),
        ("zeroed header", "w.safetensors is damaged"),
        ("tampered", "w.safetensors: 'c' holds values that are not finite"),
        ("missing shard", "incomplete: 1 of 2 files missing: model-00001-of-00002.safetensors"),
        ("wrong shard", "incomplete: 1 tensors missing"),
        ("index", "damaged .no weight_map"),
        ("truncated pt", "w.pt"),
        ("pickle", "more than tensors"),
        ("counter", "no tensors by name"),
        ("others", "1 entries that are no tensors: step"),
    ],
)
def test_a_broken_file_is_named(kind: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_tensors(broken(kind, tmp_path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(("name", "published"), zip(NAMES, ("Tuna-2", "Tuna-R", "Tuna"), strict=True))
def test_the_model_is_told_by_its_names(name: str, published: str) -> None:
    assert detect(golden_checkpoint(name)).name == published


def test_sizes_come_from_shapes() -> None:
    tensors = golden_checkpoint("tuna2")
    assert settings_of_shapes(tensors, detect(tensors), heads=4) == {
        "decoder.vocabulary": 2004,
        "decoder.width": 256,
        "decoder.layers": 2,
        "decoder.heads": 4,
        "decoder.kv_heads": 2,
        "decoder.mlp": 256,
        "decoder.tie_embeddings": False,
        "head.blocks": 2,
        "head.head_dim": 64,
        "head.heads": 4,
        "head.kv_heads": 2,
        "head.mlp": 256,
        "frontend.name": "patch_embed",
        "frontend.patch": 16,
        "objective.target_layout": "raster",
    }
    with pytest.raises(UserError, match=r"decoder.heads does not follow from shapes \(width 256\)"):
        settings_of_shapes(tensors, detect(tensors), heads=None)


def test_published_sizes_need_no_settings() -> None:
    with torch.device("meta"):
        full = {"vision_model.embeddings.position_embedding.weight": torch.empty(1024, 1152)}
    assert published_encoder(full) == "vit_so400m_patch16_siglip_512.v2_webli"
    assert published_encoder(golden_checkpoint("tuna_r")) is None


@pytest.mark.parametrize("given", [[], ["data.image_size=64"], ["data.buckets=[64x64, 48x96]"]])
def test_images_are_shown_as_officially(given: list[str]) -> None:
    """In the five published shapes, unless a size is given; by the official rule in any."""
    tensors = golden_checkpoint("tuna2")
    config = official_config(tensors, detect(tensors), None, None, ["decoder.heads=4", *given])
    shapes = {"": ["512x512", "448x576", "576x448", "384x672", "672x384"], "data.buckets=[64x64, 48x96]": ["64x64", "48x96"]}
    assert config.data.buckets == shapes.get("".join(given), []) and config.data.bucket_rule == "official"
    if not given:
        assert Buckets.of(config.data).choose("a", 30, 900) == (384, 672), "no picture is left out"


def test_a_vae_that_is_carried_along_is_set_apart() -> None:
    carried = {**SMALL, "vision_model.vae.encoder.conv1.weight": SMALL["b"], "vae.decoder.bias": SMALL["a"]}
    learnt, frozen = without_vae(carried)
    assert same(learnt, SMALL) and frozen == ["vae.decoder.bias", "vision_model.vae.encoder.conv1.weight"]


def without(*beginnings: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda official: {name: tensor for name, tensor in official.items() if not name.startswith(beginnings)}


WRONG: dict[str, tuple[str, Callable[[dict[str, Tensor]], dict[str, Tensor]], list[str], str]] = {
    "wrong layout": ("tuna2", lambda w: dict(SMALL), [], "no official layout: neither .* among 2 names: a, b"),
    "half, no visual part": (
        "tuna_r",
        without("vision_model.embeddings"),
        [],
        "half a checkpoint: .*Tuna-R looks like Tuna",
    ),
    "half, no decoder": ("tuna2", without("tuna."), [], "half a checkpoint: tuna.model.embed_tokens.weight is missing"),
    "half, no head": ("tuna2", without("diffusion_head_a"), [], r"half a checkpoint: no diffusion_head_a\.\*"),
    "missing names": (
        "tuna2",
        without("diffusion_head_b.norm", "tuna.model.layers.1.mlp"),
        [],
        "4 missing: tuna.model.layers.1.mlp.gate_proj.weight, .*, diffusion_head_b.norm_final.weight$",
    ),
    "unexpected names": (
        "tuna2",
        lambda w: {**w, **{f"aspect_ratio_embed.{n}.weight": SMALL["b"] for n in range(9)}},
        [],
        r"9 unexpected: aspect_ratio_embed.0.weight, .*\(3 more\)$",
    ),
    "another shape": (
        "tuna2",
        lambda w: {**w, "time_embed.mlp.0.bias": SMALL["a"]},
        [],
        r"1 of another shape: time_embed.mlp.0.bias \(4,\) for \(256,\)",
    ),
    "sizes that contradict": (
        "tuna2",
        dict,
        ["decoder.width=512", "head.mlp=64"],
        "decoder.width is 256 in the checkpoint, 512 in the configuration; head.mlp is 256 in the checkpoint, 64 in the",
    ),
    "fewer layers": ("tuna2", dict, ["decoder.layers=1"], "decoder.layers is 2 in the checkpoint, 1 in the configuration"),
    "more layers": ("tuna2", dict, ["decoder.layers=3"], "12 missing: tuna.model.layers.2.self_attn.q_proj.weight, "),
    "patch targets": ("tuna2", dict, ["objective.target_layout=patch"], "target_layout is raster in the checkpoint, patch in the"),
    "another prediction": ("tuna2", dict, ["objective.prediction=v"], "objective.prediction is x in the checkpoint, v in the"),
    "unknown setting": ("tuna2", dict, ["decoder.widht=3"], "unknown key 'decoder.widht'"),
    "no encoder": ("tuna_r", dict, ["frontend.encoder=''"], "frontend.encoder is empty"),
    "no vae": ("tuna", dict, ["frontend.vae=''"], "frontend.vae is empty"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_one_line(
    kind: str, settings_of: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, change, settings, words = WRONG[kind]
    torch.save(change(dict(golden_checkpoint(name))), tmp_path / "w.pt")
    assert main(["convert", str(tmp_path / "w.pt"), str(tmp_path / "ours"), *settings_of(name), *settings]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and re.search(words, lines[0]), lines
    assert not (tmp_path / "ours").exists()


def test_a_tokenizer_without_image_tokens_is_refused(
    settings_of: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(
        models.BPE(vocab={letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(str(tmp_path / "plain"))
    torch.save(golden_checkpoint("tuna2"), tmp_path / "w.pt")
    settings = [*settings_of("tuna2"), f"decoder.tokenizer={tmp_path / 'plain'}"]
    assert main(["convert", str(tmp_path / "w.pt"), str(tmp_path / "ours"), *settings]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "lacks special tokens" in lines[0] and "<|image_pad|>" in lines[0]


def test_nothing_is_written_over(tmp_path: Path, converted: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(converted("tuna2")), str(tmp_path), "--to", "official"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["convert", str(converted("tuna2")), str(tmp_path / "new.pt"), "--to", "official", "seed=1"]) == 2
    assert "takes no settings" in capsys.readouterr().err


def test_the_call_says_what_it_found_and_did(
    settings_of: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = {"vision_model.vae.conv1.weight": SMALL["b"]}
    save_file({**golden_checkpoint("tuna"), **vae}, tmp_path / "w.safetensors")
    assert main(["convert", str(tmp_path / "w.safetensors"), str(tmp_path / "ours"), *settings_of("tuna")]) == 0
    text = capsys.readouterr().out
    assert "official Tuna, 102 tensors" in text and "all 102 names mapped" in text
    assert "left out: 1 tensors of the frozen VAE" in text and "from scratch: mask_token.token_D" in text
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back.pt"), "--to", "official"]) == 0
    assert "official Tuna, 102 tensors" in capsys.readouterr().out
