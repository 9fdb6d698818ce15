"""Effects of runs whose outcomes are known: what was put in must come out, and nothing where nothing was."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from tests.synthetic import synthetic_record

from tunalab.analysis.effects import MEAN, PSNR, TEXT_LOSS, effects_table, factors_and_cells, ordered_levels, write_effects
from tunalab.analysis.figures import CLEAR, forest
from tunalab.errors import UserError
from tunalab.evaluation.measure import LossItems, Score
from tunalab.records.record import Record

N = 400
MASKED = {
    "both": [],
    "generation": ["objective.masking.understanding=false"],
    "understanding": ["objective.masking.generation=false"],
}


def run(
    variant: str, seed: int, ability: float, ratio: float = 0.0, settings: list[str] | None = None, loss: float = 1.0
) -> Record:
    """A run that answers the first ``ability`` of the questions right: differences between runs are then exact."""
    record = synthetic_record(
        variant, seed, ratio, n=N, kinds=2, settings=settings or [], name=f"{variant}-{ratio}-{settings}-{seed}"
    )
    scores = {name: Score.from_outcomes(np.arange(N) < round(ability * N), 0.1) for name in record.points[-1].benchmarks}
    last = replace(
        record.points[-1],
        tokens=4_000_000,
        benchmarks=scores,
        losses={"text/vqa": loss},
        one_step_psnr={"0.3": 20.0, "0.9": 20 + loss},
    )
    return replace(record, points=[last])


def rows(records: list[Record]) -> dict[tuple[str, str, str, str], dict[str, float]]:
    table = effects_table(records)
    return {(r["factor"], r["level"], r["with"], r["outcome"]): r for r in table.to_dict("records")}  # type: ignore[misc]


def test_the_corners_of_vae_and_encoder_give_main_effects_and_their_interaction() -> None:
    ability = {"tuna2": 0.5, "tuna_r": 0.6, "vae_latents": 0.4, "tuna": 0.7}
    found = rows([run(name, seed, value + 0.01 * seed, loss=value) for seed in (0, 1) for name, value in ability.items()])
    assert found["encoder", "pretrained", "", MEAN]["value"] == pytest.approx((0.1 + 0.3) / 2)
    assert found["VAE", "VAE", "", MEAN]["value"] == pytest.approx((-0.1 + 0.1) / 2)
    assert found["encoder", "pretrained", "VAE: VAE instead of none", MEAN]["value"] == pytest.approx(0.3 - 0.1)
    main = found["encoder", "pretrained", "", "relations"]
    assert (main["pairs"], main["seeds"], main["n"]) == (2, 2, N)
    assert main["low"] < 0.2 < main["high"] and main["low"] > 0.15
    # Loss and PSNR have no questions: without scatter between seeds the interval of the mean is a point.
    loss = found["encoder", "pretrained", "", TEXT_LOSS]
    assert loss["value"] == pytest.approx(0.2) and loss["high"] - loss["low"] == pytest.approx(0, abs=1e-9)
    # Flow times are told apart: what happens near the image is no effect near noise.
    assert found["encoder", "pretrained", "", f"{PSNR}0.3, dB"]["value"] == 0
    assert found["encoder", "pretrained", "", f"{PSNR}0.9, dB"]["value"] == pytest.approx(0.2)


def test_a_run_without_masking_stands_beside_every_kind_of_masking() -> None:
    records = [run("tuna2", 0, 0.5)]
    gain = {"both": 0.0, "generation": 0.1, "understanding": -0.1}
    for ratio, (kind, settings) in product((0.3, 0.6), MASKED.items()):
        records.append(run("tuna2", 0, 0.5 + ratio * gain[kind], ratio, settings))
    found = rows(records)
    assert found["mask ratio", "0.3", "", MEAN]["pairs"] == 3 and found["mask ratio", "0.3", "", MEAN]["value"] == pytest.approx(0)
    # Nothing masked is neither level of what is masked, and no pair of the two.
    assert found["masked", "generation", "", MEAN]["pairs"] == 2
    assert found["masked", "generation", "", MEAN]["value"] == pytest.approx(0.045, abs=2e-3)
    interaction = found["mask ratio", "0.6", "masked: generation instead of both", MEAN]
    assert interaction["value"] == pytest.approx(0.06, abs=2e-3)


@pytest.mark.slow
def test_an_interval_covers_the_truth_of_noisy_runs() -> None:
    generator, hits = np.random.default_rng(0), 0
    for _ in range(20):
        outcomes = {name: generator.random((2, N)) < share for name, share in (("tuna2", 0.5), ("tuna_r", 0.55))}
        records = []
        for name, seed in product(outcomes, (0, 1)):
            record = run(name, seed, 0.5)
            scores = {"count": Score.from_outcomes(outcomes[name][seed].tolist(), 0.1)}
            records.append(replace(record, points=[replace(record.points[-1], benchmarks=scores)]))
        row = rows(records)["encoder", "pretrained", "", "count"]
        hits += row["low"] <= 0.05 <= row["high"]
    assert hits >= 17  # of 20 at 95%: 17 or more with probability .98


def test_other_settings_are_factors_of_their_own_unless_they_follow() -> None:
    slower = ["optimizer.ema=0.9", "optimizer.warmup_steps=7"]
    factors, cells = factors_and_cells([run("tuna2", 0, 0.5), run("tuna2", 0, 0.6, settings=slower), run("tuna_r", 0, 0.6)])
    assert len(factors) == 2 and factors[0].name == "encoder" and len({cell.levels for cell in cells}) == 3


@pytest.mark.parametrize(
    ("settings", "factor", "level"),
    [
        (["frontend.encoder_pretrained=false"], "encoder", "scratch"),
        (["frontend.encoder_trained=false"], "encoder", "frozen"),
        (["objective.prediction=v"], "prediction", "v"),
        (["decoder.layers=7", "decoder.mlp=272"], "decoder", "7 layers of 272"),
        (["stages.pretrain.mix={scenes/vqa: 0.5, scenes/edit: 0.25, scenes/text_to_image: 0.25}"], "share of generation", None),
    ],
)
def test_known_factors_are_read_from_the_settings(settings: list[str], factor: str, level: str | None) -> None:
    factors, cells = factors_and_cells([run("tuna_r", 0, 0.5), run("tuna_r", 0, 0.5, settings=settings)])
    assert [one.name for one in factors] == [factor]
    assert level is None or cells[1].levels == (level,)


def test_settings_of_stages_are_choices_as_others_are() -> None:
    """At another rate is not the same pair; and one rate against another is an effect."""
    rates = {rate: [f"stages.pretrain.lr={rate}"] for rate in (0.001, 0.1)}
    made = [run("tuna2", seed, 0.5, settings=rates[0.001], loss=1.0) for seed in (0, 1)]
    made += [run("tuna_r", seed, 0.5, settings=rates[rate], loss=50 * rate) for seed in (0, 1) for rate in rates]
    found = rows(made)
    assert found["encoder", "pretrained", "", TEXT_LOSS]["value"] == pytest.approx(0.05 - 1.0)
    assert found["encoder", "pretrained", "", TEXT_LOSS]["pairs"] == 1
    assert found["lr", "0.1", "", TEXT_LOSS]["value"] == pytest.approx(5.0 - 0.05)


def test_mixes_that_differ_beyond_their_share_of_generation_are_told_apart() -> None:
    mixes = [f"stages.pretrain.mix={{scenes/vqa: {0.5 + more}, scenes/caption: {0.5 - more}}}" for more in (0.0, 0.2)]
    made = [run("tuna2", seed, 0.5 + 0.1 * index, settings=[mix]) for seed in (0, 1) for index, mix in enumerate(mixes)]
    factors, cells = factors_and_cells(made)
    assert [factor.name for factor in factors] == ["scenes/caption"] and {cell.levels for cell in cells} == {(0.5,), (0.3,)}


def test_snapshots_of_an_encoder_are_levels_in_their_order() -> None:
    loss = {"@10000": 1.0, "@300": 3.0, "@1000": 2.0}
    made = [
        run("tuna_r", seed, 0.5, settings=[f"frontend.encoder=tiny{at}"], loss=of) for seed in (0, 1) for at, of in loss.items()
    ]
    made += [run("tuna_r", seed, 0.5, settings=["frontend.encoder_pretrained=false"], loss=4.0) for seed in (0, 1)]
    table = effects_table(made)
    shown = table[(table["effect"] == "main") & (table["outcome"] == TEXT_LOSS)]
    names = [f"pretrained tiny{at}" for at in ("@300", "@1000", "@10000")]
    steps = {(row["level"], row["reference"]): row["value"] for row in shown.to_dict("records")}
    assert set(shown["factor"]) == {"encoder"}
    assert steps == {
        (names[0], "scratch"): -1.0,
        (names[1], "scratch"): -2.0,
        (names[2], "scratch"): -3.0,
        (names[1], names[0]): -1.0,
        (names[2], names[0]): -2.0,
        (names[2], names[1]): -1.0,
    }


def test_text_losses_are_averaged_over_the_kinds_that_all_runs_have() -> None:
    """A run without captions measures none: that is no gain."""
    made = [run(name, seed, 0.5) for name in ("tuna2", "tuna_r") for seed in (0, 1)]
    more = [replace(one, points=[replace(p, losses=p.losses | {"text/caption": 4.0}) for p in one.points]) for one in made[2:]]
    assert rows([*made[:2], *more])["encoder", "pretrained", "", TEXT_LOSS]["value"] == pytest.approx(0)
    neither = [replace(one, points=[replace(p, losses={"text/text": 2.0}) for p in one.points]) for one in made[2:]]
    assert TEXT_LOSS not in {outcome for *_, outcome in rows([*made[:2], *neither])}


def test_levels_are_compared_with_none_or_the_smallest() -> None:
    assert ordered_levels(["scratch", "none", "pretrained", None]) == ["none", "scratch", "pretrained"]
    assert ordered_levels([0.5, 0.0, 0.15]) == [0.0, 0.15, 0.5]
    assert ordered_levels(["v", "x"]) == ["x", "v"]


def test_words_are_compared_with_each_other_and_numbers_with_the_smallest() -> None:
    kinds = [run("tuna2", 0, 0.5), run("tuna_r", 0, 0.6), run("tuna_r", 0, 0.7, settings=["frontend.encoder_trained=false"])]
    table = effects_table(kinds)
    assert set(zip(table["level"], table["reference"], strict=True)) == {
        *(("frozen", "none"), ("pretrained", "none"), ("pretrained", "frozen")),
    }
    table = effects_table([run("tuna2", 0, 0.5, ratio) for ratio in (0.0, 0.3, 0.6)])
    assert set(zip(table["level"], table["reference"], strict=True)) == {("0.3", "0"), ("0.6", "0")}


def test_files_say_who_made_them_and_one_cell_makes_none(records: Callable[..., list[Record]], tmp_path) -> None:
    assert write_effects(records(("tuna2",)), tmp_path, "make it") == []
    written = write_effects(records(), tmp_path, "make it")
    assert [path.name for path in written] == ["effects.md", "effects.csv"]
    assert all("made by: make it" in path.read_text().splitlines()[0] for path in written)
    assert "| encoder: pretrained instead of none | 1 | 2 |" in written[0].read_text()


def test_the_picture_has_a_row_a_contrast_and_marks_what_excludes_zero(records: Callable[..., list[Record]]) -> None:
    table = effects_table([run(name, seed, ability) for seed in (0, 1) for name, ability in (("tuna2", 0.5), ("tuna_r", 0.7))])
    figure = forest(table)
    assert [axes.get_title(loc="left") for axes in figure.axes][:2] == ["mean accuracy, points", "text loss, nats"]
    first = figure.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["encoder: pretrained - none"]
    assert {line.get_color() for line in first.lines[1:]} == {CLEAR}
    with pytest.raises(UserError, match="no two runs of these records differ in one choice alone"):
        forest(effects_table(records(("tuna2",))))


def test_a_single_seed_has_no_interval_of_losses() -> None:
    found = rows([run("tuna2", 0, 0.5), run("tuna_r", 0, 0.5, loss=2.0)])
    loss = found["encoder", "pretrained", "", TEXT_LOSS]
    assert loss["value"] == 1.0 and np.isnan(loss["low"])


def test_cells_of_as_many_parameters_are_compared_though_they_differ_in_two_choices() -> None:
    """Tuna-R, and a Tuna-2 whose decoder was made larger until it trains as many."""
    larger = ["decoder.layers=7", "decoder.mlp=272"]

    def of(variant: str, ability: float, trainable: int, settings: list[str]) -> list[Record]:
        made = [run(variant, seed, ability, settings=settings) for seed in (0, 1)]
        return [replace(record, parameters=record.parameters | {"trainable": trainable}) for record in made]

    small, encoder = of("tuna2", 0.5, 100_000, []), of("tuna_r", 0.7, 150_000, [])
    matched, unmatched = (of("tuna2", 0.6, trainable, larger) for trainable in (150_400, 160_000))
    table = effects_table([*small, *encoder, *matched])
    row, *more = table[(table["effect"] == "matched") & (table["outcome"] == MEAN)].to_dict("records")
    assert not more and row["factor"] == "encoder, decoder" and row["value"] == pytest.approx(0.1)
    assert row["level"].startswith("pretrained, ") and row["reference"] == "none, 7 layers of 272"
    assert not (effects_table([*small, *encoder, *unmatched])["effect"] == "matched").any()
    assert not (effects_table([*small, *encoder])["effect"] == "matched").any()  # they differ in the encoder alone


def test_one_seed_has_no_interval_and_others_that_of_their_own_cells(tmp_path: Path) -> None:
    abilities = {"tuna2": 0.5, "tuna_r": 0.9, "tuna": 0.7, "vae_latents": 0.6}
    one = [run(name, 0, ability) for name, ability in abilities.items()]
    write_effects(one, tmp_path, "x")
    text = (tmp_path / "effects.md").read_text()
    assert "**" not in text and "One seed says nothing of another" in text and "[" not in text
    luck = np.random.default_rng(0).normal(scale=0.02, size=(4, 3))
    several = [
        run(name, seed, 0.5, loss=ability + luck[index, seed])
        for index, (name, ability) in enumerate(abilities.items())
        for seed in (0, 1, 2)
    ]
    row = rows(several)["encoder", "pretrained", "", TEXT_LOSS]
    contrast_S = (luck[1] + luck[2] - luck[0] - luck[3]) / 2  # with an encoder less without, in pixels and in latents
    half = 4.302653 * contrast_S.std(ddof=1) / np.sqrt(3)
    assert row["high"] - row["value"] == pytest.approx(half)


def test_effects_on_text_losses_have_the_error_over_documents() -> None:
    """All runs are asked the same documents: where these tell the cells apart, seeds alone say too little."""
    generator = np.random.default_rng(0)
    off_D, tokens_D = generator.normal(0, 0.2, 64), np.full(64, 10)
    made = []
    for seed in range(4):
        for variant, shift in (("tuna2", off_D), ("tuna_r", 0 * off_D)):
            one = run(variant, seed, 0.5, loss=1.0 + float(shift.mean()))
            nats_D = tokens_D * (1.0 + shift)
            last = replace(one.points[-1], loss_items={"text/vqa": LossItems.of(nats_D, tokens_D)})
            made.append(replace(one, points=[*one.points[:-1], last]))
    bare = [replace(one, points=[*one.points[:-1], replace(one.points[-1], loss_items={})]) for one in made]
    widths = []
    for records in (made, bare, [*bare[:2], *made[2:]]):
        row = effects_table(records).query("outcome == 'text loss, nats'").iloc[0]
        widths.append(row["high"] - row["low"])
    expected = 2 * 1.96 * off_D.std(ddof=1) / np.sqrt(64)
    assert widths[0] == pytest.approx(expected, rel=0.01) and widths[1] == pytest.approx(0, abs=1e-6)
    assert widths[2] == pytest.approx(widths[0])  # by the seeds that have them
