"""Building once, storing whole, and refusing what is missing, damaged or does not fit."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stand_ins import TINY, noise_captions, noise_texts

from tunalab.errors import UserError
from tunalab.files import sha256
from tunalab.frontends.components import vae
from tunalab.frontends.components.build import build_components
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.frontends.components.siglip import EncoderConfig
from tunalab.frontends.components.store import MANIFEST, NAMES, Components, folder_of, is_built, load_component, write_component
from tunalab.frontends.components.tokenizer import TokenizerConfig


def build(root: Path, settings: ComponentSettings = TINY) -> list[str]:
    lines: list[str] = []
    build_components(settings, lines.append, root, noise_captions, noise_texts)
    return lines


def copy_of(components: Components, root: Path) -> Components:
    import shutil

    shutil.copytree(components.root, root)
    return Components(TINY, root)


def test_quality_is_recorded_with_each_component(components: Components) -> None:
    described = components.describe()
    assert set(described) == set(NAMES)
    assert described["vae"]["quality"]["n"] == TINY.vae.held_out
    assert described["encoder"]["quality"]["chance_recall_at_1"] == 1 / TINY.encoder.held_out
    for component in described.values():
        assert component["quality"]["seconds"] >= 0 and component["quality"]["versions"]["torch"]


def test_what_exists_is_not_built_again(components: Components, tmp_path: Path) -> None:
    copy = copy_of(components, tmp_path / "copy")
    times = {path: path.stat().st_mtime_ns for path in copy.root.rglob("*.*")}
    lines = build(copy.root)
    assert not any("building" in line for line in lines)
    assert {path: path.stat().st_mtime_ns for path in copy.root.rglob("*.*")} == times


def test_another_configuration_is_another_folder(tmp_path: Path) -> None:
    folders = {folder_of(tmp_path, "vae", replace(TINY.vae, seed=seed)) for seed in range(3)}
    assert len(folders) == 3
    # The encoder was trained through the tokenizer, so a change there is a change here, and not in the VAE.
    other = replace(TINY, tokenizer=TokenizerConfig(vocabulary=301, texts=50))
    assert folder_of(tmp_path, "encoder", other.encoder) != folder_of(tmp_path, "encoder", TINY.encoder)
    assert folder_of(tmp_path, "vae", other.vae) == folder_of(tmp_path, "vae", TINY.vae)


def test_seeded_settings_share_the_tokenizer() -> None:
    assert ComponentSettings.seeded(0) == ComponentSettings()
    assert ComponentSettings.seeded(1).tokenizer == ComponentSettings().tokenizer
    assert ComponentSettings.seeded(1).vae != ComponentSettings().vae
    assert ComponentSettings.seeded(1).encoder != ComponentSettings().encoder


def test_loaded_weights_are_the_stored_ones_and_every_call_is_fresh(components: Components) -> None:
    folder = folder_of(components.root, "vae", TINY.vae)
    stored = load_file(folder / vae.WEIGHTS)
    first, second = components.vae(), components.vae()
    assert all(torch.equal(first.vae.state_dict()[name], tensor) for name, tensor in stored.items())
    assert first is not second and first.vae is not second.vae
    assert json.loads((folder / vae.STATISTICS).read_text())["mean"] == pytest.approx(first.mean_C.tolist())


def test_codec_normalises_to_unit_variance_and_back(components: Components) -> None:
    codec = components.vae()
    x_BChw = torch.randn(2, codec.channels, 4, 4)
    mean, std = codec.mean_C[:, None, None], codec.std_C[:, None, None]
    from torch.nn import functional as F

    plain = codec.vae.decode(x_BChw * std + mean).sample
    torch.testing.assert_close(codec.decode(x_BChw), F.pixel_shuffle(plain, codec.stride))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_component_names_the_command(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"'{name}' is not built .* run `tunalab components`"):
        load_component(name, TINY, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_zeroed_and_missing_files_are_named(name: str, components: Components, tmp_path: Path) -> None:
    copy = copy_of(components, tmp_path / "copy")
    folder = folder_of(copy.root, name, getattr(TINY, name))
    victim = next(path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".json") and path.name != MANIFEST)
    content = bytearray(victim.read_bytes())
    content[-64:] = bytes(64)
    victim.write_bytes(content)
    with pytest.raises(UserError, match=f"{victim.name} is damaged: delete"):
        load_component(name, TINY, copy.root)
    victim.unlink()
    with pytest.raises(UserError, match=f"{victim.name} is missing: delete"):
        build(copy.root)


def test_weights_that_do_not_fit_list_both_sides(components: Components, tmp_path: Path) -> None:
    copy = copy_of(components, tmp_path / "copy")
    folder = folder_of(copy.root, "vae", TINY.vae)
    weights = load_file(folder / vae.WEIGHTS)
    weights["alien"] = weights.pop("encoder.conv_in.bias")
    weights["decoder.conv_in.bias"] = torch.zeros(3)
    save_file(weights, folder / vae.WEIGHTS)
    sums = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(sums | {vae.WEIGHTS: sha256(folder / vae.WEIGHTS)}))
    with pytest.raises(UserError) as raised:
        copy.vae()
    message = str(raised.value)
    assert "\n" not in message
    assert "1 missing: encoder.conv_in.bias" in message and "1 unexpected: alien" in message
    assert "1 of another shape: decoder.conv_in.bias (3,) for (32,)" in message


def test_a_stopped_build_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "vae", TINY.vae)

    def stopped(fresh: Path) -> None:
        (fresh / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_component(folder, TINY.vae, stopped)
    assert not is_built(folder) and list(tmp_path.iterdir()) == []


def _build_in_process(root: Path) -> None:
    torch.set_num_threads(1)
    lines = build(
        root, replace(TINY, encoder=EncoderConfig(width=16, depth=2, heads=2, text_layers=1, steps=1, batch=4, held_out=4))
    )
    with (root / "lines.txt").open("a") as file:
        file.write("\n".join(lines) + "\n")


@pytest.mark.slow
def test_two_processes_build_each_component_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
    processes = [context.Process(target=_build_in_process, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    lines = (tmp_path / "lines.txt").read_text().splitlines()
    assert sum("building" in line and "another process" not in line for line in lines) == len(NAMES)
    assert sum(line.startswith("component") and "versions" not in line and "n=" in line for line in lines) == 2 * len(NAMES)


def test_the_folder_is_a_setting_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(tmp_path / "elsewhere"))
    assert Components().root == tmp_path / "elsewhere"
    monkeypatch.delenv("TUNALAB_COMPONENTS")
    assert Components().root == Path("components")


def test_unknown_component_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choices: tokenizer, vae, encoder"):
        load_component("decoder", TINY, tmp_path)
