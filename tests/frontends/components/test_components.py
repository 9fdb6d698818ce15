"""Training into a collection, finding by name, and refusing what is missing, damaged or does not fit."""

import json
import multiprocessing
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stand_ins import TINY, noise_captions, noise_texts
from torch import nn

from tunalab.errors import UserError
from tunalab.files import sha256
from tunalab.frontends.components.build import PARTS, Recipe, train_components
from tunalab.frontends.components.store import INDEX, SHIPPED, Collection, Components, content_hash, find_component
from tunalab.frontends.components.training import curve, train
from tunalab.settings.schema import FrontEndConfig, RunConfig


def train_all(folder: Path, recipe: Recipe = TINY, parts: tuple[str, ...] = PARTS) -> list[str]:
    lines: list[str] = []
    train_components(folder, parts, recipe, lines.append, noise_captions, noise_texts)
    return lines


@pytest.fixture
def copy(components_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(components_folder, tmp_path / "copy")
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(tmp_path / "copy"))
    return tmp_path / "copy" / "tiny"


def entry(folder: Path, name: str) -> Any:
    return json.loads((folder / INDEX).read_text())[name]


def change(folder: Path, name: str, **values: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {name: index[name] | values}))


def test_the_index_says_what_each_saw_took_and_reached(components_folder: Path) -> None:
    collection = Collection(components_folder / "tiny")
    assert list(collection.index) == ["encoder/seed0@1", "encoder/seed0@2", "tokenizer", "vae/seed0"]
    for name, one in collection.index.items():
        assert one["versions"]["torch"] and one["quality"]["n"] > 0
        assert content_hash(collection.folder / one["file"]) == one["sha256"] and one["sha256"][:12] in one["file"]
        if name != "tokenizer":
            assert one["seconds"] >= 0 and one["losses"] and one["data"]["split"] == "components"
    assert collection.index["encoder/seed0@2"]["images"] == 8
    assert collection.index["encoder/seed0@2"]["tokenizer"] == collection.index["tokenizer"]["sha256"]


def test_weights_are_kept_in_half_precision_and_read_in_single(components: Components, components_folder: Path) -> None:
    stored = load_file(components_folder / "tiny" / entry(components_folder / "tiny", "vae/seed0")["file"])
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    first, second = components.vae(), components.vae()
    for name, tensor in first.vae.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, stored[name].float())
    assert first is not second and first.vae is not second.vae


def test_codec_normalises_to_unit_variance_and_back(components: Components) -> None:
    codec = components.vae()
    x_BChw = torch.randn(2, codec.channels, 4, 4)
    mean, std = codec.mean_C[:, None, None], codec.std_C[:, None, None]
    plain = codec.vae.decode(x_BChw * std + mean).sample
    torch.testing.assert_close(codec.decode(x_BChw), nn.functional.pixel_shuffle(plain, codec.stride))


def test_what_is_there_is_not_trained_again(copy: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in copy.rglob("*.*") if not path.name.startswith(".")}
    assert not any("training" in line for line in train_all(copy))
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_what_is_damaged_or_was_shown_other_art_is_trained_again(copy: Path) -> None:
    (copy / entry(copy, "vae/seed0")["file"]).unlink()
    assert any("vae/seed0: training" in line for line in train_all(copy))
    assert not any("training" in line for line in train_all(copy))
    lines: list[str] = []
    train_components(copy, ("vae",), TINY, lines.append, noise_captions, noise_texts, art="another")
    assert any("vae/seed0: training" in line for line in lines) and entry(copy, "vae/seed0")["data"]["art"] == "another"
    with pytest.raises(UserError, match=r"holds encoder/seed0@1 of another recipe \(its data\): another --seed or --collection"):
        train_components(copy, ("encoder",), TINY, lines.append, noise_captions, noise_texts, art="another")


def test_an_encoder_of_another_recipe_does_not_stand_beside_longer_ones_of_its_seed(copy: Path) -> None:
    other = replace(TINY, encoder=replace(TINY.encoder, context=TINY.encoder.context + 1, snapshots=(1,)))
    with pytest.raises(UserError, match=r"holds encoder/seed0@1 of another recipe \(context\)"):
        train_all(copy, other, ("encoder",))


