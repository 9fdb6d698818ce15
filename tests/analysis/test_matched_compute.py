"""Losses compared at equal compute: what is only more FLOPs a token is no difference there."""

from dataclasses import replace

import numpy as np
import pytest
from tests.curves import TOKENS, run_of

from tunalab.analysis.endpoints import MATCHED, loss_difference, matched_difference, matched_words

RIGHT = np.ones(10, bool)


def runs(variant: str, cost: float, shift: float = 0.0, seeds: int = 3):
    """Loss falls with the logarithm of FLOPs; ``cost``: FLOPs a token; seed s is s hundredths worse."""
    made = []
    for seed in range(seeds):
        record = run_of(variant, seed, dict.fromkeys(TOKENS, RIGHT))
        points = [
            replace(
                point, flops=cost * point.tokens, losses={"text/vqa": 3 - 0.1 * np.log(cost * point.tokens) + shift + seed / 100}
            )
            for point in record.points
        ]
        made.append(replace(record, points=points))
    return made


def test_what_is_only_cost_vanishes():
    cheap, dear = runs("tuna2", 1.0), runs("tuna_r", 4.0)
    pairs = list(zip(cheap, dear, strict=True))
    assert loss_difference(pairs).value_S == pytest.approx([0.1 * np.log(4)] * 3)
    assert matched_difference(pairs, "flops").value_S == pytest.approx([0.0] * 3, abs=1e-12)
    shifted = list(zip(runs("tuna2", 1.0, shift=0.2), dear, strict=True))
    assert matched_difference(shifted, "flops").value_S == pytest.approx([0.2] * 3)
    assert matched_difference(pairs, "flops").what == MATCHED["flops"]


def test_the_sentence_has_both():
    words = matched_words([*runs("tuna2", 1.0, shift=0.2), *runs("tuna_r", 4.0)])
    assert words.startswith("At equal training FLOPs instead of tokens, the loss of answers and descriptions")
    assert "their own pretraining, is not counted" in words
    assert "+0.200" in words.replace("-0.200", "+0.200") and "; tokens: " in words and "(tokens x trainable parameters: " in words
    assert matched_words(runs("tuna2", 1.0) + runs("tuna_r", 1.0, seeds=1)) == ""


def test_without_a_stretch_in_common_there_is_none():
    assert matched_difference(list(zip(runs("tuna2", 1.0), runs("tuna_r", 1e6), strict=True)), "flops") is None
