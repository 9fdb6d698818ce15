"""When a run is evaluated: at token counts, log-spaced, the same for every variant."""

import math

from tunalab.config import EvaluationConfig


def evaluation_tokens(evaluation: EvaluationConfig, budget: int) -> list[int]:
    """Token counts, log-spaced from ``first`` (a share of the budget) to the budget."""
    if evaluation.points == 1:
        return [budget]
    first = math.log(evaluation.first)
    shares = [math.exp(first * (1 - k / (evaluation.points - 1))) for k in range(evaluation.points)]
    return sorted({max(1, round(share * budget)) for share in shares})
