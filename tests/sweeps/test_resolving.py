"""A sweep's configurations, resolved together, are those that each cell's own command line gives."""

from pathlib import Path

import pytest

from tunalab.errors import UserError
from tunalab.settings.loading import completed, config_hash, load_config, to_plain
from tunalab.settings.schema import RunConfig
from tunalab.sweeps.grid import Cell, expand, load_sweep, own_settings, resolve

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


def files(experiment: str, variant: str) -> tuple[Path, Path]:
    return ROOT / "experiments" / f"{experiment}.yaml", ROOT / "variants" / f"{variant}.yaml"


def alone(cell: Cell, settings: list[str]) -> RunConfig:
    return load_config(*files(cell.experiment, cell.variant), own_settings(cell, settings))


def cells_of(*settings: list[str]) -> list[Cell]:
    return [
        Cell(f"{number}-{seed}", "s", "scenes", "tuna2", seed, {}, own, Path("runs"))
        for number, own in enumerate(settings)
        for seed in (0, 1)
    ]


def assert_equal(cells: list[Cell], settings: list[str]) -> None:
    resolved = resolve(cells, settings, files)
    for cell in cells:
        config = alone(cell, settings)
        one = resolved[cell.name]
        assert one.config == config and one.plain == to_plain(config) and one.hash == config_hash(config)
        assert list(one.plain["stages"]) == list(config.stages)


@pytest.mark.parametrize("path", SWEEPS[:3], ids=lambda path: path.stem)
def test_shipped_sweeps(path: Path) -> None:
    cells = expand(load_sweep(path))
    assert_equal([cells[0], cells[1], cells[-1]], ["optimizer.clip=2"])


def test_numbers_words_mixes_and_kinds_of_cells() -> None:
    cells = cells_of(
        ["objective.masking.ratio=0", "objective.prediction=x"],
        ["objective.masking.ratio=1", "objective.prediction=v"],
        ["objective.masking.ratio=0.25", "objective.prediction=x"],
        ["objective.masking.generation=false", "stages.pretrain.mix={scenes/vqa: 1}"],
        ["objective.masking.generation=true", "stages.pretrain.mix={scenes/vqa: 1}"],
        ["stages.pretrain.tokens=1_000"],
        ["data.levels=[1, 0, 0]"],
        ["optimizer.eps=1e-9", "frontend.encoder_layer=-1", "decoder.layers=2", "threads=1"],
        ["optimizer.eps=1e-05", "frontend.encoder_layer=-3", "decoder.layers=0x10", "threads=2"],
        ["optimizer.clip=1"],
        ["optimizer.clip=010.50"],
        ["components_seed=${seed}"],
    )
    assert_equal(cells, [])
    assert_equal(cells[:2], ["objective.masking={ratio: 0.3}"])
    assert {type(one.plain["objective"]["masking"]["ratio"]) for one in resolve(cells, [], files).values()} == {float}


def test_an_experiment_edited_between_two_loads_is_laid_anew(tmp_path: Path) -> None:
    path = tmp_path / "edited.yaml"
    text = (ROOT / "experiments" / "scenes.yaml").read_text()
    path.write_text(text)
    first = load_config(path, None, [])
    first.stages.clear()  # what one caller does to its configuration is not the next one's
    again = load_config(path, None, ["threads=2"])
    assert again.stages and load_config(path, None, []).threads == RunConfig().threads
    path.write_text(f"{text}\nthreads: 3\n")
    assert load_config(path, None, []).threads == 3
    path.write_text(f"{text}\nthreads: 3.0\n")  # equal to Python, and yet no count
    with pytest.raises(UserError, match="threads"):
        load_config(path, None, [])


@pytest.mark.parametrize("wrong", ["decoder.width=12.5", "decoder.heads=3", "decoder.widht=64", "optimizer.beta1=2", "decoder=3"])
def test_what_is_refused_alone_is_refused_here(wrong: str) -> None:
    key = wrong.split("=")[0]
    good = {"decoder.width": "decoder.width=128", "decoder.heads": "decoder.heads=4"}.get(key, "optimizer.beta1=0.9")
    cells = cells_of([good], [wrong])
    with pytest.raises(UserError) as expected:
        alone(cells[-1], [])
    with pytest.raises(UserError) as found:
        _ = resolve(cells, [], files)[cells[-1].name].config
    assert str(found.value) == str(expected.value)


def test_a_configuration_from_before_a_setting_is_completed() -> None:
    config = alone(cells_of([])[0], [])
    plain = to_plain(config)
    assert completed(plain) == plain
    older = {key: value for key, value in plain.items() if key != "start"}
    older["decoder"] = {key: value for key, value in plain["decoder"].items() if key != "tokenizer"}
    older["stages"] = {
        name: {key: value for key, value in stage.items() if key != "masking"} for name, stage in plain["stages"].items()
    }
    for name, stage in plain["stages"].items():  # to the default, false
        assert completed(older)["stages"][name] == {**stage, "masking": False}
    assert {**completed(older), "stages": {}} == {**plain, "stages": {}}
