"""What is exported computes what the run computed, stands alone, and is known to be whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.official.golden import Outputs, Picture, run

from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.trained.folder import read_about, read_weights
from tunalab.trained.model import Model, load
from tunalab.training.checkpoints import EMA, MANIFEST, MODEL, TENSORS, CheckpointStore, read_whole


def outputs(loaded: Model) -> Outputs:
    """Of an edit: text, a source image, a target image."""
    space = loaded.model.frontend.space
    cells = 16 // space.stride  # of an image of 16 pixels
    tokens = space.grid(16, 16)[0] ** 2
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn((2, space.channels, cells, cells), generator=generator)
    ids = [1, 3, *[6] * (1 + tokens), 4, 9, 8, 3, *[6] * (1 + tokens), 4, 2]
    pictures = [Picture(2, source, 1.0, False), Picture(7 + tokens, target, 0.4, True)]
    return run(loaded.model, np.array(ids), pictures, space.token_pixels)


def assert_same(one: Outputs, other: Outputs) -> None:
    assert torch.equal(one.logits_LV, other.logits_LV) and one.logits_LV.std() > 0
    assert all(torch.equal(a, b) for a, b in zip(one.predictions, other.predictions, strict=True))


@pytest.fixture
def exported(run_dir: Path, tmp_path: Path) -> Path:
    load(run_dir, "cpu").save_pretrained(tmp_path / "out")
    return tmp_path / "out"


def test_an_export_computes_bit_for_bit_what_the_run_computed_and_needs_nothing_else(
    run_dir: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_run = load(run_dir, "cpu")
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(tmp_path / "nowhere"))
    loaded = load(exported, "cpu")
    assert_same(outputs(loaded), outputs(of_run))
    assert loaded.config == of_run.config and loaded.origin == of_run.origin
    assert loaded.tokenizer.encode("a red ring") == of_run.tokenizer.encode("a red ring")
    assert not loaded.model.training and {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    for one, other in zip(loaded.model.state_dict().items(), of_run.model.state_dict().items(), strict=True):
        assert one[0] == other[0] and torch.equal(one[1], other[1])
    tied = loaded.model.decoder
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    if loaded.config.frontend.name == "vae_siglip":
        image = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
        assert torch.equal(loaded.model.frontend.to_space(image), of_run.model.frontend.to_space(image))
        assert not any(p.requires_grad for p in loaded.model.frontend.vae.parameters())


def test_averaged_weights_by_default_and_raw_ones_on_request(run_dir: Path, exported: Path, tmp_path: Path) -> None:
    newest = CheckpointStore(run_dir / "checkpoints").newest_valid()
    assert newest is not None
    assert main(["export", str(run_dir), str(tmp_path / "raw"), "--raw"]) == 0
    name = "head.blocks.0.q.weight"
    averaged, raw = (read_whole(newest, prefix)[name] for prefix in (EMA, MODEL))
    assert not torch.equal(averaged, raw)
    assert torch.equal(read_weights(exported)[name], averaged)
    assert torch.equal(read_weights(tmp_path / "raw")[name], raw)
    origins = [read_about(path).origin for path in (exported, tmp_path / "raw")]
    assert [origin["weights"] for origin in origins] == ["averaged", "raw"] and origins[0]["tokens"] >= 700
    # A tied table is stored once, a frozen part in its own folder, with the hash it had where it came from.
    names = set(load_file(exported / "model.safetensors"))
    assert "decoder.lm_head.weight" not in names and not any("vae." in name for name in names)
    frozen = read_about(exported).frozen
    assert set(frozen) == ({"vae"} if (exported / "frozen").is_dir() else set())
    assert all(len(digest) == 64 for digest in frozen.get("vae", {"sha256": {}})["sha256"].values())


def test_load_takes_either_and_says_what_is_neither(run_dir: Path, exported: Path, tmp_path: Path) -> None:
    assert_same(outputs(load(exported, "cpu")), outputs(load(run_dir, "cpu")))
    with pytest.raises(UserError, match="neither an exported folder .* nor a run directory"):
        load(tmp_path, "cpu")


def test_large_weights_are_several_files(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(exported, "cpu")
    monkeypatch.setattr("tunalab.trained.folder.MAX_SHARD", "40KB")
    loaded.save_pretrained(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    assert_same(outputs(load(tmp_path / "many", "cpu")), outputs(loaded))


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "tampered weights": (
        lambda f: flip(f / "model.safetensors"),
        "export .* is damaged: model.safetensors does not match its hash",
    ),
    "tampered settings": (
        lambda f: (f / "config.yaml").write_text((f / "config.yaml").read_text().replace("raster", "patches ", 1) + " "),
        "is damaged: config.yaml has",
    ),
    "truncated weights": (lambda f: cut(f / "model.safetensors"), "is damaged: model.safetensors has .* bytes instead of"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "is damaged: tokenizer/.* is missing"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "cannot be loaded: it holds no checkpoint"),
    "another manifest": (lambda f: (f / MANIFEST).write_text(json.dumps({"files": {}})), "is not an exported folder of format 1"),
    "broken manifest": (lambda f: (f / MANIFEST).write_text("{"), "is damaged: manifest unreadable"),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_what_was_altered_is_one_line(exported: Path, tmp_path: Path) -> None:
    for kind, (harm, words) in HARM.items():
        shutil.copytree(exported, tmp_path / kind)
        harm(tmp_path / kind)
        with pytest.raises(UserError, match=words) as caught:
            load(tmp_path / kind, "cpu")
        assert "\n" not in str(caught.value)


def reseal(folder: Path) -> None:
    """Give a folder a manifest that fits it, as someone who altered it on purpose would."""
    import hashlib

    manifest = json.loads((folder / MANIFEST).read_text())
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    manifest["files"] = {
        str(path.relative_to(folder)): {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in files
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_parts_that_do_not_belong_together_are_one_line(exported: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings"
    shutil.copytree(exported, settings)
    text = (settings / "config.yaml").read_text()
    (settings / "config.yaml").write_text(text.replace("  width: 32", "  width: 64"))
    reseal(settings)
    with pytest.raises(UserError, match="weights do not fit; .* of another shape") as caught:
        load(settings, "cpu")
    assert "\n" not in str(caught.value)
    words = tmp_path / "words"
    shutil.copytree(exported, words)
    sidecar = words / "tokenizer" / "tunalab_tokenizer.json"
    sidecar.write_text(sidecar.read_text().replace("<|image|>", "<|picture|>"))
    reseal(words)
    with pytest.raises(UserError, match="lacks special tokens: image_pad <.picture.>"):
        load(words, "cpu")


def test_an_export_is_never_written_over_and_needs_a_run(run_dir: Path, exported: Path, tmp_path: Path, capsys) -> None:
    calls = {
        ("export", str(run_dir), str(exported)): "is there already",
        ("export", str(tmp_path), str(tmp_path / "new")): "nor a run directory",
    }
    for call, words in calls.items():
        assert main(list(call)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line
    assert not (tmp_path / "new").exists()


def test_a_damaged_run_is_one_line(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        cut(checkpoint / TENSORS / "shard-00001-model-00001-of-00001.safetensors")
    with pytest.raises(UserError, match="every checkpoint in it is damaged"):
        load(tmp_path / "run", "cpu")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="it holds no checkpoint"):
        load(tmp_path / "run", "cpu")
