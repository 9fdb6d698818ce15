"""A step of a slice of a run's model, beside its plan."""

from dataclasses import replace

import pytest
from tests.variants import SETTINGS

from tunalab.bench.trial import LAYERS, slice_of, try_step
from tunalab.cli import main
from tunalab.library import load_config, try_steps


@pytest.mark.parametrize("variant", SETTINGS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plan_is_what_a_small_model_holds(variant: str, checkpointing: bool) -> None:
    """With every front-end, on a row in which every part runs."""
    config = load_config("scenes", variant, {"activation_checkpointing": checkpointing})
    (stage, *_) = config.stages.values()
    both = replace(stage, tokens=1000, mix={"scenes/caption": 0.5, "scenes/text_to_image": 0.5})
    config = replace(config, stages={"both": both}, decoder=replace(config.decoder, width=384, heads=6, kv_heads=3))
    trial = try_step(config, 1024)
    assert trial.labels > 100 and trial.losses["flow"] > 0
    for kind in ("weights", "gradients", "optimiser", "EMA"):
        assert trial.planned[kind] == pytest.approx(trial.measured[kind], rel=1e-3), kind
    assert trial.ratio == pytest.approx(1, abs=0.1), str(trial)


def test_a_slice_has_the_sizes_of_the_run() -> None:
    config = load_config("public_0_5b", "tuna2")
    cut = slice_of(config, 4096)
    assert (cut.decoder.layers, cut.head.blocks) == (LAYERS, LAYERS) and cut.decoder.pretrained == ""
    same = {"width", "heads", "kv_heads", "mlp", "vocabulary", "tie_embeddings"}
    assert {name: getattr(cut.decoder, name) for name in same} == {name: getattr(config.decoder, name) for name in same}
    assert cut.data.image_size == config.data.image_size and cut.precision == config.precision
    assert list(cut.stages) == ["pretrain"]


def test_the_command_prints_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "smoke", "tuna2", "--try", "512"]) == 0
    printed = capsys.readouterr().out
    assert "planned to measured: " in printed and "a row of 512 tokens" in printed
    assert main(["plan", "figure6", "--try"]) == 2
    assert capsys.readouterr().err == "error: --try is for one run: EXPERIMENT VARIANT\n"


@pytest.mark.plans  # minutes, and a quarter of an hour on processors whose products in bfloat16 are emulated
@pytest.mark.timeout(1800)
def test_the_plan_of_the_public_experiment_holds_to_a_tenth() -> None:
    """At its true widths, vocabulary, pictures and rows; the command of docs/full_scale.md."""
    (trial,) = try_steps("public_0_5b", "tuna2")
    assert trial.row_tokens == 4096 and trial.images
    assert trial.ratio == pytest.approx(1, abs=0.1), str(trial)
