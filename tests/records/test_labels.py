"""Whatever differs between records is told apart; what differs by being another variant, seed or place is not."""

from dataclasses import replace

import pytest

from tunalab.records.labels import differing_settings, identity


def labels(records):
    return [setting.label for setting in differing_settings(records)]


def test_variants_and_seeds_alone_need_no_label(records):
    made = records(seeds=2)
    assert set(labels(made)) == {""}
    assert len({identity(record) for record in made}) == 3


@pytest.mark.parametrize(
    ("setting", "label"),
    [
        ("objective.masking.ratio=0.75", "mask ratio 0.75"),
        ("stages.pretrain.lr=1e-4", "lr 0.0001"),
        ("data.levels=[1, 0, 0]", "levels [1.0, 0.0, 0.0]"),
        ("stages.sft.mix={scenes/vqa: 0.9}", "scenes/vqa 0.9"),
        ("frontend.patch=4", "patch 4"),
        ("sampling.method=euler", "method euler"),
        ("optimizer.ema=0.9900000001", "ema 0.9900000001"),
    ],
)
def test_any_one_setting_tells_two_records_apart(record, setting, label):
    made = [record(), record(settings=[setting])]
    assert len(set(labels(made))) == 2 and labels(made)[1] == label
    assert identity(made[0]) != identity(made[1])


def test_components_are_luck_as_the_seed_is_where_seeds_cross_with_them(record):
    """Seed s takes component s: a mean over them is one over both. Two components behind one seed are compared."""
    part = [{"encoder": {"name": f"encoder/seed{seed}@10000", "folder": f"encoder-{seed}"}} for seed in range(3)]
    crossed = [
        replace(record("tuna_r", seed=seed, settings=[f"components_seed={seed}"]), components=part[seed]) for seed in range(3)
    ]
    assert labels(crossed) == ["", "", ""] and len({identity(one) for one in crossed}) == 1
    same_seed = [record(), record(settings=["components_seed=3"])]
    assert labels(same_seed) == ["components_seed 0", "components_seed 3"]
    other = replace(crossed[1], components={"encoder": {"name": "encoder/seed1@300", "folder": "encoder-9"}})
    assert len(set(labels([crossed[0], other]))) == 2 and identity(other) != identity(crossed[0])


def test_a_rate_of_its_own_is_of_the_front_end_and_a_setting_within_it(record):
    own = [f"optimizer.groups.encoder={{match: frontend.encoder, lr: {lr}}}" for lr in (0.1, 1.0)]
    tuna_r, faster = (record("tuna_r", settings=[one]) for one in own)
    assert labels([record("tuna2"), tuna_r]) == ["", ""]
    assert labels([record("tuna2"), tuna_r, faster])[1:] == ["encoder.lr 0.1", "encoder.lr 1"]
    of_decoder = record("tuna_r", settings=["optimizer.groups.x={match: decoder, lr: 0.1}"])
    assert labels([record("tuna2"), of_decoder]) != ["", ""]


def test_a_name_says_what_departs_from_most_and_settings_stay_distinct(record):
    deeper, shallow = record(settings=["decoder.layers=7"]), record(settings=["decoder.layers=1"])
    made = [record(), record(seed=1), record("tuna"), deeper, shallow]
    assert labels(made) == ["", "", "", "layers 7", "layers 1"]
    assert len(set(differing_settings(made))) == 3
    assert labels([record(), deeper]) == ["layers 3", "layers 7"]  # no setting is that of most


@pytest.mark.parametrize("setting", ["tracking.sweep=other", "tracking.parent_run=abc", "threads=2", "checkpoint_seconds=5"])
def test_where_a_run_reports_is_no_difference(record, setting):
    made = [record(), record(seed=1, settings=[setting])]
    assert labels(made) == ["", ""] and identity(made[0]) == identity(made[1])


def test_settings_that_go_together_are_told_once(record):
    rates = [[f"stages.{stage}.lr={rate}" for stage in ("connector", "pretrain", "sft")] for rate in (0.1, 0.2)]
    assert labels([record(settings=settings) for settings in rates]) == ["lr 0.1", "lr 0.2"]


def test_stages_in_another_order_are_another_run(record):
    first = record()
    stages = dict(reversed(first.config["stages"].items()))
    assert len(set(labels([first, replace(first, config=first.config | {"stages": stages})]))) == 2


def test_a_setting_that_is_newer_than_a_record_is_at_its_default(record):
    newer, older = record(), record(seed=1)
    del older.config["sampling"]["guidance"]
    assert labels([newer, older]) == ["", ""] and identity(newer) == identity(older)


def test_a_record_of_an_earlier_revision_is_told_apart(record):
    old = replace(record(seed=1), config={key: value for key, value in record().config.items() if key != "revision"})
    assert labels([record(), old]) == ["revision 2", "revision 1"]


def test_other_components_are_told_apart_within_a_variant(record):
    one, two = (replace(record(seed=seed), components={"vae": {"folder": f"vae-{seed}"}}) for seed in (0, 1))
    assert labels([one, two]) == ["vae vae-0", "vae vae-1"]
    other = replace(two, run=replace(two.run, variant="tuna"))
    assert labels([one, other]) == ["", ""]
