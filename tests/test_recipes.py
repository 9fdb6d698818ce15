"""The paper's recipe at two sizes: what is equal in it, what differs, and what happens on a laptop."""

from dataclasses import asdict, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.conftest import SmallComponents, small_config
from tests.model.samples import plain_draws, random_batch
from tests.variants import FULL_SCALE, SETTINGS
from tunalab.cli import main
from tunalab.data.buckets import Buckets
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.frontends.registry import build_frontend, frontend_class
from tunalab.model.flow import sample_time
from tunalab.model.objective import losses
from tunalab.model.unified import UnifiedModel, build_model
from tunalab.official.layout import MODELS, OfficialModel
from tunalab.settings.layers import leaves
from tunalab.settings.loading import load_config, to_plain
from tunalab.settings.schema import FrontEndConfig, RunConfig
from tunalab.training.optimisation import set_trainable

ROOT = Path(__file__).parent.parent
CONTROLLED, OWN = ("paper_1_5b_controlled", "paper_7b_controlled"), ("paper_1_5b", "paper_7b")
SIZE = {"decoder.pretrained", "decoder.vocabulary", "decoder.width", "decoder.heads", "decoder.kv_heads", "decoder.mlp"}
SIZE |= {"decoder.tie_embeddings", "head.blocks", "head.heads", "head.kv_heads", "head.mlp", "data.step_tokens"}
SIZE |= {"objective.masking.start"}  # the paper has one for its full recipe, one for its ablation
STAGES = ("connector", "pretrain", "sft")


@cache
def load(experiment: str, variant: str, *settings: str) -> RunConfig:
    return load_config(ROOT / f"experiments/{experiment}.yaml", ROOT / f"variants/{variant}.yaml", list(settings))


def differences(a: RunConfig, b: RunConfig) -> set[str]:
    left, right = dict(leaves(to_plain(a))), dict(leaves(to_plain(b)))
    return {key for key in left.keys() | right.keys() if left.get(key) != right.get(key)}


def connects(config: RunConfig) -> bool:
    return bool(frontend_class(config.frontend.name).connector_parts)


@pytest.mark.parametrize("experiment", [*CONTROLLED, "public_0_5b"])
def test_controlled_variants_differ_in_their_front_end_alone(experiment: str) -> None:
    """But for the exception that the headers name: a front-end without connector trains whole in the connector stage."""
    configs = {variant: load(experiment, variant) for variant in FULL_SCALE}
    assert len(configs) >= 5
    for one, other in combinations(configs.values(), 2):
        settings = differences(one, other)
        exception = {key for key in settings if key.startswith("stages.")}
        assert exception == (set() if connects(one) == connects(other) else {"stages.connector.lr"})
        assert {key.split(".")[0] for key in settings - exception} - {"label", "colour"} == {"variant", "frontend"}
    for variant, config in configs.items():
        stages = config.stages
        assert stages["connector"].lr == (5e-4 if connects(config) else stages["pretrain"].lr), variant


@pytest.mark.parametrize("one, other", [("bottleneck", "tuna2"), ("vae_latents", "tuna")])
def test_the_two_that_the_paper_lacks_differ_from_its_nearest_in_the_front_end_alone(one: str, other: str) -> None:
    """And in the rate of a stage that neither has."""
    pair = load("paper_7b", one), load("paper_7b", other)
    stages = set() if connects(pair[1]) == connects(pair[0]) else {"stages.connector.lr"}
    settings = {key for key in differences(*pair) if not key.startswith("frontend.")}
    assert settings == {"variant"} | stages
    assert {config.frontend.vae for config in pair} == {pair[1].frontend.vae} and pair[0].frontend.patch == pair[1].frontend.patch


@pytest.mark.parametrize("official", MODELS, ids=lambda model: model.variant)
def test_own_sampling_is_that_of_the_released_models(official: OfficialModel) -> None:
    sampling = load("paper_7b", official.variant).sampling
    published = {key: value for key, value in official.usual.items() if key.startswith("sampling.")}
    own = {f"sampling.{key}": value for key, value in asdict(sampling).items() if key != "negative_prompt"}  # whose words are ours
    assert own == published


def test_tunas_times_shift_by_the_published_law() -> None:
    """mu is linear in tokens, 0.5 at 256 and 1.15 at 4096, and noise grows with it: t = 1 is clean. The code fixes the tokens."""
    code = load("paper_7b", "tuna").objective
    tokens = torch.tensor([256, 1024, 4096])
    for objective, mu in ((code, [0.63, 0.63, 0.63]), (replace(code, time_shift_tokens=0), [0.5, 0.63, 1.15])):
        middle = sample_time(torch.zeros(3), tokens, objective)
        torch.testing.assert_close(-middle.logit(), torch.tensor(mu), rtol=1e-5, atol=1e-6)
    z = torch.special.ndtri((torch.arange(4096) + 0.5) / 4096)
    mean = [sample_time(z, torch.full((4096,), 4096), one).mean().item() for one in (code, replace(code, time_shift_tokens=0))]
    assert mean == pytest.approx([0.3725, 0.277], abs=1e-3)


@pytest.mark.parametrize("variant", FULL_SCALE)
def test_sizes_differ_in_size_and_budget_alone(variant: str) -> None:
    for small, large in (OWN, CONTROLLED):
        budgets = {f"stages.{stage}.tokens" for stage in STAGES}
        changed = differences(load(small, variant), load(large, variant)) - {"experiment"}
        assert SIZE <= changed <= SIZE | budgets


