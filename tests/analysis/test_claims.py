from dataclasses import replace

import numpy as np
import pytest

from tunalab.analysis.claims import Gap, claims_markdown, verdict, write_claims
from tunalab.data.scenes.vocabulary import BENCHMARKS
from tunalab.evaluation.benchmarks import benchmark_name
from tunalab.evaluation.measure import mean, share
from tunalab.evaluation.whole import Evaluated


def evaluated(records, right: dict[str, float], levels=(1, 2, 3)):
    """Records whose variants answer a share of all questions, the same questions first."""
    made = []
    for record in records(seeds=2):
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


def test_a_claim_is_shown_opposite_or_neither(records):
    shown = claims_markdown(evaluated(records, {"tuna": 0.5, "tuna_r": 0.6, "tuna2": 0.8}))
    assert row(shown, "Understanding ends Tuna-2 > Tuna-R")[1:3] == ["shown", "level 1: Tuna-2 - Tuna-R"]
    assert row(shown, "Understanding ends Tuna-2 > Tuna-R")[3].startswith("**+0.200 [")
    opposite = claims_markdown(evaluated(records, {"tuna": 0.5, "tuna_r": 0.8, "tuna2": 0.6}))
    assert row(opposite, "Understanding ends Tuna-2 > Tuna-R")[1] == "opposite"
    level = claims_markdown(evaluated(records, {"tuna": 0.5, "tuna_r": 0.5, "tuna2": 0.5}))
    assert row(level, "Understanding ends Tuna-R > Tuna")[1] == "not shown"


def test_what_was_not_measured_says_so(records):
    text = claims_markdown(evaluated(records, {"tuna": 0.5, "tuna_r": 0.6, "tuna2": 0.8}, levels=(1,)))
    assert row(text, "Generation: Tuna > Tuna-R > Tuna-2, all close")[1] == "not measured"
    assert "level 1" in text and "level 2" not in text and "scenes, PSNR" in text


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ([(0.1, 0.2), (0.1, 0.3)], "shown"),
        ([(0.1, 0.2), (-0.1, 0.3)], "not shown"),
        ([(0.1, 0.2), (-0.3, -0.1)], "opposite"),
        ([], "not measured"),
    ],
)
def test_verdicts(bounds, expected):
    assert verdict([Gap("x", "a", "b", (low + high) / 2, low, high) for low, high in bounds]) == expected


def test_without_the_papers_variants_there_are_no_claims(records, tmp_path):
    made = [one for one in evaluated(records, {"tuna": 0.5, "tuna_r": 0.5, "tuna2": 0.5}) if one.run.variant != "tuna"]
    assert write_claims(made, tmp_path, "x") == [] == write_claims(records(seeds=1), tmp_path, "x")
