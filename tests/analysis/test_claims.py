from dataclasses import replace

import numpy as np
import pytest

from tunalab.analysis.claims import (
    CLAIMS,
    OURS,
    PANELS,
    Gap,
    _in_words,
    claims,
    claims_markdown,
    corrected,
    in_words,
    verdict,
    write_claims,
)
from tunalab.analysis.endpoints import MARGIN, Difference, difference, double_difference, paired
from tunalab.evaluation.measure import Score, mean
from tunalab.evaluation.whole import Evaluated
from tunalab.frontends.looks import Look


def measured(records, margin: dict[str, float], ratios=(0.25,)):
    """Records whose variants have this margin on every panel at the end, none before, and as much accuracy above a half."""
    made = []
    for record in records(seeds=4, ratios=ratios):
        generator = np.random.default_rng(record.run.seed)
        more = margin[record.run.variant] * (1 + record.run.mask_ratio)
        points = []
        for number, point in enumerate(record.points):
            rises = more * (number + 1) / len(record.points)
            scores = {}
            for kind in PANELS:
                right = generator.random(200) < 0.5 + rises / 4
                margins = rises + generator.normal(0, 0.1, 200)
                scores[kind] = Score.from_outcomes(right, 0.2, None if kind == "ocr" else margins)
            points.append(replace(point, benchmarks=scores, losses={"text/vqa": 2 - rises}))
        psnr = mean("reconstruction", "scenes", [20.0, 21.0 + more], metric="PSNR", split="test")
        made.append(replace(record, points=points, evaluation=[Evaluated("x", {}, {}, 0.0, [psnr])]))
    return made


def row(text: str, claim: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {claim} |")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_a_claim_is_supported_contradicted_or_undecided(records):
    shown = claims_markdown(measured(records, {"tuna": 0.2, "tuna_r": 0.5, "tuna2": 1.0}))
    ends = row(shown, "Understanding ends Tuna-2 > Tuna-R")
    assert ends[1:3] == ["supported", "margin at the end: Tuna-2 - Tuna-R"] and ends[3].startswith("**+0.6")
    assert row(shown, "Tuna-2 starts slower than Tuna-R")[1] == "contradicted"
    assert row(shown, "Tuna-R leads early on OCRBench, MMVP, V*")[1] == "contradicted"
    assert "ocr (OCRBench), accuracy early" in shown and "pairs, level 2 (MMVP), margin early" in shown and ", crossing: " in shown
    opposite = claims_markdown(measured(records, {"tuna": 0.2, "tuna_r": 1.0, "tuna2": 0.5}))
    assert row(opposite, "Understanding ends Tuna-2 > Tuna-R")[1] == "contradicted"
    assert row(opposite, "Tuna-2 starts slower than Tuna-R")[1] == "supported"
    level = claims_markdown(measured(records, {"tuna": 0.5, "tuna_r": 0.5, "tuna2": 0.5}))
    assert row(level, "Understanding ends Tuna-R > Tuna")[1] == "undecided"


def test_claims_are_said_by_the_first_records_that_can(records):
    margin = {"tuna": 0.2, "tuna_r": 0.5, "tuna2": 1.0}
    masked, bare = measured(records, margin, ratios=(0.0, 0.5)), measured(records, margin)
    alone, of_masking, both = in_words(bare), in_words(masked), in_words(bare, masked)
    assert "Masking helps understanding" not in alone and "Understanding ends Tuna-2 > Tuna-R" not in of_masking
    assert both == alone | of_masking and [*both] == [claim["claim"] for claim in (*CLAIMS, *OURS) if claim["claim"] in both]


def test_what_was_not_measured_says_so_and_nothing_is_said_of_a_part_of_the_panels(records, tmp_path):
    made = measured(records, {"tuna": 0.5, "tuna_r": 0.6, "tuna2": 0.8})
    text = claims_markdown(made)
    assert row(text, "Generation: Tuna > Tuna-R > Tuna-2, all close")[1] == "not measured" and "scenes, PSNR" in text
    level_1 = [
        replace(
            one,
            evaluation=[],
            points=[replace(p, losses={}, benchmarks={"relations": p.benchmarks["relations"]}) for p in one.points],
        )
        for one in made
    ]
    assert claims_markdown(level_1) == "" and write_claims(level_1, tmp_path, "x") == []


def test_masking_is_compared_within_a_front_end_and_between_two(records):
    made = measured(records, {"tuna": 0.2, "tuna_r": 0.2, "tuna2": 1.0}, ratios=(0.0, 0.5))
    found = claims(made)
    assert verdict(found["Masking helps understanding"]) == "supported" == verdict(found["Masking helps Tuna-2 more than Tuna-R"])
    effect = found["Masking helps Tuna-2 more than Tuna-R"][0].found.estimate
    assert effect.value == pytest.approx(0.5 * (1.0 - 0.2), abs=0.03)
    assert verdict(found["Understanding ends Tuna-2 > Tuna-R"]) == "not measured"  # of which mask ratio?


def gap(value: float, scatter: float = 0.02, seeds: int = 6, close: float | None = None) -> Gap:
    """``value`` a seed, give or take ``scatter``."""
    return Gap("x", Difference("x", value + scatter * np.array([(-1) ** seed for seed in range(seeds)])), close)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.5, 0.6], "supported"), ([0.5, 0.0], "undecided"), ([0.5, -0.6], "contradicted"), ([], "not measured")],
)
def test_verdicts(values, expected):
    (found,) = corrected([[gap(value) for value in values]])
    assert verdict(found) == expected


