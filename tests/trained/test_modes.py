"""Every file that a run, an export, a conversion or a component leaves has the mode that the umask says."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.training.conftest import MIX, quick_config

from tunalab.files import whole_file, whole_folder, write_atomically
from tunalab.frontends.components.store import Components, store
from tunalab.sweeps.cells import begin, take_lock
from tunalab.trained.convert import write_official
from tunalab.trained.model import load
from tunalab.training.run import train


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=["022", "077", "002"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def wrong(folder: Path, umask: int) -> dict[str, str]:
    """Files and folders of another mode, with it."""
    found = {}
    for path in folder.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != (0o777 if path.is_dir() else 0o666) & ~umask:
            found[str(path.relative_to(folder))] = oct(mode)
    return found


def test_a_run_and_what_is_made_of_it(umask: int, tmp_path: Path, quick_components: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNALAB_CACHE", str(tmp_path / "cache"))
    run_dir = tmp_path / "run"
    evaluation = {
        "points": 1,
        "groups": 1,
        "easy_vqa": 0,
        "loss_documents": 1,
        "psnr_images": 0,
        "sample_prompts": 1,
        "levels": [1],
    }
    config = quick_config("tuna", stages={"pretrain": {"tokens": 300, "mix": MIX}}, evaluation=evaluation)
    lock = take_lock(run_dir)
    assert lock is not None
    begin(run_dir, "alone")
    with lock:
        assert train(config, run_dir) == 0
    load(run_dir, "cpu").save_pretrained(tmp_path / "export")
    tensors = {"a": torch.ones(2)}
    components = Components()
    store(tmp_path / "own", "encoder/seed0@1", tensors, {})
    store(tmp_path / "own", "tokenizer", components.tokenizer, {})
    for name in ("w.pt", "w.safetensors", "shards"):
        write_official(tmp_path / name, tensors)
    names = {path.name for path in tmp_path.rglob("*")}
    assert {
        "model.safetensors",
        "tokenizer.json",
        "vae.safetensors",
        "index.json",
        "progress.json",
        "record.json",
    } <= names
    assert not wrong(tmp_path, umask)


def test_what_a_library_writes_for_its_owner_alone(umask: int, tmp_path: Path) -> None:
    """safetensors does: it writes a file of its own and renames it over ours."""
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "below").mkdir()
        save_file({"a": torch.ones(2)}, folder / "below" / "a.safetensors")
        (folder / "below" / "a.safetensors").chmod(0o600)
    with whole_file(tmp_path / "b.safetensors") as path:
        save_file({"a": torch.ones(2)}, path)
        path.chmod(0o600)
    write_atomically(tmp_path / "deep" / "c", "text")
    assert len(list(tmp_path.rglob("*"))) == 6 and not wrong(tmp_path, umask)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("before")
    with pytest.raises(OSError, match="No space left"), whole_file(path) as fresh:
        fresh.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
