"""A training step at full scale: what share of the device's own rate of matrix products the model's FLOPs reach.

The step is the one that runs train with: their module, optimiser, averages and precision, on rows that their stream packs.
"""

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import cycle, islice, pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning import Callback, Trainer
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from tunalab.bench.training import AssumedCorpus
from tunalab.data.buckets import Buckets
from tunalab.data.scenes import text_sample
from tunalab.data.sources import kind_of
from tunalab.data.stream import StepLoader, TrainingStream
from tunalab.data.tokenizer import Tokenizer, train_tokenizer
from tunalab.model.flops import flop_costs
from tunalab.model.unified import build_model
from tunalab.settings.layers import run_files
from tunalab.settings.loading import load_config
from tunalab.settings.schema import RunConfig
from tunalab.training.joint import JointStep, JointSteps
from tunalab.training.module import Harness
from tunalab.training.run import build_trainer

EXPERIMENT, VARIANT = "paper_1_5b_controlled", "tuna2"
# The experiment without what only a whole run or a network has; with masking from the first step on, and a flow head that fits
# beside the decoder into one GPU of 80 GB.
ALONE = [
    *("decoder.pretrained=''", "decoder.chat=none", "data.step_tokens=0", "data.workers=0"),
    *("distribution.strategy=none", "tracking.enabled=false"),
    *("stages.connector.tokens=0", "stages.sft.tokens=0", "objective.masking.start=0", "head.blocks=16"),
]
DISTINCT = 4  # batches, which take turns: after two rounds every shape has been compiled for


def step_config(settings: list[str]) -> RunConfig:
    """Pretraining at 1.5B, with random weights, under further settings."""
    return load_config(*run_files(EXPERIMENT, VARIANT), [*ALONE, *settings])


@cache
def small_tokenizer() -> Tokenizer:
    """Its ids are the first of the embedding table."""
    return train_tokenizer(text_sample(0, 2000), vocabulary=400)


def assumed_steps(config: RunConfig, tokenizer: Tokenizer, count: int, token_pixels: int) -> list[JointStep]:
    """The first steps of a run whose sources hold documents of assumed lengths."""
    sizes = Buckets.of(config.data).sizes
    costs = flop_costs(config, tokenizer.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        stream = TrainingStream(
            config.data,
            config.stages,
            lambda name: AssumedCorpus(name, kind_of(name, config.data), sizes),
            tokenizer,
            token_pixels,
            config.seed,
            Path(folder) / "rejects.jsonl",
        )
        return list(islice(JointSteps(StepLoader(stream, config.data.workers), list(config.stages), costs), count))


def bench_step(
    config: RunConfig, device: torch.device, steps: int = 20, square: int = 8192, profiled: bool = False
) -> dict[str, Any]:
    """Medians over ``steps`` steps after two rounds of warming up. ``square``: side of the matrices of the device's own rate.

    ``profiled``: what ran on the device in one more step, instead of its speed.
    """
    tokenizer = small_tokenizer()
    rate = matrix_rate(device, square)
    with device:
        model = build_model(config, None, tokenizer.vocabulary)
    distinct = assumed_steps(config, tokenizer, DISTINCT, model.frontend.space.token_pixels)
    warming = 2 * DISTINCT
    laps = Laps(device)
    module = Harness(config, model)
    profiler = Profiled(warming) if profiled else None
    run = list(islice(cycle(distinct), warming + (1 if profiled else steps)))
    placed = {"accelerator": "gpu" if device.type == "cuda" else "cpu", "devices": 1}
    build_trainer(config, [laps, *([profiler] if profiler else [])], **placed).fit(module, Again(run))
    if profiler is not None:
        return {"kernels": profiler.kernels()}
    seconds = laps.seconds()
    # Clocks fall as a card grows warm: the greater of the rates before and after is the harder measure.
    rate = max(rate, matrix_rate(device, square))
    measured, timed = run[warming:], seconds[warming:]
    median = statistics.median(timed)
    return {
        "utilisation": statistics.median(step.flops / (lap * rate) for step, lap in zip(measured, timed, strict=True)),
        "matrix_flops_per_second": rate,
        "step_seconds": median,
        "slowest_step_seconds": max(timed),
        "steps": steps,
        "tokens_per_second": sum(step.tokens for step in measured) / sum(timed),
        "tokens_per_step": statistics.mean(step.tokens for step in measured),
        "model_flops_per_step": statistics.mean(step.flops for step in measured),
        "warming_up_seconds": sum(seconds[:warming]),
        "compile_seconds": sum(seconds[:warming]) - warming * median,
        "graphs": laps.graphs[-1],
        "graphs_compiled_while_measured": laps.graphs[-1] - laps.graphs[warming - 1],
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "compile_blocks": config.compile_blocks,
        "activation_checkpointing": config.activation_checkpointing,
    }


class Again:
    """Steps as a loader gives them: a step that was moved to the device is not there yet when its turn comes again."""

    def __init__(self, steps: list[JointStep]) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[JointStep]:
        return (replace(step, mine=replace(step.mine)) for step in self.steps)


class Laps(Callback):
    """Times between the ends of steps as the device sees them: it is not waited for. ``graphs``: how many were compiled by then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []
        self.graphs: list[int] = []

    def on_train_start(self, *_: Any) -> None:
        self.mark()

    def on_train_batch_end(self, *_: Any) -> None:
        self.mark()
        self.graphs.append(counters["stats"]["unique_graphs"])

    def mark(self) -> None:
        if self.device.type != "cuda":
            self.marks.append(perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def seconds(self) -> list[float]:
        if self.device.type != "cuda":
            return [after - before for before, after in pairwise(self.marks)]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(self.marks)]


class Profiled(Callback):
    """What runs on the device in one step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.profile = profile(activities=[ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU])

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.step:
            self.profile.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.step:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.profile.stop()

    def kernels(self, most: int = 30) -> list[dict[str, Any]]:
        """Those that took longest, with their milliseconds and how often they ran."""
        found = sorted(self.profile.key_averages(), key=lambda event: -event.self_device_time_total)
        return [{"name": e.key[:120], "ms": e.self_device_time_total / 1e3, "count": e.count} for e in found[:most]]


def matrix_rate(device: torch.device, side: int, repeats: int = 30) -> float:
    """FLOPs a second of bfloat16 products of two random square matrices."""
    a, b = (torch.randn((side, side), device=device).bfloat16() for _ in range(2))
    laps = Laps(device)
    for _ in range(repeats + 1):
        laps.mark()
        a @ b
    laps.mark()
    return 2 * side**3 / statistics.median(laps.seconds()[repeats // 3 :])  # the first third warms up
