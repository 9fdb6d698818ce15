"""Everything but the front-end is equal, said of every shipped variant and of everything that a run computes from its settings.

What may differ is what a front-end is: its own weights, the target space it generates in with the noise of that space's shape, and
the flow head's last layer, whose size is the space's.
"""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.conftest import quick_config
from tests.variants import SETTINGS, variants_of
from tunalab.data.packing import PackedBatch
from tunalab.data.stream import Step, open_stream
from tunalab.data.tokenizer import Tokenizer
from tunalab.evaluation.along import held_out, pack, prompt_of
from tunalab.evaluation.benchmarks import benchmarks
from tunalab.frontends.components.store import Components
from tunalab.inference.generation import noise_of
from tunalab.inference.prompts import Prompt, image_prompt, question_prompt
from tunalab.model.objective import Draws, draw, loss_counts
from tunalab.model.unified import UnifiedModel, build_model
from tunalab.settings.layers import leaves, read_experiment
from tunalab.settings.loading import load_config, to_plain
from tunalab.settings.schema import RunConfig
from tunalab.settings.timeline import evaluation_tokens
from tunalab.training.optimisation import learning_rate, masks

REPOSITORY = Path(__file__).parents[2]
EXPERIMENTS = sorted((REPOSITORY / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_settings_differ_in_the_front_end_and_in_what_the_experiment_says_openly(experiment: Path) -> None:
    declared = {
        key for layers in read_experiment(experiment).variants.values() for one in layers for key, _ in leaves(one.settings)
    }
    plain = [dict(leaves(to_plain(load_config(experiment, variant, [])))) for variant in variants_of(experiment)]
    keys = set().union(*plain)
    differing = {key for key in keys if len({repr(one.get(key)) for one in plain}) > 1}
    # A checkpoint of the variant's own, named by one pattern for all.
    own = {key for key in differing & {"start.checkpoint"} if len({one[key].replace(one["variant"], "*") for one in plain}) == 1}
    # Of a group that the experiment names, what it leaves at its defaults too.
    groups = {key.rpartition(".")[0] for key in declared if key.startswith("optimizer.groups.")}
    differing -= {key for key in differing if key == "optimizer.groups" or key.rpartition(".")[0] in groups}
    assert {key for key in differing if not key.startswith("frontend.")} <= {"variant", "label", "colour"} | declared | own
    if not declared:
        sources = [list(load_config(experiment, variant, []).stages) for variant in variants_of(experiment)]
        assert all(names == sources[0] for names in sources), "the order of stages"


@pytest.fixture(scope="module")
def model_of() -> Callable[[str], UnifiedModel]:
    """A variant's model as a run builds it, once."""
    built: dict[str, UnifiedModel] = {}

    def build(variant: str) -> UnifiedModel:
        if variant not in built:
            components = Components()
            built[variant] = build_model(quick_config(variant), components, components.tokenizer.vocabulary)
        return built[variant]

    return build


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Components().tokenizer


REFERENCE = next(iter(SETTINGS))


def test_initial_weights(variant: str, model_of: Callable[[str], UnifiedModel]) -> None:
    mine, reference = model_of(variant), model_of(REFERENCE)
    own = ("frontend.", "head.output.")
    shared = {name: weight for name, weight in mine.state_dict().items() if not name.startswith(own)}
    assert shared.keys() == {name for name in reference.state_dict() if not name.startswith(own)}
    assert {name.split(".")[0] for name in shared} == {"mask_token", "time", "decoder", "head"}
    for name, weight in shared.items():
        assert torch.equal(weight, reference.state_dict()[name]), name
    assert not any(parameter.any() for parameter in mine.head.output.parameters()), "the layer that differs in size starts at zero"


def steps(config: RunConfig, model: UnifiedModel, tokenizer: Tokenizer, folder: Path) -> list[Step]:
    return list(open_stream(config, tokenizer, model.frontend.space.token_pixels, folder / "rejects.jsonl"))


def same(a: Any, b: Any) -> bool:
    """Whether two fields of a batch are equal: tensors, numbers, or groups of images with such fields."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(getattr(x, f.name), getattr(y, f.name)) for x, y in zip(a, b) for f in fields(x))
    return bool(a == b)


def test_documents_budgets_schedules_and_draws(
    variant: str, model_of: Callable[[str], UnifiedModel], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Every step of a whole run."""
    models, configs = (model_of(variant), model_of(REFERENCE)), (quick_config(variant), quick_config(REFERENCE))
    runs = [steps(config, model, tokenizer, tmp_path) for config, model in zip(configs, models, strict=True)]
    assert len(runs[0]) == len(runs[1]) > 5 and {step.stage for step in runs[0]} == set(configs[0].stages)
    seen_masks = 0
    for mine, theirs in zip(*runs, strict=True):
        assert (mine.stage, mine.stage_step, mine.tokens) == (theirs.stage, theirs.stage_step, theirs.tokens)
        rates, masking = [], []
        for config, step in zip(configs, (mine, theirs), strict=True):
            stage = config.stages[step.stage]
            rates.append(learning_rate(stage, config.optimizer, step.stage_step, step.stage_progress))
            masking.append(masks(config.objective.masking, stage, step.stage_progress))
        assert rates[0] == rates[1] and masking[0] == masking[1]
        for batches in zip(mine.batches, theirs.batches, strict=True):
            for item in fields(PackedBatch):
                assert same(*(getattr(batch, item.name) for batch in batches)), item.name
            assert loss_counts(batches[0]) == loss_counts(batches[1]), "what the losses are divided by"
            seen_masks += compare_draws(models, configs, batches, masking[0])
    assert seen_masks > 0


def compare_draws(
    models: tuple[UnifiedModel, ...], configs: tuple[RunConfig, ...], batches: tuple[PackedBatch, ...], masking: bool
) -> int:
    """Times and masks are equal, noise too where the target spaces have one shape. The number of masked tokens."""
    drawn: list[Draws] = [
        draw(batch, config.objective, config.seed, model.frontend.space, masking)
        for model, config, batch in zip(models, configs, batches, strict=True)
    ]
    assert torch.equal(drawn[0].t_N, drawn[1].t_N)
    for mine, theirs in zip(drawn[0].mask_nT, drawn[1].mask_nT, strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(drawn[0].noise_nChw, drawn[1].noise_nChw, strict=True):
        assert mine.shape != theirs.shape or torch.equal(mine, theirs)
    return sum(int(mask.sum()) for mask in drawn[0].mask_nT)


def test_what_is_evaluated(variant: str, model_of: Callable[[str], UnifiedModel], tokenizer: Tokenizer) -> None:
    """When, on which questions and documents, behind which prompts and from which noise."""
    configs, spaces = (
        (quick_config(variant), quick_config(REFERENCE)),
        (model_of(variant).frontend.space, model_of(REFERENCE).frontend.space),
    )
    counts = [evaluation_tokens(config.evaluation, sum(stage.tokens for stage in config.stages.values())) for config in configs]
    assert counts[0] == counts[1]
    requests: list[list[Prompt]] = []
    for config, space in zip(configs, spaces, strict=True):
        questions = [question for benchmark in benchmarks(config) for question in benchmark.questions]
        prompts = [question_prompt(tokenizer, space, question.image_HWC, question.prompt) for question in questions]
        documents = held_out("text_to_image", config.evaluation.sample_prompts, config)
        requests.append([*prompts, *(image_prompt(tokenizer, space, prompt_of(document)) for document in documents)])
    assert len(requests[0]) > 20
    for mine, theirs in zip(*requests, strict=True):
        assert np.array_equal(mine.ids_L, theirs.ids_L) and mine.layout == theirs.layout
        assert all(np.array_equal(a.pixels_HWC, b.pixels_HWC) for a, b in zip(mine.spans, theirs.spans, strict=True))
    packed = [
        pack(held_out("edit", 4, config), tokenizer, space.token_pixels, config.data)
        for config, space in zip(configs, spaces, strict=True)
    ]
    for (mine_batch, numbers), (their_batch, their_numbers) in zip(*packed, strict=True):
        assert numbers == their_numbers and all(
            same(getattr(mine_batch, f.name), getattr(their_batch, f.name)) for f in fields(PackedBatch)
        )
    shapes = [(space.channels, 32 // space.stride, 32 // space.stride) for space in spaces]
    if shapes[0] == shapes[1]:
        assert torch.equal(*(noise_of(range(3), shape) for shape in shapes)), "sampled images start from the same noise"
