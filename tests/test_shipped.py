"""Every YAML that is shipped is a test case: it loads, and its model builds on the meta device."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.variants import FILES, variants_of
from tunalab.frontends.registry import FRONTENDS
from tunalab.library import cell_configs
from tunalab.model.flops import FlopCosts, image_sizes, model_costs
from tunalab.model.unified import UnifiedModel, build_model, parameter_counts
from tunalab.settings.layers import read_yaml
from tunalab.settings.loading import load_config
from tunalab.settings.schema import RunConfig
from tunalab.sweeps.grid import expand, load_sweep
from tunalab.training.preflight import check_run

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


COSTS: dict[str, FlopCosts] = {}


def costs_of(config: RunConfig, model: UnifiedModel) -> FlopCosts:
    """Counted once for all experiments with the same model and sizes of images: ten sizes through an encoder take seconds."""
    sizes = image_sizes(config.data)
    key = repr((config.frontend, config.decoder, config.head, sizes))
    if key not in COSTS:
        COSTS[key] = model_costs(model, sizes)
    return COSTS[key]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_can_begin_and_its_variants_build_on_the_meta_device_with_equal_shared_parts(experiment: Path) -> None:
    counts = []
    for variant in variants_of(experiment):
        config = load_config(experiment, variant, [])
        check_run(config)
        with torch.device("meta"):
            model = build_model(config, None, 512)
        assert all(parameter.is_meta for parameter in model.parameters())
        costs = costs_of(config, model)
        assert costs.decoder_token > 0 and costs.embed_image and min(costs.embed_image.values()) > 0
        rows, columns = model.frontend.space.grid(config.data.image_size, config.data.image_size)
        parts = parameter_counts(model)
        assert parts["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
        head_output = sum(p.numel() for p in model.head.output.parameters())
        counts.append((rows * columns, parts["decoder"], parts["flow_head"] - head_output, parts["time_embedding"]))
    assert len(counts) >= 3 and len(set(counts)) == 1, "tokens per image and sizes of all shared parts"


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_cell_of_a_sweep_resolves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    loaded = load_sweep(path)
    cells = expand(loaded)
    configs = list(cell_configs(path.stem, []).values())
    assert len(cells) == len({cell.run_dir for cell in cells}) > 0
    # Fair by construction: in one sweep budgets, data and stages are equal, but for what its arms and factors vary and for the
    # learning rate of a front-end without connector in the connector stage (tests/test_recipes.py).
    requests = {key for keys in (loaded.factors, *loaded.arms.values()) for key in keys}
    for config in configs:
        held, first = asdict(config.data), asdict(configs[0].data)
        assert {f"data.{key}" for key in held if held[key] != first[key]} <= requests
        assert config.stages.keys() == configs[0].stages.keys()
        for name, stage in config.stages.items():
            held, first = asdict(stage), asdict(configs[0].stages[name])
            differ = {key for key in held if held[key] != first[key]} - ({"lr"} if name == "connector" else set())
            assert {f"stages.{name}.{key}" for key in differ} <= requests


@pytest.mark.parametrize("path", EXPERIMENTS + SWEEPS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_headers_say_question_and_command(path: Path) -> None:
    header = path.read_text().split("\n\n")[0]
    assert "# Question:" in header and "# Command:" in header


def test_every_frontend_has_a_variant() -> None:
    assert {read_yaml(path)["frontend"]["name"] for path in FILES} == set(FRONTENDS)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_no_variant_is_left_at_the_laptops_size(experiment: Path) -> None:
    """An experiment with front-ends of its own scale has one for every variant: else the tiny encoder would stand in, unseen."""
    assert variants_of(experiment) == FILES