def test_at_the_ceiling_there_is_no_room_and_no_place_in_the_family():
    full = replace(gap(0.0), full=True)
    (both, alone) = corrected([[full, gap(0.5)], [full]])
    assert verdict(both) == "supported" and verdict(alone) == "no room for a difference"
    assert both[1].family == 1 and "both at the ceiling" in full.shown and not full.needed


def test_both_sides_at_the_ceiling_are_left_out_of_a_claim(records):
    made = measured(records, {"tuna": 0.2, "tuna_r": 0.5, "tuna2": 1.0})
    best = []
    for record in made:
        scores = record.points[-1].benchmarks | {"ocr": Score.from_outcomes([True] * 200, 0.2)}
        best.append(replace(record, points=[*record.points[:-1], replace(record.points[-1], benchmarks=scores)]))
    assert row(claims_markdown(best), "Tuna-2 has passed it at the end")[1] == "supported"
    assert "both at the ceiling" in claims_markdown(best)


def test_a_claim_of_most_on_some_benchmarks_needs_a_lead_there_too(records):
    """Behind everywhere, but less so on some: that is no lead in fine-grained perception."""
    made = []
    for record in measured(records, {"tuna": 0.2, "tuna_r": 1.9, "tuna2": 0.1}):
        behind = record.run.variant == "tuna2"
        scores = {
            kind: Score.from_outcomes(
                np.arange(200) < (90 if behind and kind in ("ocr", "pairs@2", "search@2") else 20 if behind else 150), 0.2
            )
            for kind in PANELS
        }
        made.append(replace(record, points=[*record.points[:-1], replace(record.points[-1], benchmarks=scores)]))
    gaps = claims(made)["Tuna-2 > Tuna-R most on fine-grained perception"]
    assert [found.sign for found in gaps] == [-1, 1] and verdict(gaps) == "contradicted"


@pytest.mark.parametrize(
    ("value", "expected"), [(0.01, "supported"), (0.04, "undecided"), (0.2, "contradicted"), (-0.2, "contradicted")]
)
def test_a_question_of_equality_is_decided_by_its_margin(value, expected):
    (found,) = corrected([[replace(gap(value, close=0.05), equal=True)]])
    assert verdict(found) == expected and "**" not in found[0].shown


def test_what_is_claimed_to_be_close_has_to_be():
    ((apart, near),) = corrected([[gap(0.3, close=0.05), gap(0.03, close=0.05)]])
    assert verdict([apart]) == "contradicted" and verdict([near]) == "supported"
    ((unsure,),) = corrected([[gap(0.045, scatter=0.03, close=0.05)]])
    assert unsure.found.estimate.p < 0.05 and verdict([unsure]) == "undecided"


def test_differences_of_one_seed_have_their_place_in_the_family():
    one_seed = Gap("x", Difference("x", np.array([0.3])))
    alone = corrected([[gap(0.03, scatter=0.025)]])[0][0]
    ((among, *_),) = corrected([[gap(0.03, scatter=0.025), *[one_seed] * 4]])
    assert among.family == 5 and among.p == pytest.approx(5 * alone.p)
    assert one_seed.sign == 0


