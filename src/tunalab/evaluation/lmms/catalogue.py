"""The paper's twelve understanding benchmarks: how lmms-eval 0.7.3 calls them and how the outcome of one item is read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _number(value: Any) -> float | None:
    return float(value)


def _score(value: Any) -> float | None:
    return float(value["score"])


def _judged(value: Any) -> float | None:
    """Ours gives no score where the judge gave none; the stock task scores 0 and names no judge."""
    return float(value["score"]) if value["eval_model"] and "score" in value else None


def _correct(value: Any) -> float | None:
    return float(value["is_correct"])


def _letter(value: Any) -> float | None:
    return float(value["pred"].strip().lower() == value["answer"].strip().lower())


@dataclass(frozen=True)
class Published:
    """``title`` as in results/published.csv, ``source``: the data set on the Hugging Face hub that a local copy is of.

    ``metric`` is what lmms-eval logs of an item; ``outcome`` reads a share between 0 and 1 from it, None where a judge failed.
    ``scale``: what lmms-eval's total of a perfect model is; None where that total is no mean over the items it ran on.
    """

    title: str
    source: str
    metric: str
    outcome: Callable[[Any], float | None] = _number
    scale: float | None = 1.0
    chance: float | None = None
    judged: bool = False
    note: str = ""


LOCAL = "_local"  # behind the name of a ready task: of two tasks of one name lmms-eval takes the stock one
BENCHMARKS: dict[str, Published] = {
    "gqa": Published("GQA", "lmms-lab-encoder/GQA", "exact_match"),
    "realworldqa": Published("RealWorldQA", "lmms-lab-encoder/RealWorldQA", "exact_match"),
    "mmvet": Published("MMVet", "lmms-lab-encoder/MMVet", "gpt_eval_score", _judged, scale=100.0, judged=True),
    # The total is rounded to five digits, of shares: 1 is perfect.
    "mmmu_val": Published(
        "MMMU",
        "lmms-lab-encoder/MMMU",
        "mmmu_acc",
        _score,
        note="of several images the first is shown; by its rules a letter is drawn where a reply names no choice",
    ),
    "mmvp": Published("MMVP", "lmms-lab-eval/MMVP", "mmvp_accuracy", _correct, chance=0.5),
    "seedbench_2_plus": Published("SEED-Bench-2-Plus", "doolayer/SEED-Bench-2-Plus", "seedbench_2_plus_all", _letter, chance=0.25),
    "ai2d": Published("AI2D", "lmms-lab-encoder/ai2d", "exact_match"),
    "chartqa": Published("ChartQA", "lmms-lab-encoder/ChartQA", "relaxed_overall"),
    # The total of the stock task is right answers by 1000, on however many items it ran, and those of earlier runs with them.
    "ocrbench": Published("OCRBench", "echo840/OCRBench", "ocrbench_accuracy", _score, scale=None),
    "vstar_bench": Published("V*", "lmms-lab-encoder/vstar-bench", "vstar_overall_acc", _score, scale=100.0),
    "countbench": Published("CountBench", "vikhyatk/CountBenchQA", "acc"),
    "visulogic": Published("VisuLogic", "VisuLogic/VisuLogic", "visulogic_acc", chance=0.25),
}
