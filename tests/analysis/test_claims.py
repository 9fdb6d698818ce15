from dataclasses import replace

import numpy as np
import pytest

from tunalab.analysis.claims import Gap, claims_markdown, corrected, verdict, write_claims
from tunalab.data.scenes.vocabulary import BENCHMARKS
from tunalab.evaluation.benchmarks import benchmark_name
from tunalab.evaluation.measure import mean, share
from tunalab.evaluation.whole import Evaluated


def evaluated(records, right: dict[str, float], levels=(1, 2, 3)):
    """Records whose variants answer a share of all questions, the same questions first."""
    made = []
    for record in records(seeds=4):
        n = 200
        outcomes = [index < right[record.run.variant] * n for index in np.random.default_rng(record.run.seed).permutation(n)]
        measures = [
            share("understanding", benchmark_name(kind, level), outcomes, split="test") for kind in BENCHMARKS for level in levels
        ]
        measures.append(mean("reconstruction", "scenes", [20.0, 21.0 + right[record.run.variant]], metric="PSNR", split="test"))
        made.append(replace(record, evaluation=[Evaluated("x", {}, {}, 0.0, measures)]))
    return made


def row(text: str, claim: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {claim} |")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_a_claim_is_supported_contradicted_or_undecided(records):
    shown = claims_markdown(evaluated(records, {"tuna": 0.5, "tuna_r": 0.6, "tuna2": 0.8}))
    assert row(shown, "Understanding ends Tuna-2 > Tuna-R")[1:3] == ["supported", "level 1: Tuna-2 - Tuna-R"]
    assert row(shown, "Understanding ends Tuna-2 > Tuna-R")[3].startswith("**+0.200** [")
    opposite = claims_markdown(evaluated(records, {"tuna": 0.5, "tuna_r": 0.8, "tuna2": 0.6}))
    assert row(opposite, "Understanding ends Tuna-2 > Tuna-R")[1] == "contradicted"
    level = claims_markdown(evaluated(records, {"tuna": 0.5, "tuna_r": 0.5, "tuna2": 0.5}))
    assert row(level, "Understanding ends Tuna-R > Tuna")[1] == "undecided"


def test_what_was_not_measured_says_so(records):
    text = claims_markdown(evaluated(records, {"tuna": 0.5, "tuna_r": 0.6, "tuna2": 0.8}, levels=(1,)))
    assert row(text, "Generation: Tuna > Tuna-R > Tuna-2, all close")[1] == "not measured"
    assert "level 1" in text and "level 2" not in text and "scenes, PSNR" in text


def gap(value: float, scatter: float = 0.02, seeds: int = 6) -> Gap:
    """``value`` a seed, give or take ``scatter``, over 400 items in decibels."""
    value_S = value + scatter * np.array([(-1) ** seed for seed in range(seeds)])
    return Gap("x", "a", "b", np.repeat(value_S[:, None], 400, axis=1))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.5, 0.6], "supported"), ([0.5, 0.0], "undecided"), ([0.5, -0.6], "contradicted"), ([], "not measured")],
)
def test_verdicts(values, expected):
    (found,) = corrected([[gap(value) for value in values]])
    assert verdict(found) == expected


def test_all_claims_are_one_family_and_undecided_ones_say_how_many_seeds_would_do():
    weak = gap(0.03, scatter=0.025)
    assert 0.005 < weak.estimate.p < 0.05
    ((alone,),) = corrected([[weak]])
    assert alone.sign == 1 and not alone.needed
    (among,), *_ = corrected([[weak], *[[gap(0.0)] for _ in range(20)]])
    assert among.sign == 0 and 6 < int(among.needed) < 40


def test_without_the_papers_variants_there_are_no_claims(records, tmp_path):
    made = [one for one in evaluated(records, {"tuna": 0.5, "tuna_r": 0.5, "tuna2": 0.5}) if one.run.variant != "tuna"]
    assert write_claims(made, tmp_path, "x") == [] == write_claims(records(seeds=1), tmp_path, "x")