def test_a_claim_needs_all_that_it_names(records):
    """Margins of one run are missing: the claim is not decided by the accuracy instead, nor by what is left."""
    made = measured(records, {"tuna": 0.2, "tuna_r": 0.5, "tuna2": 1.0})
    for kind, gone in (
        ("pairs@2", {"margin": None, "margins": None}),
        ("search@2", {"margin": None, "margins": None, "outcomes": None}),
    ):
        less = []
        for record in made:
            points = record.points
            if record.run.variant == "tuna2" and record.run.seed == 1:
                points = [replace(p, benchmarks=p.benchmarks | {kind: replace(p.benchmarks[kind], **gone)}) for p in points]
            less.append(replace(record, points=points))
        found = claims(less)
        assert not found["Tuna-2 has passed it at the end"] and not found["Understanding ends Tuna-2 > Tuna-R"], kind
    bare = [
        replace(
            one,
            points=[
                replace(p, benchmarks=p.benchmarks | {"count": replace(p.benchmarks["count"], outcomes=None)}) for p in one.points
            ],
        )
        for one in made
    ]
    assert not claims(bare)["Tuna-2 > Tuna-R most on fine-grained perception"]


def test_our_own_questions_are_a_family_of_their_own(records):
    made = measured(records, {"tuna": 0.2, "tuna_r": 1.0, "tuna2": 0.5})
    look = Look("Frozen", "#882255", factors={"encoder": "frozen", "VAE": "none", "patch embedding": "linear"})
    of_tuna_r = [one for one in made if one.run.variant == "tuna_r"]
    frozen = [
        replace(one, run=replace(one.run, variant="frozen", name=f"frozen-{one.run.seed}"), frontend=look) for one in of_tuna_r
    ]
    found = claims([*made, *frozen])
    equal, ahead = (found[name] for name in found if name.startswith("Ours"))
    assert verdict(equal) == verdict(ahead) == "supported" and ahead[0].family == 2


def test_close_is_shown_and_not_taken_for_granted():
    assert gap(0.01, close=0.05).shown.endswith("; within 0.05 (90% [-0.008, +0.028])")
    assert gap(0.01, scatter=0.08, close=0.05).shown.endswith("; not shown to be within 0.05 (90% [-0.062, +0.082])")


def test_all_claims_are_one_family_and_undecided_ones_say_how_many_seeds_would_do():
    weak = gap(0.03, scatter=0.025)
    assert 0.005 < weak.found.estimate.p < 0.05
    ((alone,),) = corrected([[weak]])
    assert alone.sign == 1 and not alone.needed
    (among,), *_ = corrected([[weak], *[[gap(0.0)] for _ in range(20)]])
    assert among.sign == 0 and among.needed is not None and 6 < among.needed.seeds < 40


def test_without_the_papers_variants_there_are_no_claims(records, tmp_path):
    made = [one for one in measured(records, {"tuna": 0.5, "tuna_r": 0.5, "tuna2": 0.5}) if one.run.variant == "tuna"]
    assert write_claims(made, tmp_path, "x") == [] == write_claims(records(seeds=1), tmp_path, "x")


def test_a_mean_is_shown_without_the_benchmark_on_which_its_sign_hangs(records):
    """Of seven panels with margins one alone differs: without it there is nothing."""
    made = measured(records, {"tuna": 0.5, "tuna_r": 0.5, "tuna2": 0.5})
    for number, one in enumerate(made):
        if one.run.variant == "tuna2":
            end = one.points[-1]
            raised = Score.from_outcomes(end.benchmarks["count"].items(), 0.2, end.benchmarks["count"].margin_items() + 2.0)
            made[number] = replace(one, points=[*one.points[:-1], replace(end, benchmarks=end.benchmarks | {"count": raised})])
    (gap_found,) = claims(made)["Understanding ends Tuna-2 > Tuna-R"]
    assert gap_found.sign == 1 and gap_found.without.what == "without count (CountBench)"
    assert abs(gap_found.without.estimate.value) < 0.05 < 0.2 < gap_found.found.estimate.value
    assert "; without count (CountBench) " in gap_found.shown


