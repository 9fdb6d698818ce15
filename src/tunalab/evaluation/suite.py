"""Everything that is measured at a point of a run, in the form its record keeps."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tunalab.config import RunConfig
from tunalab.data.tokenizer import Tokenizer
from tunalab.evaluation.benchmarks import Benchmark, benchmarks
from tunalab.evaluation.losses import held_out_losses
from tunalab.evaluation.mode import evaluation_mode
from tunalab.evaluation.one_step import one_step_psnr
from tunalab.evaluation.score import Score
from tunalab.evaluation.scoring import score
from tunalab.inference.answering import answer
from tunalab.model.unified import UnifiedModel

Answerer = Callable[[Sequence[tuple[np.ndarray | None, str]]], Sequence[str]]


def evaluate(model: UnifiedModel, tokenizer: Tokenizer, config: RunConfig) -> dict[str, Any]:
    """``benchmarks`` (name -> fields of a Score), ``losses`` (name -> nats or squared error), ``one_step_psnr`` (t -> dB).

    The model's training mode is restored. Raises UserError when a benchmark's data is missing.
    """
    with evaluation_mode(model):
        scores = ask(
            benchmarks(config),
            lambda questions: answer(model, tokenizer, questions, config.evaluation.max_answer_tokens),
        )
        return {
            "benchmarks": {name: asdict(one) for name, one in scores.items()},
            "losses": held_out_losses(model, tokenizer, config),
            "one_step_psnr": one_step_psnr(model, tokenizer, config),
        }


def ask(asked: Sequence[Benchmark], answerer: Answerer) -> dict[str, Score]:
    """Scores of whatever answers (image, prompt) pairs. All benchmarks are asked at once: larger batches of equal length."""
    questions = [(question.image_HWC, question.prompt) for benchmark in asked for question in benchmark.questions]
    answers = list(answerer(questions))
    scores = {}
    for benchmark in asked:
        given, answers = answers[: len(benchmark.questions)], answers[len(benchmark.questions) :]
        scores[benchmark.name] = score(benchmark, given)
    return scores
