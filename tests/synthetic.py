"""Records of runs that never happened: logistic learning curves with a known order of variants."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from tunalab.evaluation.measure import Score, chance_of
from tunalab.records.labels import MASK_RATIO
from tunalab.records.record import Point, Record, RunInfo, Totals
from tunalab.settings.loading import load_config, to_plain

ROOT = Path(__file__).parents[1]
CHANCE = {"relations": 0.25, "charts": 0.2, "ocr": 0.06, "pairs": 0.25, "search": 0.15, "count": 0.2, "pattern": 0.25}
SLOPE = {"tuna": (5.9, 0.72), "tuna_r": (5.3, 0.8), "tuna2": (5.7, 0.88)}  # log10 tokens at take-off, final accuracy
TOKENS = [100_000, 200_000, 500_000, 1_000_000, 2_000_000, 4_000_000]


def synthetic_record(
    variant: str = "tuna2",
    seed: int = 0,
    mask_ratio: float = 0.25,
    n: int = 200,
    outcomes: bool = True,
    finished: bool = True,
    kinds: int = 7,
    name: str | None = None,
    settings: Sequence[str] = (),
) -> Record:
    """One synthetic record of a shipped configuration with ``settings`` over it; token counts differ a little by seed."""
    generator = np.random.default_rng([seed, round(mask_ratio * 100), sum(map(ord, variant))])
    points = []
    middle, best = SLOPE.get(variant, (5.6, 0.7))
    for index, threshold in enumerate(TOKENS):
        tokens = threshold + 37 * seed + index
        scores = {}
        for offset, (benchmark, chance) in enumerate(list(CHANCE.items())[:kinds]):
            rise = 1 / (1 + np.exp(-4 * (np.log10(tokens) - middle - 0.06 * offset)))
            ability = chance + (best - 0.03 * offset - 0.15 * abs(mask_ratio - 0.3) + 0.02 * seed - chance) * rise
            right = generator.random(n) < ability
            expected = chance_of(benchmark, n) or chance  # as evaluations write it
            scores[benchmark] = Score.from_outcomes(right, expected) if outcomes else Score.of(int(right.sum()), n, expected)
        points.append(Point(tokens, tokens // 2000, tokens // 90, tokens * 6e6, tokens / 1e4, scores, {"text": 1.5}, {"0.3": 14.2}))
    last = points[-1]
    totals = Totals(last.tokens, last.steps, last.images, last.flops, last.seconds, 1_500_000_000)
    name = name or f"{variant}-ratio{mask_ratio:g}-seed{seed}"
    config = OmegaConf.to_container(
        OmegaConf.merge(
            shipped_configuration(variant),
            {"seed": seed, "variant": variant},
            OmegaConf.from_dotlist([f"{MASK_RATIO}={mask_ratio}", *settings]),
        )
    )
    assert isinstance(config, dict)
    info = RunInfo(name, "scenes", variant, seed, mask_ratio, "mask_ratio", "abc", finished)
    parameters = {"frontend": 10_000, "decoder": 600_000, "flow_head": 90_000, "trainable": 700_000}
    machine = {"python": "3.11", "cpu": "Abacus", "cores": 2, "threads": 1, "accelerator": None}
    return Record(info, config, machine, parameters, {"vae": {"psnr": 29.1}}, totals, points)


@cache
def shipped_configuration(variant: str) -> dict[str, Any]:
    """The shipped experiment with the variant's own front-end; a variant that is not shipped has Tuna-2's."""
    shipped = ROOT / "variants" / f"{variant}.yaml"
    return to_plain(load_config(ROOT / "experiments" / "scenes.yaml", shipped if shipped.exists() else None, []))


def synthetic_records(
    variants: tuple[str, ...] = ("tuna", "tuna_r", "tuna2"), seeds: int = 2, ratios: tuple[float, ...] = (0.25,), kinds: int = 7
) -> list[Record]:
    return [
        synthetic_record(variant, seed, ratio, kinds=kinds) for seed in range(seeds) for ratio in ratios for variant in variants
    ]
