"""`tunalab plan`: sums, days, refusals, and that it reads nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import small_config
from tests.variants import SETTINGS

from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.model.flops import flop_costs
from tunalab.planning.memory import Activations, Sharding, state_bytes
from tunalab.planning.plan import GPUS, Gpu, find_gpu, make_plan, placement, to_plain, to_text, vocabulary
from tunalab.planning.workload import workload
from tunalab.settings.loading import load_config
from tunalab.settings.schema import RunConfig, StageConfig

ROOT = Path(__file__).parents[2]
SLOW = Gpu("slow", 1e12, 10**9)


@pytest.fixture(autouse=True)
def nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(tmp_path / "none"))


def config_of(**data: int) -> RunConfig:
    config = small_config()
    config.stages = {
        "first": StageConfig(tokens=100_000, mix={"scenes/caption": 1.0}, train="connector"),
        "last": StageConfig(tokens=50_000, mix={"scenes/text_to_image": 1.0}),
    }
    for key, value in data.items():
        setattr(config.data, key, value)
    return config


def test_days_are_flops_over_rate() -> None:
    config = config_of()
    plan = make_plan(config, SLOW, gpus=2, utilisation=0.5)
    costs = flop_costs(config, vocabulary(config))
    for name, stage in config.stages.items():
        per_token = costs.parts(workload(config, name, Components().tokenizer, 8).per_token)
        assert plan.stages[name].flops_per_token == per_token
        assert plan.stages[name].flops == pytest.approx(stage.tokens * sum(per_token.values()))
        assert plan.stages[name].days == pytest.approx(plan.stages[name].flops / (2 * 1e12 * 0.5) / 86400)
    assert plan.days == pytest.approx(plan.flops / 1e12 / 86400) and plan.tokens == 150_000
    assert plan.stages["first"].flops_per_token["flow head"] == 0 < plan.stages["last"].flops_per_token["flow head"]


@pytest.mark.slow
def test_steps_of_all_ranks() -> None:
    config = config_of(rows=2, row_tokens=512, accumulate=3)
    plan = make_plan(config, SLOW, gpus=4)
    assert plan.step_places == 4 * 3 * 2 * 512 and plan.micro_batches == 3
    assert 0.95 * plan.step_places < plan.step_tokens <= plan.step_places
    assert plan.stages["first"].steps == round(100_000 / plan.step_tokens)
    set_tokens = config_of(rows=1, row_tokens=512, step_tokens=8 * 512)
    assert [make_plan(set_tokens, SLOW, gpus=gpus).micro_batches for gpus in (1, 8)] == [8, 1]
    with pytest.raises(UserError, match=r"data.step_tokens=4096 is not a multiple of 1536 \(3 ranks"):
        make_plan(set_tokens, SLOW, gpus=3)
    with pytest.raises(UserError, match="data.accumulate=2 and data.step_tokens=4096 both set a step's size"):
        make_plan(config_of(rows=1, row_tokens=512, step_tokens=8 * 512, accumulate=2), SLOW)


def test_where_parameters_are_kept() -> None:
    config = config_of()
    assert placement(config, 1, 1, None) == Sharding("none", 1, 1)
    assert placement(config, 8, 2, None) == Sharding("ddp", 8, 1, accumulates=True)
    config.distribution.strategy, config.distribution.shard_size = "fsdp2", 4
    assert placement(config, 8, 1, None) == Sharding("fsdp2", 8, 4)
    assert placement(config, 8, 1, "ddp") == Sharding("ddp", 8, 1)
    config.distribution.reduce_always = True
    assert placement(config, 8, 2, None) == Sharding("fsdp2", 8, 4, accumulates=False)
    with pytest.raises(UserError, match="--sharding none is for one GPU, not 2"):
        placement(config, 2, 1, "none")
    with pytest.raises(UserError, match="distribution.shard_size=4 does not divide 6 GPUs"):
        placement(config, 6, 1, None)


def test_whether_it_fits_is_of_the_runs_own_checkpointing() -> None:
    config = config_of()
    plan = make_plan(config, SLOW)
    assert plan.memory.total(True) < plan.memory.total(False) == plan.bytes_needed
    config.activation_checkpointing = True
    assert make_plan(config, SLOW).bytes_needed == plan.memory.total(True)
    between = Gpu("between", 1e12, (plan.memory.total(True) + plan.memory.total(False)) // 2)
    assert make_plan(config, between).fits
    config.activation_checkpointing = False
    refused = make_plan(config, between)
    assert not refused.fits and "DOES NOT FIT" in to_text(refused)
    needed = make_plan(config, between).bytes_needed
    assert "fits, with less than a tenth to spare" in to_text(make_plan(config, Gpu("tight", 1e12, round(1.05 * needed))))
    assert "to spare" not in to_text(make_plan(config, Gpu("roomy", 1e12, 2 * needed)))


@pytest.mark.parametrize("wrong", [{"gpus": 0}, {"utilisation": 0.0}, {"utilisation": 1.5}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="is out of range"):
        make_plan(config_of(), SLOW, **wrong)  # type: ignore[arg-type]


def test_gpus_are_known_by_name_or_rate() -> None:
    assert find_gpu("h100", None) == GPUS["h100"]
    assert (
        find_gpu("h100", 5e14) == Gpu("h100", 5e14, GPUS["h100"].memory, GPUS["h100"].hourly)
        and find_gpu(None, None) == GPUS["h100"]
    )
    unknown = find_gpu(None, 5e14)
    assert unknown == Gpu("GPU", 5e14, None) and make_plan(config_of(), unknown).fits is None
    with pytest.raises(UserError, match="--gpu h10 is not known"):
        find_gpu("h10", None)
    with pytest.raises(UserError, match="--gpu-flops nan is out of range"):
        find_gpu("h100", float("nan"))


def test_hours_tokens_per_second_and_price() -> None:
    plan = make_plan(config_of(), replace(SLOW, hourly=3.0), gpus=2, utilisation=0.5)
    assert plan.tokens_per_second == pytest.approx(plan.tokens / (86400 * plan.days))
    assert plan.gpu_hours == pytest.approx(2 * 24 * plan.days) and plan.price == pytest.approx(3 * plan.gpu_hours)
    assert "tokens per second" in to_text(plan) and "at $3 per GPU-hour" in to_text(plan)
    unknown = make_plan(config_of(), SLOW)
    assert unknown.price is None and "price unknown: --price says it" in to_text(unknown)
    assert to_plain(plan)["price"] == plan.price and find_gpu("h100", None).priced(7.0).hourly == 7.0


def test_the_table_of_cards() -> None:
    """A row per card; every number is there and possible."""
    assert list(GPUS) == ["rtx4090", "l40s", "a100-40", "a100", "h100", "h200", "b200"]
    for gpu in GPUS.values():
        assert 1e14 < gpu.flops < 1e16 and gpu.memory and 2**34 < gpu.memory < 2**39 and gpu.hourly and 0.1 < gpu.hourly < 20


def test_a_pretrained_decoder_must_state_its_table() -> None:
    config = config_of()
    assert vocabulary(config) == 452, "of the tiny tokenizer"
    config.decoder.pretrained = "Qwen/Qwen2.5-1.5B-Instruct"
    with pytest.raises(UserError, match="decoder.vocabulary=0"):
        vocabulary(config)


@pytest.mark.parametrize("variant", list(SETTINGS))
def test_every_variant_has_a_plan(variant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["plan", "scenes", variant, "--gpus", "2", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["variant"] == variant and plain["fits"] and plain["days"] > 0
    assert plain["totals"]["trained"] == sum(count["trained"] for count in plain["parameters"].values())
    assert (plain["totals"]["frozen"] > 0) == bool(SETTINGS[variant].get("vae"))


@pytest.mark.slow
def test_the_full_recipe_on_a_laptop_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights, no data, no network: and it says what fits where."""
    monkeypatch.chdir(ROOT)
    config = load_config(Path("experiments/paper_7b.yaml"), Path("variants/tuna2.yaml"), [])
    plan = make_plan(config, GPUS["h100"], gpus=128)
    assert plan.fits and plan.micro_batches == 1 and plan.step_places == 2**21
    assert plan.stages["connector"].tokens == 0
    # Six FLOPs a parameter and token that each part sees, to first order.
    per_token = plan.stages["pretrain"].flops_per_token
    assert per_token["decoder"] == pytest.approx(6 * 6.53e9, rel=0.01)
    text = to_text(plan)
    for printed in ("flow head: blocks", "decoder attention", "gathered weights", "EMA", "128 x h100", "assumed lengths", "fits"):
        assert printed in text
    json.dumps(to_plain(plan))
    alone = state_bytes(plan.totals, Activations({}, {}, {}, 0, 0, 0), Sharding("none", 1, 1), 0, bf16=True)
    assert sum(alone.values()) > 2 * (GPUS["h100"].memory or 0), "no one GPU holds it"


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name for name in SETTINGS if name != "tuna_r_frozen"])  # which has no settings at this scale
def test_the_recipe_at_1_5b_has_a_plan(variant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With fewer blocks and one size, to be quick; its parameters are counted in test_parameters.py."""
    monkeypatch.chdir(ROOT)
    fewer = ["decoder.layers=2", "head.blocks=2", "data.buckets=[512x512]"]
    if "encoder" in SETTINGS[variant]:
        fewer.append("frontend.encoder_layer=-26")
    assert main(["plan", "paper_1_5b", variant, "--gpus", "64", "--json", *fewer]) == 0
    plain = json.loads(capsys.readouterr().out)
    counts = {name: count["trained"] for name, count in plain["parameters"].items()}
    assert counts["decoder: embeddings"] == 151_936 * 1536
    assert plain["fits"] and plain["micro_batches"] == 1 and plain["sharding"]["strategy"] == "fsdp2"
    steps = {"connector": 3_000 if variant == "tuna_r" else 0, "pretrain": 100_000, "sft": 15_000}
    assert {name: stage["tokens"] // plain["step_places"] for name, stage in plain["stages"].items()} == steps
    per_token = plain["stages"]["pretrain"]["flops_per_token"]
    assert per_token["decoder"] == pytest.approx(6 * counts["decoder: layers"], rel=1e-3), "each parameter, each token"
    assert bool(per_token["frozen front-end"]) == (plain["totals"]["frozen"] > 0)
    kept = plain["memory"]["activations"]
    assert kept["with checkpointing"] < kept["without checkpointing"] / 2
