"""The components that come with the package: whole, small, and the same numbers on every machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunalab.frontends.components.build import Recipe
from tunalab.frontends.components.store import SHIPPED, Collection, Components, content_hash, load_encoder, load_vae, plain

ROOT = Path(__file__).parents[3]
COLLECTION = Collection(SHIPPED)
ENCODERS, VAES = COLLECTION.names("encoder"), COLLECTION.names("vae")


@pytest.fixture(autouse=True)
def only_the_shipped(components_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(tmp_path / "none"))


def test_every_file_is_there_with_its_hash_and_none_besides() -> None:
    paths = {COLLECTION.component(name).verified() for name in COLLECTION.index}
    assert {path.name for path in paths} | {"index.json"} == {path.name for path in SHIPPED.iterdir()}
    files = [file for path in [*paths, SHIPPED / "index.json"] for file in ([path] if path.is_file() else path.iterdir())]
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) <= 6e6 and sum(sizes) <= 30e6
    for path in paths:
        assert path.name.split("-")[1].split(".")[0] == content_hash(path)[:12]


def test_encoders_have_seeds_and_snapshots_and_the_vaes_seeds() -> None:
    assert {"encoder/seed0@300", "encoder/seed0@1000", "encoder/seed0@3000"} <= set(ENCODERS) and "vae/seed0" in VAES
    for name in [*ENCODERS, *VAES]:
        entry = COLLECTION.index[name]
        seed = int(name.partition("seed")[2].partition("@")[0])
        kind = name.partition("/")[0]
        assert entry["config"] == plain(getattr(Recipe().seeded(seed), kind)), "the recipe is the one that made it"
        assert entry["data"] == COLLECTION.index["encoder/seed0@300"]["data"], "encoders and VAEs saw the same mix"
        assert entry["data"]["split"] == "components" and entry["seconds"] > 0 and entry["losses"]


def test_what_they_reach_is_what_was_asked_for() -> None:
    for name in ENCODERS:
        if Collection.steps(name) >= 3000:
            assert COLLECTION.index[name]["quality"]["image_to_text_recall_at_1"] >= 0.92, name
    for name in VAES:
        assert COLLECTION.index[name]["quality"]["psnr_db"] >= 28, name


def test_the_table_of_probes_is_of_these_components_and_says_that_they_read() -> None:
    text = (ROOT / "results" / "verification" / "components.md").read_text(encoding="utf-8")
    rows = {cells[0]: cells for line in text.splitlines() if line.startswith("| ") and (cells := line.strip("| ").split(" | "))}
    column = rows["features"].index("ocr")
    words = {name: float(rows[name][column].split(" / ")[0]) for name in ENCODERS}
    assert min(value for name, value in words.items() if Collection.steps(name) >= 3000) >= 0.40
    assert all(f"{COLLECTION.index[name]['quality']['image_to_text_recall_at_1']:.3f}" in rows[name] for name in ENCODERS)


@pytest.mark.parametrize("name", [*ENCODERS, *VAES])
def test_they_load_as_they_are_stored(name: str) -> None:
    component = COLLECTION.component(name)
    loaded = load_encoder(component) if name in ENCODERS else load_vae(component).vae
    stored = load_file(component.path)
    for key, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, stored[key].float()) and torch.isfinite(tensor).all()


def test_the_default_is_the_longest_training() -> None:
    default, strongest = Components().encoder(), load_encoder(COLLECTION.component(max(ENCODERS, key=Collection.steps)))
    steps = max(map(Collection.steps, ENCODERS))
    assert torch.equal(default.blocks[0].attn.qkv.weight, Components().encoder(f"tiny/seed0@{steps}").blocks[0].attn.qkv.weight)  # type: ignore[union-attr, operator, arg-type]
    assert strongest.embed_dim == default.embed_dim


DIGEST = """
import hashlib
from tunalab.frontends.components.store import Components
digest = hashlib.sha256()
for module in (Components().encoder("tiny/seed0@3000"), Components().vae("tiny/seed0").vae):
    for tensor in module.state_dict().values():
        digest.update(tensor.numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_other_threads_and_kernels_load_the_same_bits(tmp_path: Path) -> None:
    machines = [
        {"OMP_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "4", "ATEN_CPU_CAPABILITY": "avx2"},
        {"ATEN_CPU_CAPABILITY": "default"},
    ]
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST], env=os.environ | machine, capture_output=True, encoding="utf-8", check=True
        ).stdout
        for machine in machines
    }
    assert len(digests) == 1