def test_a_stopped_training_of_other_data_is_not_gone_on_with(tmp_path: Path) -> None:
    weight = nn.Linear(1, 1)

    def steps_of(data: str, stop: int = 4) -> list[int]:
        seen: list[int] = []

        def loss_of(step: int) -> Any:
            if step == stop:
                raise KeyboardInterrupt
            seen.append(step)
            return weight.weight.square().sum()

        with suppress(KeyboardInterrupt):
            snapshots: Any = dict.fromkeys((2, 4), lambda *_: None)
            train(weight, 1e-3, 4, loss_of, snapshots, tmp_path / "state", lambda steps: steps, {"data": data})
        return seen

    assert steps_of("scenes", stop=3) == [0, 1, 2] and steps_of("scenes") == [2, 3]
    assert steps_of("scenes", stop=3) == [0, 1, 2] and steps_of("drawings") == [0, 1, 2, 3]


def test_seeds_stand_beside_each_other_and_share_the_tokenizer(copy: Path) -> None:
    before = entry(copy, "tokenizer")["sha256"]
    train_all(copy, TINY.seeded(1), ("vae", "encoder"))
    collection = Collection(copy)
    assert collection.names("vae") == ["vae/seed0", "vae/seed1"] and len(collection.names("encoder")) == 4
    assert entry(copy, "vae/seed0")["sha256"] != entry(copy, "vae/seed1")["sha256"]
    assert entry(copy, "encoder/seed1@2")["tokenizer"] == before
    assert Components(1).used(config_of(encoder="tiny"))["encoder"].name == "encoder/seed1@2"


def test_another_recipe_replaces_what_was_trained_by_an_older_one(copy: Path) -> None:
    other = replace(TINY, vae=replace(TINY.vae, steps=1))
    assert any("vae/seed0: training" in line for line in train_all(copy, other))
    assert entry(copy, "vae/seed0")["config"]["steps"] == 1


def config_of(**frontend: str) -> RunConfig:
    return RunConfig(frontend=FrontEndConfig(name="siglip", **frontend))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("tiny", "encoder/seed0@2"),
        ("tiny/seed0", "encoder/seed0@2"),
        ("tiny@1", "encoder/seed0@1"),
        ("tiny/seed0@1", "encoder/seed0@1"),
    ],
)
def test_names(given: str, name: str, components: Components, components_folder: Path) -> None:
    for reference in (given, str(components_folder / given)):
        found = find_component("encoder", reference, 0, "frontend.encoder")
        assert found is not None and found.name == name
    described = components.describe(config_of(encoder=given))
    assert described["encoder"]["name"] == name and set(described) == {"tokenizer", "encoder"}


@pytest.mark.parametrize(
    ("given", "seed", "line"),
    [
        ("tiny@7", 0, "tiny@7: no such encoder .choices: tiny/seed0@1, tiny/seed0@2"),
        ("tiny/seed5@1", 0, "tiny/seed5@1: no such encoder"),
    ],
)
def test_seeds_and_snapshots_that_are_not_there_name_those_that_are(given: str, seed: int, line: str) -> None:
    with pytest.raises(UserError, match=f"frontend.encoder={line}"):
        Components(seed).encoder(given)


def test_seeds_of_runs_cross_with_components() -> None:
    found = [[find_component(kind, "tiny", seed, f"frontend.{kind}") for seed in range(6)] for kind in ("encoder", "vae")]
    encoders, vaes = ([one.name for one in row if one] for row in found)
    assert encoders == [f"encoder/seed{seed % len(set(encoders))}@{encoders[0].partition('@')[2]}" for seed in range(6)]
    assert vaes == [f"vae/seed{seed % len(set(vaes))}" for seed in range(6)]


def test_other_names_are_no_components() -> None:
    for given in ("vit_base_patch16_siglip_224.v2_webli", "transformers:google/x", "nowhere/tiny", "@", ""):
        assert find_component("encoder", given, 0, "frontend.encoder") is None


