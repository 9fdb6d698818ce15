"""Parameter groups, what weight decay acts on, and Muon: which parameters move, and how far."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.conftest import quick_config
from tests.training.test_module import batch_of, make_harness, rows, step_of
from tunalab.errors import UserError
from tunalab.settings.loading import completed, config_hash, from_plain, load_config, to_plain
from tunalab.settings.schema import ParameterGroupConfig
from tunalab.training.module import Harness
from tunalab.training.optimisation import Ema, parameter_groups
from tunalab.training.preflight import check_run

ROOT = Path(__file__).parents[2]
ADDED = ("name", "momentum", "weight_decay_on", "groups")


def one_step(variant: str, **settings: Any) -> tuple[Harness, torch.optim.Optimizer, dict[str, torch.Tensor]]:
    """A harness after one step from fresh weights, and by how much every parameter moved."""
    harness = make_harness(quick_config(variant, optimizer__warmup_steps=0, **settings))
    optimizer = harness.configure_optimizers()
    harness.optimizers = lambda: optimizer  # type: ignore[method-assign, assignment]
    before = {name: p.detach().clone() for name, p in harness.learnt().items()}
    harness.training_step(step_of([batch_of(rows(["vqa", "text_to_image", "caption"]))]), 0)
    return harness, optimizer, {name: p.detach() - before[name] for name, p in harness.learnt().items()}


def test_without_groups_there_is_the_one_entry_of_earlier_versions() -> None:
    harness = make_harness(quick_config("tuna"))
    (entry,) = harness.configure_optimizers().param_groups
    assert [id(p) for p in entry["params"]] == [id(p) for p in harness.learnt().values()]
    assert (entry["weight_decay"], entry["factor"]) == (harness.config.optimizer.weight_decay, 1.0)


def test_a_run_of_an_earlier_version_is_the_same_run() -> None:
    config = quick_config()
    earlier = to_plain(config)
    for name in ADDED:
        del earlier["optimizer"][name]
    for stage in earlier["stages"].values():
        for name in ("schedule", "final_lr", "cooldown"):
            del stage[name]
    assert completed(earlier) == to_plain(config) and config_hash(from_plain(earlier)) == config_hash(config)


def test_a_group_moves_by_its_share_of_the_rate_and_of_rate_0_not_at_all() -> None:
    groups = {
        "encoder": {"match": "frontend.encoder", "lr": 0.25},
        "still": {"match": "decoder.model.layers.?.mlp.*", "lr": 0},
    }
    _, _, plain = one_step("tuna_r", optimizer__clip=0.0)
    harness, optimizer, grouped = one_step("tuna_r", optimizer__clip=0.0, optimizer__groups=groups)
    assert plain.keys() == grouped.keys()
    observed = set()
    for name, moved in grouped.items():
        factor = 0.25 if name.startswith("frontend.encoder.") else 0.0 if ".mlp." in name and "decoder" in name else 1.0
        observed.add(factor)
        state = optimizer.state.get(harness.learnt()[name])
        # Of a weight near 1 a step of 1e-3 is known to 1e-4 of itself.
        torch.testing.assert_close(moved, factor * plain[name], rtol=0, atol=2e-7 if factor else 0.0, msg=name)
        assert bool(state) == bool(factor) or not plain[name].any(), name
        assert torch.equal(harness.ema.shadow[name], harness.learnt()[name].detach()) or factor, name
    assert observed == {0.0, 0.25, 1.0}


def test_decay_on_matrices_alone_and_a_decay_of_a_group(variant: str) -> None:
    settings = {"optimizer__weight_decay": 0.5, "optimizer__weight_decay_on": "matrices"}
    config = quick_config(variant, **settings, optimizer__groups={"head": {"match": "head", "weight_decay": 0}})
    harness = make_harness(config)
    names = {id(p): name for name, p in harness.learnt().items()}
    decays = {names[id(p)]: e["weight_decay"] for e in parameter_groups(harness.model, config.optimizer) for p in e["params"]}
    assert decays.keys() == harness.learnt().keys(), "each of them once"
    decayed = {name for name, decay in decays.items() if decay}
    assert {decays[name] for name in decayed} == {0.5} and not any(name.startswith("head.") for name in decayed)
    ends = {"q_proj.weight", "down_proj.weight"}
    assert all(any(name.endswith(end) for name in decayed) for end in ends)
    spared = ("bias", "norm.weight", "layernorm.weight", "embed_tokens.weight", "mask_token", "position")
    assert not [name for name in decayed if any(part in name for part in spared)]


@pytest.mark.parametrize("variant", ["tuna_r", "tuna2"])
def test_muon_moves_matrices_of_blocks_as_far_as_adamw_would_and_adamw_the_rest(variant: str) -> None:
    harness, optimizer, moved = one_step(variant, optimizer__name="muon", optimizer__weight_decay=0.0)
    kinds = {name: set(optimizer.state.get(p, {})) for name, p in harness.learnt().items()}
    by_muon = {name for name, kind in kinds.items() if kind == {"momentum_buffer"}}
    assert {kind for name in kinds.keys() - by_muon for kind in kinds[name]} == {"step", "exp_avg", "exp_avg_sq"}
    assert all(moved[name].ndim == 2 and ".norm" not in name for name in by_muon)
    starts = {".".join(name.split(".")[:2]) for name in by_muon}
    assert starts == {"decoder.model", "head.blocks"} | ({"frontend.encoder"} if variant == "tuna_r" else set())
    assert not by_muon & {"decoder.model.embed_tokens.weight", "head.output.weight"}
    lr = harness.config.stages["pretrain"].lr
    update = moved["decoder.model.layers.0.self_attn.q_proj.weight"] / (lr * 0.2 * 32**0.5)
    singular = torch.linalg.svdvals(update)
    assert 0.5 < singular.median() < 1.3 and singular.max() < 1.3, "the iteration brings them near 1"


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"enc": {"match": "frontend.encoders"}}, r"^optimizer.groups.enc.match=frontend.encoders matches no .*frontend.encoder, "),
        ({"vae": {"match": "frontend.vae"}}, "matches no parameter that is trained"),
        ({"none": {"lr": 0.5}}, "optimizer.groups.none.match= matches no"),
        (
            {"a": {"match": "head"}, "b": {"match": "*.blocks.0.*"}},
            r"b.match=.* matches head.blocks.0.* group a .match=head.",
        ),
    ],
)
def test_groups_that_match_nothing_or_what_another_matches_are_one_line(groups: dict[str, Any], message: str) -> None:
    config = quick_config("tuna", optimizer__groups=groups)
    for refuse in (lambda: make_harness(config), lambda: check_run(config)):
        with pytest.raises(UserError, match=message) as caught:
            refuse()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", ["tuna", "tuna_r"])
def test_the_lines_that_give_an_encoder_its_own_rate(variant: str, tmp_path: Path) -> None:
    """Those of the documentation: alone, and in an experiment of several variants."""
    page = (ROOT / "docs" / "optimisation.md").read_text()
    line = re.findall("'(optimizer.groups.+?)'", page)
    assert len(line) == 1
    (of_variants,) = [block for block in re.findall("```yaml\n(.*?)```", page, re.DOTALL) if block.startswith("variants:")]
    (tmp_path / "own.yaml").write_text(f"base: {ROOT / 'experiments' / 'scenes.yaml'}\n{of_variants}")
    files = ROOT / "experiments" / "scenes.yaml", tmp_path / "own.yaml"
    alone, of_file = (load_config(file, ROOT / "variants" / f"{variant}.yaml", more) for file, more in zip(files, (line, [])))
    for config in (alone, of_file):
        check_run(config)
        assert config.optimizer.groups == {"encoder": ParameterGroupConfig("frontend.encoder", 0.1)}
    assert not load_config(tmp_path / "own.yaml", ROOT / "variants" / "tuna2.yaml", []).optimizer.groups


def test_average_in_closed_form() -> None:
    p = nn.Parameter(torch.zeros(3))
    ema = Ema({"p": p}, decay=0.5)
    expected = torch.zeros(3)
    for step in range(20):
        p.data = torch.full((3,), float(step))
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * p.data
    assert torch.allclose(ema.shadow["p"], expected)


def test_applied_swaps_and_gives_back_the_same_bits() -> None:
    p = nn.Parameter(torch.randn(4))
    ema = Ema({"p": p}, decay=0.9)
    p.data = torch.randn(4)
    ema.update()
    raw, averaged = p.data.clone(), ema.shadow["p"].clone()
    with ema.applied():
        assert torch.equal(p.data, averaged) and not torch.equal(p.data, raw)
    assert torch.equal(p.data, raw) and torch.equal(ema.shadow["p"], averaged)
