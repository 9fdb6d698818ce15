from dataclasses import replace
from itertools import pairwise

import pytest

from tests.training.conftest import quick_config
from tests.variants import SETTINGS
from tunalab.frontends.components.store import Components
from tunalab.frontends.registry import frontend_class
from tunalab.model.unified import build_model
from tunalab.settings.schema import MaskingConfig, OptimizerConfig, StageConfig
from tunalab.settings.timeline import evaluation_tokens
from tunalab.training.optimisation import learning_rate, masks, set_trainable


def learning(variant: str, train: str, encoder_trained: bool = True) -> set[str]:
    """The parts of the model that learn: front-end parts by name, everything else by child."""
    config = quick_config(variant)
    config.frontend.encoder_trained = encoder_trained
    model = build_model(config, Components(), 400)
    set_trainable(model, train, config.optimizer)
    names = [name.split(".") for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {"/".join(name[:2] if name[0] == "frontend" else name[:1]) for name in names}


REST = {"mask_token", "time", "decoder", "head"}


@pytest.mark.parametrize(
    ("variant", "train", "parts"),
    [
        ("tuna2", "connector", REST | {"frontend/projection", "frontend/norm"}),
        ("tuna2", "without_encoder", REST | {"frontend/projection", "frontend/norm"}),
        ("tuna_r", "connector", {"frontend/connector"}),
        ("tuna_r", "without_encoder", REST | {"frontend/connector"}),
        ("tuna_r", "all", REST | {"frontend/connector", "frontend/encoder", "frontend/patch_embedding"}),
        ("tuna", "connector", {"frontend/connector", "frontend/patch_embedding"}),
        ("tuna", "all", REST | {"frontend/connector", "frontend/encoder", "frontend/patch_embedding"}),
    ],
)
def test_what_learns(variant: str, train: str, parts: set[str]) -> None:
    assert learning(variant, train) == parts


@pytest.mark.parametrize("train", ["all", "without_encoder"])
def test_an_encoder_that_stays_as_it_starts(train: str) -> None:
    assert learning("tuna_r", train, encoder_trained=False) == REST | {"frontend/connector"}
    assert learning("tuna", train, encoder_trained=False) == REST | {"frontend/connector", "frontend/patch_embedding"}


def test_what_learns_follows_from_what_a_front_end_says_of_itself(variant: str) -> None:
    """Of every variant, also one that is added: frozen parts never learn, and without a connector every stage trains the rest."""
    frontend = frontend_class(SETTINGS[variant]["name"])
    everything = learning(variant, "all")
    own = {part for part in everything if part.startswith("frontend/")}
    connector = {f"frontend/{part}" for part in frontend.connector_parts}
    assert everything == REST | own and connector <= own
    assert not own & {f"frontend/{part}" for part in frontend.frozen_parts}
    assert learning(variant, "connector") == (connector or everything)
    assert learning(variant, "without_encoder") == REST | (connector or own)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
def test_learning_rate_warms_up_then_follows_its_schedule(schedule: str) -> None:
    """By the share of the stage's tokens, which data processes may exceed a little."""
    stage = StageConfig(lr=2.0, schedule=schedule, final_lr=0.2, cooldown=0.5)
    optimizer = OptimizerConfig(warmup_steps=4)
    assert [learning_rate(stage, optimizer, step, 0.0) for step in (0, 1, 3, 4, 1000)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    expected = {
        "constant": [2.0] * 6,
        "cosine": [2.0, 2.0 * (0.6 + 0.4 * 0.5**0.5), 1.2, 2.0 * (0.6 - 0.4 * 0.5**0.5), 0.4, 0.4],
        "wsd": [2.0, 2.0, 2.0, 1.2, 0.4, 0.4],
    }[schedule]
    shares = (0.0, 0.25, 0.5, 0.75, 1.0, 1.01)
    assert [learning_rate(stage, optimizer, 1000, share) for share in shares] == pytest.approx(expected, rel=1e-12)
    assert learning_rate(stage, optimizer, 0, 0.75) == pytest.approx(expected[3] / 4, rel=1e-12)
    assert learning_rate(stage, replace(optimizer, lr_factor=0.5), 0, 0.75) == pytest.approx(expected[3] / 8, rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "masking", "progress", "expected"),
    [(0.5, True, 0.6, True), (0.5, True, 0.59, False), (0.0, True, 0.9, False), (0.5, False, 0.9, False)],
)
def test_masking_only_late_in_a_stage_that_masks(ratio: float, masking: bool, progress: float, expected: bool) -> None:
    assert masks(MaskingConfig(ratio=ratio, start=0.6), StageConfig(masking=masking), progress) is expected


def test_evaluation_points_are_log_spaced_and_end_at_the_budget() -> None:
    config = quick_config().evaluation
    config.points, config.first = 5, 0.01
    at = evaluation_tokens(config, 1_000_000)
    assert at[0] == 10_000 and at[-1] == 1_000_000
    ratios = [b / a for a, b in pairwise(at)]
    assert max(ratios) - min(ratios) < 1e-3