def test_a_collection_of_ones_own_by_name_and_by_path(copy: Path) -> None:
    copy.rename(copy.parent / "mine")
    Components().encoder("mine/seed0@1")
    with pytest.raises(UserError, match="no such"):
        Components().encoder("mine/seed1")
    shipped = Components().encoder("tiny")  # the one of the package, as there is no own of that name any more
    assert shipped.embed_dim != Components().encoder("mine").embed_dim
    assert Components().tokenizer.vocabulary == Collection(SHIPPED).index["tokenizer"]["ids"]


@pytest.mark.parametrize("name", ["tokenizer", "vae/seed0", "encoder/seed0@2"])
def test_altered_and_missing_files_are_named(name: str, copy: Path, components: Components) -> None:
    victim = copy / entry(copy, name)["file"]
    victim = victim if victim.is_file() else victim / "tokenizer.json"
    content = bytearray(victim.read_bytes())
    content[-64:] = bytes(64)

    def read() -> Any:
        return components.tokenizer if name == "tokenizer" else getattr(components, name.partition("/")[0])()

    victim.write_bytes(content)
    with pytest.raises(UserError, match=f"component '{name}': .* is damaged: train it again"):
        read()
    victim.unlink()
    with pytest.raises(UserError, match="is damaged|is missing"):
        read()


def test_weights_that_do_not_fit_list_both_sides(copy: Path, components: Components) -> None:
    file = copy / entry(copy, "vae/seed0")["file"]
    weights = load_file(file)
    weights["alien"] = weights.pop("encoder.conv_in.bias")
    weights["decoder.conv_in.bias"] = torch.zeros(3)
    save_file(weights, file)
    change(copy, "vae/seed0", sha256=sha256(file))
    with pytest.raises(UserError) as raised:
        components.vae()
    message = str(raised.value)
    assert "\n" not in message
    assert "1 missing: encoder.conv_in.bias" in message and "1 unexpected: alien" in message
    assert "1 of another shape: decoder.conv_in.bias (3,) for (32,)" in message


@pytest.mark.parametrize("value", [None, 3, [], {}, {"width": -1}, {"width": "x"}, {"alien": 1}])
def test_a_damaged_index_is_one_line(value: object, copy: Path, components: Components) -> None:
    for name, read in (("encoder/seed0@2", components.encoder), ("vae/seed0", components.vae)):
        change(copy, name, config=value, mean=value)
        try:
            read()
        except UserError as error:
            assert "\n" not in str(error)


def test_a_file_outside_its_folder_is_refused(copy: Path, components: Components) -> None:
    change(copy, "vae/seed0", file="../outside.safetensors")
    with pytest.raises(UserError, match="names no file in its folder"):
        components.vae()


def test_on_meta_there_are_architectures_and_no_weights_are_read(copy: Path, components: Components) -> None:
    for path in copy.glob("*.safetensors"):
        path.unlink()
    with torch.device("meta"):
        assert components.vae().channels == TINY.vae.latent_channels
        assert components.encoder().embed_dim == TINY.encoder.width


def test_random_weights_have_the_architecture_and_read_none(copy: Path, components: Components) -> None:
    trained = components.encoder()
    for path in copy.glob("encoder*"):
        path.unlink()
    drawn = components.encoder(pretrained=False)
    assert drawn.state_dict().keys() == trained.state_dict().keys()
    assert not torch.equal(drawn.blocks[0].attn.qkv.weight, trained.blocks[0].attn.qkv.weight)  # type: ignore[operator, union-attr, arg-type]


# The loop that trains them.


def quadratic(target: float) -> tuple[nn.Linear, Any]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss_of(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 3, generator=generator)
        return (model(x) - target).square().mean()  # type: ignore[no-any-return]

    return model, loss_of


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, parts = list[Any](), list[Any]()

    def keep(into: list[Any]) -> Any:
        return lambda averaged, record: into.append((averaged.weight.clone(), record["losses"]))

    model, loss_of = quadratic(2.0)
    train(model, 0.1, 20, loss_of, {10: keep(whole), 20: keep(whole)}, tmp_path / "a", lambda steps: steps, {})

    class Stopped(Exception):
        pass

    def stopping(steps: Any) -> Any:
        for step in steps:
            if step == 14:
                raise Stopped
            yield step

    model, loss_of = quadratic(2.0)
    with pytest.raises(Stopped):
        train(model, 0.1, 20, loss_of, {10: keep(parts), 20: keep(parts)}, tmp_path / "b", stopping, {})
    model, loss_of = quadratic(2.0)
    nn.init.zeros_(model.weight)  # what is saved counts, not the start
    shutil.copy(tmp_path / "b", tmp_path / "c")
    train(model, 0.1, 20, loss_of, {10: keep(parts), 20: keep(parts)}, tmp_path / "b", lambda steps: steps, {})
    assert [record for _, record in whole] == [record for _, record in parts]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(whole, parts, strict=True))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    model, loss_of = quadratic(2.0)
    other: list[Any] = []
    train(model, 0.1, 20, loss_of, {10: keep(other), 20: keep(other)}, tmp_path / "c", lambda steps: steps, {"lr": 0.2})
    assert len(other) == 2, "what was stopped under another recipe is not gone on with"


