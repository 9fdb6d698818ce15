"""A stranger's run directory, export, checkpoint or component runs no code of theirs: a pickle in any file is not loaded."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.official.golden import golden_checkpoint
from tests.training.test_earlier import as_earlier

from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.evaluation.subject import kept_array
from tunalab.files import sha256
from tunalab.frontends.components.store import INDEX, Components, content_hash
from tunalab.settings.layers import read_yaml
from tunalab.settings.loading import from_plain
from tunalab.trained.model import load
from tunalab.training.checkpoints import MANIFEST, CheckpointStore, learnt_weights
from tunalab.training.run import train

of_a_run_with_a_vae = pytest.mark.parametrize("run_dir", ["tuna"], indirect=True)


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """What a payload that ran would leave."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir(), "the payload of these tests does nothing"
    (tmp_path / "ran").rmdir()
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists(), "code of the file ran"


@pytest.fixture(params=["pickle", "torch"])
def hostile(request: pytest.FixtureRequest, marker: Path, tmp_path: Path) -> bytes:
    if request.param == "pickle":
        return pickle.dumps({"state_dict": Payload(marker)}, protocol=2)
    torch.save({"weight": torch.zeros(2), "payload": Payload(marker)}, tmp_path / "payload.pt")
    return (tmp_path / "payload.pt").read_bytes()


def seal(folder: Path) -> None:
    """Give every manifest below the hashes of what lies there now: strangers do that as well."""
    for path in folder.rglob(MANIFEST):
        try:
            manifest = json.loads(path.read_text())
        except ValueError:  # it is what was planted
            continue
        files = [file for file in sorted(path.parent.rglob("*")) if file.is_file() and file != path]
        sums = {str(file.relative_to(path.parent)): sha256(file) for file in files}
        if "files" in manifest:
            entries = {name: {"sha256": digest, "bytes": (path.parent / name).stat().st_size} for name, digest in sums.items()}
            manifest["files"] = entries
        path.write_text(json.dumps(manifest if "files" in manifest else sums))
    if (folder / INDEX).is_file() and (folder / INDEX).read_bytes().startswith(b"{"):
        index = json.loads((folder / INDEX).read_text())
        entries = {name: entry | {"sha256": content_hash(folder / entry["file"])} for name, entry in index.items()}
        (folder / INDEX).write_text(json.dumps(entries))


def refused(folder: Path, copy: Path, content: bytes, read: Callable[[Path], object], names: Iterable[str] = ()) -> set[str]:
    """Plant the content in one file after the other (by default in each of the folder); where it is refused in one line."""
    found = set()
    for name in names or [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]:
        shutil.copytree(folder, copy)
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
        seal(copy)
        try:
            read(copy)
        except UserError as error:
            assert "\n" not in str(error), name
            found.add(name.rsplit("/", 1)[-1])
        shutil.rmtree(copy)
    return found


SHARD = "shard-00001-model-00001-of-00001.safetensors"
# Files of other formats, of ours or of a library's, that a folder of ours does not hold.
IN_A_CHECKPOINT = ("progress.pt", "state.ckpt", "tensors/.metadata", "tensors/__0_0.distcp", "tensors/z.safetensors")
IN_AN_EXPORT = ("pytorch_model.bin", "frozen/vae/diffusion_pytorch_model.bin", "tokenizer/added_tokens.json")


@of_a_run_with_a_vae
def test_a_run_directory(run_dir: Path, marker: Path, tmp_path: Path) -> None:
    found = refused(run_dir, tmp_path / "copy", pickle.dumps(Payload(marker)), load)
    assert found >= {"config.yaml", "progress.json", "manifest.json", SHARD}


@of_a_run_with_a_vae
def test_a_checkpoint_with_files_that_are_not_ours(run_dir: Path, hostile: bytes, tmp_path: Path) -> None:
    checkpoint = CheckpointStore(run_dir / "checkpoints").steps()[-1].relative_to(run_dir)
    names = [str(checkpoint / name) for name in IN_A_CHECKPOINT]
    assert refused(run_dir, tmp_path / "copy", hostile, load, names) >= {"z.safetensors"}


@of_a_run_with_a_vae
def test_a_run_that_goes_on(run_dir: Path, marker: Path, tmp_path: Path) -> None:
    def resumed(copy: Path) -> None:
        train(from_plain(read_yaml(copy / "config.yaml")), copy)

    checkpoint = CheckpointStore(run_dir / "checkpoints").steps()[-1].relative_to(run_dir)
    names = ["config.yaml", "metrics.jsonl", *(str(checkpoint / name) for name in ("progress.json", f"tensors/{SHARD}"))]
    found = refused(run_dir, tmp_path / "copy", pickle.dumps(Payload(marker)), resumed, names)
    assert found == {"config.yaml", "progress.json", SHARD}