def test_the_stages_are_the_papers() -> None:
    for experiment, variant in ((experiment, variant) for experiment in OWN + CONTROLLED for variant in FULL_SCALE):
        config = load(experiment, variant)
        stages = config.stages
        assert list(stages) == list(STAGES)
        connector = 5e-4 if connects(config) else 1e-4  # in the paper's own settings the stage is Tuna-R's alone, frozen or not
        assert [stage.lr for stage in stages.values()] == [connector, 1e-4, 2e-5]
        assert (stages["connector"].tokens == 0) == (experiment in OWN and variant not in ("tuna_r", "tuna_r_frozen"))
        assert [stage.train for stage in stages.values()] == ["connector", "all", "all"]
        assert [stage.masking for stage in stages.values()] == [False, True, False]
        assert config.objective.masking.start == (0.6 if "7b" in experiment else 0.5), "the last 40%, in Table 6 the last half"
        assert config.data.row_tokens == 16_384 and config.precision == "bf16" and config.activation_checkpointing
        assert config.optimizer.ema == 0.9999 and config.optimizer.beta2 == 0.95
        assert all(stage.tokens % config.data.step_tokens == 0 for stage in stages.values())
    steps = {name: stage.tokens // 2_097_152 for name, stage in load("paper_7b", "tuna_r").stages.items()}
    assert steps == {"connector": 3_000, "pretrain": 300_000, "sft": 50_000}
    assert load("paper_1_5b", "tuna2").stages["pretrain"].tokens // 1_048_576 == 100_000


def test_both_published_mixes_go_by_name() -> None:
    def shares(config: RunConfig) -> tuple[float, float]:
        mix = config.stages["pretrain"].mix
        assert sum(mix.values()) == pytest.approx(1) and mix["text/nemotron"] == 0.2
        return mix["webdataset/pairs_caption"] / 0.8, mix["webdataset/pairs_text_to_image"] / 0.8

    assert shares(load("paper_7b", "tuna2")) == pytest.approx((0.3, 0.7))
    assert shares(load("paper_7b", "tuna2", "stages.pretrain.mix=v1")) == pytest.approx((0.7, 0.3))
    both = load("paper_1_5b", "tuna_r", "stages.pretrain.mix=v1", "stages.connector.mix=connector_v1")
    assert both.stages["connector"].mix["webdataset/pairs_caption"] == 0.7
    with pytest.raises(UserError, match=r"stages.pretrain.mix=v3 is no mix of the experiment \(choices: v2, v1"):
        load("paper_7b", "tuna2", "stages.pretrain.mix=v3")


def test_buckets_are_five_around_512_and_five_around_1024_px() -> None:
    for tier, side in zip(Buckets.of(load("paper_7b", "tuna2").data).tiers, (512, 1024), strict=True):
        assert len(tier) == 5 and (side, side) in tier
        for height, width in tier:
            assert height % 16 == width % 16 == 0 and height * width == pytest.approx(side**2, rel=0.02)
            assert (width, height) in tier


def test_training_without_the_data_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(ROOT / "experiments/paper_7b.yaml"), str(ROOT / "variants/tuna2.yaml")]
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--experiment", names[0], "--variant", names[1]]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and ("data/" in printed or "Qwen/Qwen2.5-7B-Instruct" in printed)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("variant", "missing"),
    [
        ("tuna2", "decoder.pretrained=Qwen/Qwen2.5-7B-Instruct"),
        ("tuna_r", "frontend.encoder=vit_so400m_patch16_siglip_384.v2_webli"),
        ("tuna", "frontend.vae=Wan-AI/Wan2.2-TI2V-5B-Diffusers/vae"),
        ("vae_latents", "frontend.vae=Wan-AI/Wan2.2-TI2V-5B-Diffusers/vae"),
    ],
)
def test_training_without_the_weights_is_one_line_and_never_random(
    variant: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def without_memory(*given: Any, **settings: Any) -> Any:
        """timm makes the encoder whole, in 1.7 GB, before it looks for the weights."""
        with torch.device("meta"):
            return create(*given, **settings)

    monkeypatch.setattr(timm, "create_model", without_memory)
    config = load("paper_7b", variant)
    with pytest.raises(UserError) as error:
        build_model(config, Components(), config.decoder.vocabulary)
    assert str(error.value).startswith(missing) and "\n" not in str(error.value)


@pytest.mark.parametrize("variant", [name for name in FULL_SCALE if connects(load(CONTROLLED[0], name))])
def test_text_to_image_trains_nothing_in_the_connector_stage(variant: str, tokenizer: Tokenizer) -> None:
    """As the headers say: the head's output starts at zero and stays there, and no gradient passes a weight of zero."""
    assert load(CONTROLLED[0], variant).stages["connector"].train == "connector"
    config = small_config()
    model = UnifiedModel(
        config,
        build_frontend(FrontEndConfig(**SETTINGS[variant]), config.decoder.width, 32, SmallComponents()),
        tokenizer.vocabulary,
    )
    set_trainable(model, "connector", config.optimizer)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert learnt
    for kind, moves in (("g", False), ("c", True)):
        batch = random_batch(kind * 4, 1, tokenizer)
        parts = losses(model, batch, plain_draws(model, batch), config.objective)
        model.zero_grad()
        (parts["flow"].sum + parts["text"].sum).backward()
        assert all(parameter.grad is not None and parameter.grad.any() == moves for parameter in learnt)
        assert (parts["flow"].sum > 0) == (kind == "g")


def test_training_without_the_tokenizer_is_one_line() -> None:
    with pytest.raises(UserError, match="^decoder.pretrained=Qwen/Qwen2.5-1.5B-Instruct"):
        Components().tokenizer_for(load("paper_1_5b", "tuna2").decoder)