def test_the_average_spans_the_last_tenth(tmp_path: Path) -> None:
    """Of weights that grow by 1 a step it lags by t / 7.94: the mean of t**6.94 on [0, 1] is 7.94 / 8.94."""
    model = nn.Linear(1, 1, bias=False)
    averages = dict[int, float]()

    def loss_of(step: int) -> torch.Tensor:
        with torch.no_grad():
            model.weight.fill_(float(step + 1))
        return model.weight.sum() * 0

    def keep(averaged: Any, record: object) -> None:
        averages[1] = averaged.weight.item()

    train(model, 0.0, 1000, loss_of, {1000: keep}, tmp_path / "state", lambda steps: steps, {}, weight_decay=0.0)
    assert averages[1] == pytest.approx(1000 * 7.94 / 8.94, rel=2e-3)


def test_losses_are_means_of_hundredths() -> None:
    assert curve([float(i) for i in range(6)], 2) == [(2, 0.5), (4, 2.5), (6, 4.5)]
    assert np.allclose([loss for _, loss in curve([1.0] * 5, 1)], 1)


def _train_in_process(folder: Path) -> None:
    torch.set_num_threads(1)
    with (folder.parent / "lines.txt").open("a") as file:
        file.write("\n".join(train_all(folder)) + "\n")


@pytest.mark.slow
def test_of_two_processes_the_second_finds_the_work_done(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
    processes = [context.Process(target=_train_in_process, args=(tmp_path / "tiny",)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes)
    lines = (tmp_path / "lines.txt").read_text().splitlines()
    assert [sum("training" in line and part in line for line in lines) for part in PARTS] == [1, 1, 1]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("encoder.widht=3", "encoder.widht=3: .*width"),
        ("encoder.width=x", "encoder.width=x: .*Integer"),
        ("nothing", "nothing: "),
        ("encoder.snapshots=[2,1]", "snapshots"),
        ("vae.width=8", "vae.width=8"),
        ("vae.stride=7", "vae.image_size=32 must be a multiple of vae.stride=7"),
        ("vae.steps=0", "vae.steps=0 is out of range"),
        ("encoder.heads=3", "encoder.width=128 must be a multiple of encoder.heads=3"),
        ("encoder.patch=7", "encoder.image_size=32 must be a multiple of encoder.patch=7"),
        ("encoder.batch=0", "encoder.batch=0 is out of range"),
        ("encoder.held_out=0", "encoder.held_out=0 is out of range"),
        ("encoder.lr=-1", "encoder.lr=-1 is out of range"),
        ("encoder.seed=-1", "encoder.seed=-1 is out of range"),
    ],
)
def test_a_wrong_setting_of_a_recipe_is_one_line(given: str, line: str) -> None:
    with pytest.raises(UserError, match=line) as raised:
        Recipe().changed([given])
    assert "\n" not in str(raised.value)


def test_settings_of_a_recipe() -> None:
    recipe = Recipe().changed(["encoder.snapshots=[5,9]", "vae.steps=7"])
    assert recipe.encoder.snapshots == (5, 9) and recipe.vae.steps == 7 and recipe.tokenizer == Recipe().tokenizer
    with pytest.raises(UserError, match="seed=-1"):
        Recipe().seeded(-1)
    with pytest.raises(UserError, match="part optimizer is unknown"):
        train_components(Path("nowhere"), ("optimizer",))