def test_a_sign_over_seeds_may_not_stand_over_encoders():
    """Nine seeds of three encoders that scatter: over seeds the sign is certain, over the three means it is not."""
    of_encoder = np.repeat([0.2, 0.9, 1.6], 3) + np.tile([0.0, 0.01, 0.02], 3)
    found = Difference("x", of_encoder, parts=["a"] * 3 + ["b"] * 3 + ["c"] * 3)
    alone = Gap("x", found)
    ((told,),) = corrected([[alone]])
    assert told.sign == 1 and told.p < 0.01 < 0.05 < told.p_parts and "**" in told.shown and "**" not in told.elsewhere
    steady = replace(alone, found=replace(found, value_S=0.9 + np.tile([-0.3, 0.0, 0.3], 3)))
    ((told,),) = corrected([[steady]])
    assert told.p_parts < 0.05 and told.elsewhere.startswith("**")


def test_at_chance_nothing_is_close_and_the_family_stays(records):
    """Images of which none is right are alike for every model."""
    made = measured(records, {"tuna": 0.5, "tuna_r": 0.5, "tuna2": 0.5})
    of, about = ("generation", "scene prompts"), {"split": "test", "chance": 0.06}
    items = {"tuna": [0.0] * 20, "tuna_r": [0.0] * 19 + [1.0], "tuna2": [0.0] * 20}
    at_floor = [
        replace(
            one,
            evaluation=[Evaluated("g", {}, {}, 0.0, [mean(*of, items[one.run.variant], metric="overall", **about)])],
        )
        for one in made
    ]
    found = claims(at_floor)["Generation: Tuna > Tuna-R > Tuna-2, all close"]
    assert verdict(found) == "no room for a difference"
    assert all(gap.floor and gap.shown.endswith("both at chance, left out") for gap in found)
    without = claims(made)["Tuna-2 starts slower than Tuna-R"][0]
    with_floor = claims(at_floor)["Tuna-2 starts slower than Tuna-R"][0]
    assert with_floor.family == without.family + 1  # two of generation for one of reconstruction


def test_an_undecided_claim_needs_what_its_contrary_needs():
    """One difference that stands the other way round decides against it, whatever the others do."""
    scatter = np.array([1.0, -1.0, 0.5, -0.5, 0.2, -0.2])
    gaps = [Gap("a", Difference("a", 0.05 + scatter)), Gap("b", Difference("b", -0.5 + scatter))]
    (told,) = corrected([gaps])
    assert verdict(told) == "undecided" and told[0].needed.seeds > told[1].needed.seeds
    assert _in_words(told)[0] == f"undecided (seeds needed: {told[1].needed.shown})"
    near = Gap("c", Difference("c", 0.045 + 0.01 * scatter), close=0.05)
    ((told_near,),) = corrected([[near]])
    assert told_near.sign == 0 and told_near.p < 0.05 and told_near.needed.seeds > 6  # of being close, not of the sign


def test_the_effect_of_masking_on_two_front_ends_is_compared_question_by_question(records):
    """Both are asked the same: what a question does to both effects cancels. And seeds are those of all four cells."""
    generator = np.random.default_rng(0)
    of_question = generator.normal(0, 2, 200)
    pairs = {}
    for variant, effect in (("tuna2", 0.5), ("tuna_r", 0.25)):
        sides = []
        for masked in (1.0, 0.0):
            made = [one for one in records(seeds=4) if one.run.variant == variant]
            margins = [generator.normal(0, 0.1, 200) + masked * (effect + of_question) for _ in made]
            scores = [{"charts": Score.from_outcomes([True] * 200, 0.2, of)} for of in margins]
            ends = [replace(one.points[-1], benchmarks=score) for one, score in zip(made, scores, strict=True)]
            sides.append([replace(one, points=[*one.points[:-1], end]) for one, end in zip(made, ends, strict=True)])
        pairs[variant] = paired(*sides)
    found = double_difference(pairs["tuna2"], pairs["tuna_r"][1:], MARGIN, ["charts"])
    assert len(found.value_S) == 3 and found.estimate.value == pytest.approx(0.25, abs=0.06) and found.questions < 0.02
    assert difference(pairs["tuna2"], MARGIN, ["charts"]).questions > 0.1
    assert double_difference(pairs["tuna2"], [], MARGIN, ["charts"]) is None