@of_a_run_with_a_vae
def test_an_exported_folder(run_dir: Path, hostile: bytes, tmp_path: Path) -> None:
    load(run_dir, "cpu").save_pretrained(tmp_path / "export")
    found = refused(tmp_path / "export", tmp_path / "copy", hostile, load)
    assert found >= {"config.yaml", "manifest.json", "model.safetensors", "tokenizer.json", "vae.safetensors", "latents.json"}
    refused(tmp_path / "export", tmp_path / "copy", hostile, load, IN_AN_EXPORT)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.safetensors", "model.safetensors.index.json"])
def test_an_official_checkpoint(name: str, hostile: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(hostile)
    assert main(["convert", str(tmp_path / name), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and name in line


def test_tensors_beside_the_payload_do_not_help(marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": golden_checkpoint("tuna2"), "step": Payload(marker)}, tmp_path / "w.pt")
    assert main(["convert", str(tmp_path / "w.pt"), str(tmp_path / "out")]) == 2
    assert "holds more than tensors and plain values: it is not loaded" in capsys.readouterr().err


@of_a_run_with_a_vae
@pytest.mark.parametrize("name", ["progress.pt", "tensors/.metadata", "tensors/__0_0.distcp"])
def test_a_checkpoint_of_an_earlier_format(
    name: str, run_dir: Path, hostile: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    newest = CheckpointStore(tmp_path / "run" / "checkpoints").steps()[-1]
    as_earlier(newest)
    if name.endswith(".distcp"):  # each tensor of it lies in the file as torch.save leaves one
        hostile = hostile * (1 + (newest / name).stat().st_size // len(hostile))
    (newest / name).write_bytes(hostile)
    seal(tmp_path / "run")
    assert main(["convert-checkpoints", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: checkpoint {newest} cannot be read: ")


def test_a_checkpoint_of_the_first_format(hostile: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.ckpt").write_bytes(hostile)
    with pytest.raises(UserError, match="cannot be read") as caught:
        learnt_weights(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_component(quick_components: Path, hostile: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(copy: Path) -> None:
        monkeypatch.setenv("TUNALAB_COMPONENTS", str(copy.parent))
        components: Any = Components()
        components.tokenizer, components.vae(), components.encoder(pretrained=True)

    found = refused(quick_components / "tiny", tmp_path / "tiny", hostile, read)
    assert found >= {"index.json", "tokenizer.json", "tunalab_tokenizer.json"}
    assert {name.partition("-")[0] for name in found} >= {"vae", "encoder"}


@pytest.mark.parametrize("name", ["0.npy", "0.npz"])
def test_images_that_an_evaluation_kept(name: str, hostile: bytes, marker: Path, tmp_path: Path) -> None:
    of_objects = np.array([Payload(marker)], dtype=object)
    np.save(tmp_path / "objects.npy", of_objects)
    np.savez(tmp_path / "objects.npz", images=of_objects)
    for content in (hostile, (tmp_path / f"objects.{name[2:]}").read_bytes(), b"", b"\x93NUMPY"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="is damaged, or no array of ours: remove it") as caught:
            kept_array(tmp_path / name, "images")
        assert "\n" not in str(caught.value)


@of_a_run_with_a_vae
def test_a_saved_configuration_reads_nothing_of_this_machine(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", "hunter2")
    plain = read_yaml(run_dir / "config.yaml")
    for text in ("http://evil/${oc.env:PASSWORD}/${seed}/\\${a}", "${"):
        plain["tracking"]["uri"] = text
        assert from_plain(plain).tracking.uri == text


def test_a_model_folder_that_brings_code_is_refused_without_a_question(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask at the terminal whether to run it, and wait."""
    from tunalab.data.pretrained import locate
    from tunalab.frontends.encoder import read_siglip_config as read_encoder
    from tunalab.model.decoder import read_config as read_decoder

    monkeypatch.setattr("builtins.input", lambda _: "y")
    (tmp_path / "own.py").write_text(
        "import os\nfrom transformers import PretrainedConfig\n"
        f"os.mkdir({str(marker)!r})\nclass Own(PretrainedConfig):\n    model_type = 'own'\n"
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    for read in (read_encoder, read_decoder):
        with pytest.raises(UserError, match="cannot be read"):
            read(locate(str(tmp_path), "decoder.pretrained"))
