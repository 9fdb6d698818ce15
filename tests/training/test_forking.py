"""Where settings begin to act, branches that are bit for bit the runs that they would have been alone, and forks by hand."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from tests.training.conftest import MIX, quick_config
from tunalab.errors import EXIT_STOPPED, UserError
from tunalab.frontends.components.store import Components
from tunalab.records.log import TRAINING_LOG
from tunalab.records.record import read_record, write_record
from tunalab.settings.schema import RunConfig
from tunalab.settings.timeline import Place, place_of, shared, timeline
from tunalab.sweeps.grid import Cell, Resolved
from tunalab.sweeps.trunks import Tree, make_tree
from tunalab.training.callbacks import StopSignal
from tunalab.training.checkpoints import CheckpointStore, read_saved, read_whole
from tunalab.training.claiming import END_FILE
from tunalab.training.forking import Parent, fork_of, read_lineage, trunk_of
from tunalab.training.run import train

QUICK = {"points": 3, "groups": 2, "loss_documents": 2, "psnr_images": 0, "sample_prompts": 1}
STAGES = {
    "connector": {"tokens": 500, "train": "connector", "mix": MIX},
    "pretrain": {"tokens": 1200, "masking": True, "mix": MIX},
    "sft": {"tokens": 500, "lr": 5e-4, "mix": {"scenes/vqa": 1.0}},
}


def config_of(variant: str = "tuna2", **changes: Any) -> RunConfig:
    evaluation = {f"evaluation__{name}": value for name, value in QUICK.items()}
    return quick_config(variant, **{"stages": STAGES, "objective__masking__start": 0.4, **evaluation, **changes})


def cells_of(configs: Mapping[str, RunConfig], folder: Path) -> tuple[list[Cell], dict[str, Resolved]]:
    cells = [Cell(name, "s", "e", one.variant, one.seed, {}, [], folder / name) for name, one in configs.items()]
    return cells, {name: Resolved(config) for name, config in configs.items()}


def tree_of(configs: Mapping[str, RunConfig], folder: Path) -> Tree:
    return make_tree(*cells_of(configs, folder))


def train_tree(tree: Tree, configs: Mapping[str, RunConfig]) -> None:
    folders = {cell.name: cell.run_dir for cell in tree.cells}
    for cell in tree.cells:
        config = tree.resolved[cell.name].config if cell.until else configs[cell.name]
        until = place_of(cell.until, config) if cell.until else None
        assert train(config, cell.run_dir, trunk=folders[cell.after] if cell.after else None, until=until) == 0


def last_state(run_dir: Path) -> dict[str, torch.Tensor]:
    """Weights, averages and moments of the last checkpoint."""
    return read_whole(CheckpointStore(run_dir / "checkpoints").steps()[-1], "")


def without_times(run_dir: Path) -> dict[str, Any]:
    plain = asdict(read_record(run_dir / "record.json"))
    for part in (plain, plain["totals"], *plain["points"]):
        for key in ("seconds", "peak_memory_bytes", "lineage", "environment", "attempts"):
            part.pop(key, None)
    plain["run"].pop("name")
    return plain


def assert_equal_runs(one: Path, other: Path) -> None:
    a, b = last_state(one), last_state(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert without_times(one) == without_times(other)
    assert sorted(path.name for path in one.glob("samples/*")) == sorted(path.name for path in other.glob("samples/*"))
    saved = [read_saved(CheckpointStore(run / "checkpoints").steps()[-1]).progress for run in (one, other)]
    for progress in saved:
        for key in ("seconds", "peak_memory", "points", "window_seconds", "window_started"):
            progress.pop(key, None)
    assert saved[0] == saved[1]


def log_tokens(run_dir: Path) -> list[int]:
    return [json.loads(line)["tokens"] for line in (run_dir / TRAINING_LOG).read_text().splitlines()]


# Where settings act.


def test_settings_stand_in_the_timeline_where_they_begin_to_act() -> None:
    config = config_of()
    places = [Place(0, 0.0), Place(1, 0.0), Place(1, 0.4), Place(2, 0.0)]
    assert list(timeline(config)) == places
    changes: dict[str, tuple[dict[str, Any], list[Place]]] = {
        "seed": ({"seed": 5}, places[:1]),
        "rate of the optimiser": ({"optimizer__warmup_steps": 9}, places[:1]),
        "mask": ({"objective__masking__ratio": 0.9}, places[2:3]),
        "questions asked along the run": ({"evaluation__groups": 3}, places[:1]),
        "where records go": ({"tracking__experiment": "other"}, []),
        "checkpoints": ({"checkpoint_seconds": 7.0}, []),
        "last stage": ({"stages": {**STAGES, "sft": {**STAGES["sft"], "lr": 1e-4}}}, places[3:]),
        "middle stage": ({"stages": {**STAGES, "pretrain": {**STAGES["pretrain"], "lr": 1e-4}}}, places[1:2]),
        # The points of the curve move with the budget.
        "budget": ({"stages": {**STAGES, "sft": {**STAGES["sft"], "tokens": 900}}}, [places[0], places[3]]),
        # And the order of finite sources with their number.
        "sources": ({"stages": {**STAGES, "sft": {**STAGES["sft"], "mix": {"scenes/edit": 1.0}}}}, places[3:]),
        "more sources": (
            {"stages": {**STAGES, "sft": {**STAGES["sft"], "mix": {"easy_vqa/vqa": 1.0}}}},
            [places[0], places[3]],
        ),
    }
    plain = timeline(config)
    for what, (change, expected) in changes.items():
        other = timeline(config_of(**change))
        assert [place for place in places if plain[place] != other[place]] == expected, what


def test_a_place_is_written_and_read() -> None:
    config = config_of()
    for place in timeline(config):
        assert place_of(place.text(config), config) == place
    assert Place(1, 0.4).tokens(config) == 500 + 480
    for wrong in ("", "sft", "nowhere@0.5", "sft@x", "sft@1.5", "@0.5"):
        with pytest.raises(UserError, match="no STAGE@SHARE"):
            place_of(wrong, config)


def test_the_tree_of_a_mask_sweep_and_its_price(tmp_path: Path) -> None:
    ratios = (0.0, 0.25, 0.5, 0.75, 0.9)
    configs = {f"{ratio}-{seed}": config_of(seed=seed, objective__masking__ratio=ratio) for seed in (0, 1) for ratio in ratios}
    tree = tree_of(configs, tmp_path)
    assert [bool(cell.until) for cell in tree.cells] == [True, *[False] * 5] * 2
    assert {cell.until for cell in tree.trunks} == {"pretrain@0.4"} and len({cell.name for cell in tree.trunks}) == 2
    alone, together = tree.totals()
    assert alone == 10 * 2200 and together == 2 * (980 + 5 * (2200 - 980))


def test_trunks_stand_on_trunks_and_single_cells_alone(tmp_path: Path) -> None:
    lower, higher = ({**STAGES, "sft": {**STAGES["sft"], "lr": rate}} for rate in (1e-4, 1e-3))
    configs = {
        "a": config_of(stages=lower, objective__masking__ratio=0.5),
        "b": config_of(stages=higher, objective__masking__ratio=0.5),
        "c": config_of(stages=lower, objective__masking__ratio=0.0),
        "d": config_of(seed=3),
    }
    tree = tree_of(configs, tmp_path)
    above = {cell.name: [one for one in tree.cells if one.name == cell.after] for cell in tree.cells}
    assert above["a"] == above["b"] != above["c"] and not above["d"]
    nested = above["a"][0]
    assert nested.until == "sft@0.0" and above[nested.name] == above["c"] and above["c"][0].until == "pretrain@0.4"
    order = [cell.name for cell in tree.cells]
    assert order.index(above["c"][0].name) < order.index(nested.name) < order.index("a")
    assert tree.depth(tree.cells[order.index("a")]) == 2


def test_a_trunk_is_named_by_what_its_branches_share(tmp_path: Path) -> None:
    def trunk(*ratios: float, **changes: Any) -> str:
        configs = {str(ratio): config_of(objective__masking__ratio=ratio, **changes) for ratio in ratios}
        return tree_of(configs, tmp_path).trunks[0].name

    assert trunk(0.0, 0.5) == trunk(0.9, 0.1, 0.3)  # whatever the grid
    assert trunk(0.0, 0.5) == trunk(0.0, 0.5, checkpoint_seconds=3.0)
    others = [{"seed": 1}, {"optimizer__warmup_steps": 3}, {"objective__masking__start": 0.5}, {"evaluation__groups": 3}]
    assert len({trunk(0.0, 0.5), *(trunk(0.0, 0.5, **change) for change in others)}) == 5


def test_a_trunk_that_was_begun_under_another_branchs_settings_goes_on_under_them(tmp_path: Path) -> None:
    def grid(*ratios: float) -> dict[str, RunConfig]:
        return {str(ratio): config_of(evaluation__points=1, objective__masking__ratio=ratio) for ratio in ratios}

    tree = tree_of(grid(0.3, 0.9), tmp_path)
    (trunk,) = tree.trunks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignal, "on_train_batch_end", stop_at(2))
        until = place_of(trunk.until, tree.resolved[trunk.name].config)
        assert train(tree.resolved[trunk.name].config, trunk.run_dir, until=until) == EXIT_STOPPED
    assert not tree_of(grid(0.3, 0.9), tmp_path).saved
    other = tree_of(grid(0.1, 0.9), tmp_path)
    assert other.trunks[0].name == trunk.name and other.saved == {trunk.name: trunk.run_dir / "config.yaml"}
    train_tree(other, grid(0.1, 0.9))
    assert train(grid(0.1)["0.1"], tmp_path / "alone") == 0
    assert_equal_runs(tmp_path / "0.1", tmp_path / "alone")


def test_trunks_that_nothing_needs_are_left_out(tmp_path: Path) -> None:
    configs = {str(ratio): config_of(objective__masking__ratio=ratio) for ratio in (0.0, 0.5, 0.9)}
    tree = tree_of(configs, tmp_path)
    assert tree.needed(lambda cell: False) == tree
    assert tree.needed(lambda cell: cell.name != "0.5").trunks == tree.trunks
    none = tree.needed(lambda cell: not cell.until)
    assert not none.trunks and not any(cell.after for cell in none.cells)
    for name in configs:  # each has a checkpoint of its own
        (tmp_path / name / "checkpoints" / "step-000000003").mkdir(parents=True)
    assert not tree.needed(lambda cell: False).trunks


# What branches compute.


GRIDS = int(os.environ.get("TUNALAB_GRIDS", "3"))  # forty of them take some minutes


def random_grid(rng: Random) -> dict[str, RunConfig]:
    variant = rng.choice(["tuna2", "tuna_r", "tuna", "vae_latents", "bottleneck"])
    start, first = rng.choice([0.2, 0.5, 0.8]), rng.choice(list(STAGES))

    def stage(name: str, **changes: Any) -> dict[str, Any]:
        return {**STAGES[name], **changes}

    choices: dict[str, Callable[[], Any]] = {
        "objective__masking__ratio": lambda: rng.choice([0.0, 0.3, 0.9]),
        "objective__masking__law": lambda: rng.choice(["uniform", "fixed"]),
        "stages": lambda: {
            **STAGES,
            first: stage(first, lr=rng.choice([1e-4, 5e-4, 1e-3])),
            "sft": stage(
                "sft", lr=rng.choice([1e-4, 1e-3]), schedule=rng.choice(["constant", "wsd"]), train=rng.choice(["all", "connector"])
            ),
        },
        "seed": lambda: rng.choice([0, 0, 1]),
    }
    varied = rng.sample(list(choices), rng.randint(1, 3))
    workers = rng.choice([0, 0, 0, 2])
    fixed = {"objective__masking__start": start, "data__workers": workers, "checkpoint_seconds": rng.choice([0.0, 1e9])}
    grid: dict[str, RunConfig] = {}
    for number in range(rng.randint(2, 3)):
        config = config_of(variant, **fixed, **{key: choices[key]() for key in varied})
        if config not in grid.values():
            grid[f"cell{number}"] = config
    return grid


@pytest.mark.slow
@pytest.mark.parametrize("number", range(GRIDS))
def test_every_branch_is_the_run_that_it_would_have_been_alone(number: int, tmp_path: Path) -> None:
    configs = random_grid(Random(number))
    tree = tree_of(configs, tmp_path / "shared")
    train_tree(tree, configs)
    for cell in tree.cells:
        if cell.until:
            assert not read_record(cell.run_dir / "record.json").run.finished
            continue
        assert train(configs[cell.name], tmp_path / "alone" / cell.name) == 0
        assert_equal_runs(cell.run_dir, tmp_path / "alone" / cell.name)
        assert log_tokens(cell.run_dir) == log_tokens(tmp_path / "alone" / cell.name)
        lineage = read_record(cell.run_dir / "record.json").lineage
        assert bool(lineage) == bool(cell.after)
        if cell.after:
            trunk = next(one for one in tree.cells if one.name == cell.after)
            assert lineage["kind"] == "trunk" and lineage["run"] == trunk.run_dir.name == lineage["config_hash"]
            assert abs(lineage["tokens"] - tree.tokens[cell.after]) <= 512


def begun_at(folder: Path, config: RunConfig) -> Parent | None:
    return trunk_of(folder, config, Components().describe(config))


def stop_at(step: int) -> Any:
    """The run stops, as by SIGTERM, at the end of a step."""

    def stopping(self: StopSignal, trainer: Any, module: Any, *rest: Any) -> None:
        if module.progress.steps == step:
            self.flag = True
        original(self, trainer, module, *rest)

    original = StopSignal.on_train_batch_end
    return stopping


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 4, 6, 8])
def test_trunk_and_branch_may_be_stopped_at_any_step(step: int, tmp_path: Path) -> None:
    configs = {str(ratio): config_of(objective__masking__ratio=ratio) for ratio in (0.0, 0.9)}
    tree = tree_of(configs, tmp_path)
    trunk, _, branch = tree.cells
    until = place_of(trunk.until, configs["0.9"])

    def both() -> tuple[int, int]:
        first = train(configs["0.0"], trunk.run_dir, until=until)
        return first, train(configs["0.9"], branch.run_dir, trunk=trunk.run_dir) if first == 0 else EXIT_STOPPED

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignal, "on_train_batch_end", stop_at(step))
        assert EXIT_STOPPED in both()
    assert both() == (0, 0)
    assert train(configs["0.9"], tmp_path / "alone") == 0
    assert_equal_runs(branch.run_dir, tmp_path / "alone")


def test_a_trunk_ends_before_the_first_step_that_masks(tmp_path: Path) -> None:
    config = config_of(evaluation__points=1)
    until = Place(1, 0.4)
    assert train(config, tmp_path / "trunk", until=until) == 0
    end = json.loads((tmp_path / "trunk" / END_FILE).read_text())
    progress = read_saved(CheckpointStore(tmp_path / "trunk" / "checkpoints").steps()[-1]).progress
    assert end["steps"] == progress["steps"] and progress["stage"] == "pretrain" and not progress["points"]
    assert until.tokens(config) <= progress["tokens"] < until.tokens(config) + 2 * 256
    parent = begun_at(tmp_path / "trunk", config_of(evaluation__points=1, objective__masking__ratio=0.9))
    assert parent is not None and parent.lineage.settings == {"objective.masking.ratio": [0.5, 0.9]}


def test_a_trunk_of_other_settings_or_a_damaged_one_is_not_begun_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(evaluation__points=1)
    assert train(config, tmp_path / "trunk", until=Place(1, 0.4)) == 0
    assert begun_at(tmp_path / "trunk", replace(config, seed=9)) is None
    assert begun_at(tmp_path / "nothing", config) is None
    assert begun_at(tmp_path / "trunk", config) is not None
    other = {kind: part | {"folder": "another"} for kind, part in Components().describe(config).items()}
    assert trunk_of(tmp_path / "trunk", config, other) is None, "trained with other components"
    checkpoint = CheckpointStore(tmp_path / "trunk" / "checkpoints").steps()[-1]
    (checkpoint / "progress.json").write_text("{}")
    assert begun_at(tmp_path / "trunk", config) is None
    assert train(config, tmp_path / "run", trunk=tmp_path / "trunk") == 0
    assert "what they share is trained again" in capsys.readouterr().out
    assert read_lineage(tmp_path / "run") == {} and read_record(tmp_path / "run" / "record.json").run.finished


def test_a_branch_killed_before_it_saved_may_begin_at_its_start(tmp_path: Path) -> None:
    """Nothing of the trunk is left in its record then."""
    config = config_of(evaluation__points=1)
    assert train(config, tmp_path / "trunk", until=Place(1, 0.4)) == 0

    def killed(self: Any, *_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StopSignal, "on_train_batch_end", killed)
        train(config, tmp_path / "run", trunk=tmp_path / "trunk")
    assert read_lineage(tmp_path / "run") and not CheckpointStore(tmp_path / "run" / "checkpoints").steps()
    assert train(config, tmp_path / "run") == 0
    record = read_record(tmp_path / "run" / "record.json")
    assert record.run.finished and not record.lineage and not read_lineage(tmp_path / "run")


def test_a_source_without_weight_is_none(tmp_path: Path) -> None:
    stages = {**STAGES, "pretrain": {**STAGES["pretrain"], "mix": {**MIX, "easy_vqa/vqa": 0.0}}}
    config = config_of(evaluation__points=1, stages=stages)
    assert train(config, tmp_path / "trunk", until=Place(1, 0.4)) == 0
    assert train(config, tmp_path / "run", trunk=tmp_path / "trunk") == 0
    assert read_lineage(tmp_path / "run")


def test_what_is_shared_ends_at_the_place() -> None:
    one, other = config_of(objective__masking__ratio=0.0), config_of(objective__masking__ratio=0.9)
    assert shared(one, Place(1, 0.4)) == shared(other, Place(1, 0.4))
    assert shared(one, Place(2, 0.0)) != shared(other, Place(2, 0.0))


# Forks by hand.


def test_three_fine_tunings_from_one_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parent = config_of(checkpoint_keep=[900])
    assert train(parent, Path("parent")) == 0
    before = {path: path.read_bytes() for path in sorted(Path("parent").rglob("*")) if path.is_file()}
    end = read_saved(CheckpointStore(Path("parent/checkpoints")).steps()[-1]).progress
    for rate in (1e-4, 1e-3):
        stages = {**STAGES, "tuning": {"tokens": 400, "lr": rate, "mix": {"scenes/caption": 1.0}}}
        config = config_of(stages=stages, start={"fork": "parent"})
        child = Path(f"child{rate}")
        assert train(config, child) == 0
        record = read_record(child / "record.json")
        assert record.run.finished and record.totals.tokens >= end["tokens"] + 400
        assert [point.tokens for point in record.points][:3] == [point["tokens"] for point in end["points"]]
        assert record.lineage["kind"] == "fork" and record.lineage["tokens"] == end["tokens"] and record.lineage["run"] == "parent"
        assert set(record.lineage["settings"]) == {"stages.tuning"}
        assert train(config, child) == 0  # a finished one has nothing left to do, and keeps its lineage
        assert read_record(child / "record.json").lineage == record.lineage
    assert {path: path.read_bytes() for path in sorted(Path("parent").rglob("*")) if path.is_file()} == before


def test_a_fork_from_a_kept_checkpoint_under_the_same_settings_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parent = config_of(checkpoint_keep=[900], keep_checkpoints=1)
    assert train(parent, Path("parent")) == 0
    steps = CheckpointStore(Path("parent/checkpoints")).steps()
    tokens = read_saved(steps[0]).progress["tokens"]
    assert len(steps) == 2 and 900 <= tokens < 900 + 2 * 256
    child = config_of(start={"fork": f"parent@{tokens}"})
    assert train(child, Path("child")) == 0
    states = last_state(Path("parent")), last_state(Path("child"))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert [point.tokens for point in read_record(Path("child/record.json")).points] == [
        point.tokens for point in read_record(Path("parent/record.json")).points
    ]


def test_a_fork_whose_trunk_is_lost_is_a_fork_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(config_of(evaluation__points=1), Path("parent")) == 0
    stages = {**STAGES, "tuning": {"tokens": 300, "mix": {"scenes/caption": 1.0}}}
    assert train(config_of(evaluation__points=1, stages=stages, start={"fork": "parent"}), Path("child"), trunk=Path("lost")) == 0
    assert read_lineage(Path("child"))["kind"] == "fork"


def test_forks_that_cannot_be_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(config_of(evaluation__points=1), Path("parent")) == 0
    other = {"first": STAGES["pretrain"], "sft": STAGES["sft"]}
    shorter = {**STAGES, "connector": {**STAGES["connector"], "tokens": 100}}
    for change, line in (
        ({"start": {"fork": "nowhere"}}, "there is no run in nowhere"),
        ({"start": {"fork": "parent@5"}}, r"choices: parent@\d+"),
        ({"start": {"fork": "parent"}, "stages": other}, "the stages connector, pretrain, sft have begun"),
        ({"start": {"fork": "parent"}, "stages": shorter}, "connector.tokens is over"),
        ({"start": {"fork": "parent"}, "data__workers": 2}, "data.workers=2 must be the parent's, 0"),
    ):
        with pytest.raises(UserError, match=line):
            fork_of(config_of(**change), {})
    with pytest.raises(UserError, match="decoder|shape"):
        train(config_of(start={"fork": "parent"}, decoder={"width": 48, "layers": 2, "mlp": 48}), Path("child"))
    with pytest.raises(UserError, match="there is no run"):
        train(config_of(start={"fork": "nowhere"}), Path("child2"))
    assert not Path("child").exists() and not Path("child2").exists()
    config = config_of(start={"fork": "parent"})
    record = read_record(Path("parent/record.json"))
    write_record(Path("parent/record.json"), replace(record, components=record.components | {"encoder": {"folder": "encoder-1"}}))
    with pytest.raises(UserError, match="the encoder there is encoder-1, here encoder-2: its weights come from there"):
        fork_of(config, {"encoder": {"folder": "encoder-2"}})
    with pytest.raises(UserError, match="the tokenizer there is tokenizer-.*, here another"):
        fork_of(config, {"tokenizer": {"folder": "another"}})
